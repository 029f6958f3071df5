"""The state of an MQTT broker without its sockets: subscriptions, retained messages, messages in flight. Pure.

Each method takes an event and returns the resulting actions, in order. Payloads are never copied: all subscribers of a
message share the published one. The embedded broker and the in-memory broker both use this.

Left out: QoS 2, shared subscriptions, will delay, message expiry.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from midge.broker.mqtt.topic_filters import FilterTree, check_filter, check_topic, matches

DEFAULT_WINDOW = 20
"""Most unacknowledged messages to one client, if the client gives no number; Mosquitto's default too."""
MAX_PACKET_ID = 65_535


@dataclass(frozen=True, slots=True)
class RoutedMessage:
    """An application message, as it was published."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: bytes = b""
    """Forwarded unread."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Send a PUBLISH to a connected client."""

    client: str
    message: RoutedMessage
    qos: int
    retain: bool
    packet_id: int = 0
    """0 at QoS 0."""
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Close the client's connection: another client connected with the same client id."""

    client: str


Action = Deliver | Close


@dataclass(eq=False, slots=True)
class _Session:
    client: str
    persistent: bool
    window: int
    will: RoutedMessage | None
    online: bool = True
    filters: set[str] = field(default_factory=set)
    in_flight: dict[int, Deliver] = field(default_factory=dict)
    queued: deque[tuple[RoutedMessage, bool]] = field(default_factory=deque)
    """Messages at QoS 1 that wait for the window, each with its retain flag."""
    queued_bytes: int = 0
    last_id: int = 0

    def send(self, message: RoutedMessage, *, retain: bool) -> Deliver:
        """Put a message in flight at QoS 1."""
        while True:
            self.last_id = self.last_id % MAX_PACKET_ID + 1
            if self.last_id not in self.in_flight:
                break
        action = Deliver(self.client, message, 1, retain, self.last_id)
        self.in_flight[self.last_id] = Deliver(self.client, message, 1, retain, self.last_id, duplicate=True)
        return action


class Router:
    """All sessions of one broker."""

    def __init__(self, max_queued: int = 1_000_000, max_queued_bytes: int = 1 << 30) -> None:
        """Start without clients.

        Args:
            max_queued: most messages queued for one client; further ones are dropped and counted.
            max_queued_bytes: the same for the sum of their payloads.
        """
        self.dropped = 0
        """Messages lost to a full queue."""
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._sessions: dict[str, _Session] = {}
        self._filters = FilterTree()
        self._retained: dict[str, RoutedMessage] = {}

    def present(self, client: str) -> bool:
        """Whether a session of this client is kept."""
        return client in self._sessions

    def connect(
        self,
        client: str,
        *,
        clean: bool = True,
        persistent: bool = False,
        window: int = DEFAULT_WINDOW,
        will: RoutedMessage | None = None,
    ) -> list[Action]:
        """Handle a connecting client; an existing connection with the same id is closed.

        Args:
            client: its id.
            clean: discard the kept session, otherwise resume it: unacknowledged messages are sent again.
            persistent: keep the session when the connection ends.
            window: most unacknowledged messages to the client at once, 1 to 65,535.
            will: published when the connection ends without DISCONNECT.
        """
        actions: list[Action] = []
        old = self._sessions.get(client)
        if old is not None and old.online:
            actions.append(Close(client))
            actions += self.disconnect(client, goodbye=False)
            old = self._sessions.get(client)
        if clean or old is None:
            self._forget(client)
            self._sessions[client] = _Session(client, persistent, window, will)
            return actions
        old.online, old.persistent, old.window, old.will = True, persistent, window, will
        actions += list(old.in_flight.values())
        return actions + self._fill(old)

    def disconnect(self, client: str, *, goodbye: bool) -> list[Action]:
        """Handle the end of a connection, with a DISCONNECT or without."""
        session = self._sessions.get(client)
        if session is None or not session.online:
            return []
        session.online = False
        will, session.will = session.will, None
        if not session.persistent:
            self._forget(client)
        return [] if goodbye or will is None else self.publish(will)

    def expire(self, client: str) -> None:
        """Discard a session, unless its client is connected."""
        session = self._sessions.get(client)
        if session is not None and not session.online:
            self._forget(client)

    def publish(self, message: RoutedMessage) -> list[Action]:
        """Handle a client's message.

        Raises:
            ValueError: its topic is invalid.
        """
        check_topic(message.topic)
        if message.retain:
            if message.payload:
                self._retained[message.topic] = message
            else:
                self._retained.pop(message.topic, None)
        actions: list[Action] = []
        for client, qos in self._filters.subscribers(message.topic).items():
            actions += self._offer(self._sessions[client], message, min(qos, message.qos), retain=False)
        return actions

    def subscribe(self, client: str, filters: Iterable[tuple[str, int]]) -> list[Action]:
        """Subscribe a connected client; retained messages follow.

        Raises:
            ValueError: a filter is invalid. Nothing was subscribed.
        """
        session = self._sessions[client]
        wanted = [(check_filter(topic_filter), qos) for topic_filter, qos in filters]
        actions: list[Action] = []
        for topic_filter, qos in wanted:
            session.filters.add(topic_filter)
            self._filters.add(topic_filter, client, qos)
            for message in self._retained_on(topic_filter):
                actions += self._offer(session, message, min(qos, message.qos), retain=True)
        return actions

    def unsubscribe(self, client: str, filters: Iterable[str]) -> None:
        """Unsubscribe a connected client. Messages in flight or queued are still sent."""
        session = self._sessions[client]
        for topic_filter in filters:
            session.filters.discard(topic_filter)
            self._filters.discard(topic_filter, client)

    def acknowledge(self, client: str, packet_id: int) -> list[Action]:
        """Handle an acknowledgement; the window moves on. An unknown packet id changes nothing."""
        session = self._sessions.get(client)
        if session is None or not session.online or session.in_flight.pop(packet_id, None) is None:
            return []
        return self._fill(session)

    def _offer(self, session: _Session, message: RoutedMessage, qos: int, *, retain: bool) -> list[Action]:
        if qos == 0:
            return [Deliver(session.client, message, 0, retain)] if session.online else []
        if session.online and len(session.in_flight) < session.window:
            return [session.send(message, retain=retain)]
        size = session.queued_bytes + len(message.payload)
        if len(session.queued) < self._max_queued and size <= self._max_queued_bytes:
            session.queued.append((message, retain))
            session.queued_bytes = size
        else:
            self.dropped += 1
        return []

    def _fill(self, session: _Session) -> list[Action]:
        actions: list[Action] = []
        while session.queued and len(session.in_flight) < session.window:
            message, retain = session.queued.popleft()
            session.queued_bytes -= len(message.payload)
            actions.append(session.send(message, retain=retain))
        return actions

    def _retained_on(self, topic_filter: str) -> list[RoutedMessage]:
        if "+" not in topic_filter and "#" not in topic_filter:
            message = self._retained.get(topic_filter)
            return [] if message is None else [message]
        return [message for topic, message in self._retained.items() if matches(topic_filter, topic)]

    def _forget(self, client: str) -> None:
        session = self._sessions.pop(client, None)
        if session is not None:
            for topic_filter in session.filters:
                self._filters.discard(topic_filter, client)
