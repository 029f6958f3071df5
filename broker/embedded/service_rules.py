"""The limits of a hosted broker, enforced by the embedded one: whoever exceeds one is disconnected. Pure.

Services differ in what follows from an excess: some disconnect, some throttle, some drop. Here all of it ends the
connection, so that a client which passes passes everywhere.
"""

from dataclasses import dataclass, field

from midge.broker.embedded import packets
from midge.broker.embedded.mqtt_types import ProtocolError, Reason
from midge.broker.mqtt.services import ServiceLimits

ACKNOWLEDGE_AFTER = 0.02
"""Seconds until a message is acknowledged, as on a way to a data centre: otherwise nothing would ever be in flight."""


@dataclass(slots=True)
class _Client:
    filters: set[str] = field(default_factory=set)
    in_flight: dict[int, int] = field(default_factory=dict)
    """Bytes by packet id."""
    left: dict[str, float] = field(default_factory=dict)
    """What each rate still allows."""
    at: float = 0.0


class ServiceRules:
    """The rules for all clients of one broker; `now` is in seconds.

    Args:
        limits: of the service.
    """

    def __init__(self, limits: ServiceLimits) -> None:
        self.limits = limits
        self._clients: dict[str, _Client] = {}

    def acceptable(self, client_id: str) -> bool:
        """Whether a client id is short enough."""
        most = self.limits.client_id
        return most is None or len(client_id.encode()) <= most

    def connected(self, client_id: str, will: packets.Publish | None) -> None:
        """Count a client from nothing.

        Raises:
            ProtocolError: its will is not allowed.
        """
        self._clients[client_id] = _Client()
        if will is not None:
            self._check(will)

    def gone(self, client_id: str) -> None:
        """Forget a client whose connection has ended."""
        self._clients.pop(client_id, None)

    def published(self, client_id: str, packet: packets.Publish, now: float) -> None:
        """Count a message.

        Raises:
            ProtocolError: it exceeds a limit.
        """
        self._check(packet)
        limits, client, size = self.limits, self._clients[client_id], len(packet.payload)
        passed, client.at = now - client.at, now
        for name, rate, cost in (("messages", limits.publishes, 1), ("bytes", limits.bytes_a_second, size)):
            if rate is not None:
                left = min(float(rate), client.left.get(name, float(rate)) + passed * rate)
                # As far below zero as one large message takes it: what follows waits for it.
                if left <= 0:
                    raise ProtocolError(f"More than {rate:,} {name} a second.", Reason.MESSAGE_RATE_TOO_HIGH)
                client.left[name] = left - cost
        if packet.qos:
            waiting = client.in_flight
            most = limits.in_flight_bytes
            if limits.receive_maximum is not None and len(waiting) >= limits.receive_maximum:
                raise ProtocolError(f"{len(waiting) + 1} messages in flight.", Reason.RECEIVE_MAXIMUM_EXCEEDED)
            if most is not None and waiting and sum(waiting.values()) + size > most:
                raise ProtocolError(f"{sum(waiting.values()) + size:,} bytes in flight.", Reason.QUOTA_EXCEEDED)
            waiting[packet.packet_id] = size

    def acknowledged(self, client_id: str, packet_id: int) -> None:
        """Count a message as no longer in flight."""
        if client_id in self._clients:
            self._clients[client_id].in_flight.pop(packet_id, None)

    def subscribed(self, client_id: str, filters: list[str]) -> None:
        """Count subscriptions.

        Raises:
            ProtocolError: they are too many, or one has too many levels.
        """
        limits, held = self.limits, self._clients[client_id].filters
        if limits.filters is not None and len(filters) > limits.filters:
            raise ProtocolError(f"{len(filters)} filters in one SUBSCRIBE.", Reason.QUOTA_EXCEEDED)
        held.update(filters)
        if limits.subscriptions is not None and len(held) > limits.subscriptions:
            raise ProtocolError(f"{len(held)} subscriptions of one client.", Reason.QUOTA_EXCEEDED)
        for each in filters:
            self._check_levels(each)

    def unsubscribed(self, client_id: str, filters: tuple[str, ...]) -> None:
        """Count subscriptions that ended."""
        self._clients[client_id].filters.difference_update(filters)

    def _check(self, packet: packets.Publish) -> None:
        limits, size = self.limits, len(packet.payload)
        if limits.message is not None and size > limits.message:
            raise ProtocolError(f"A message of {size:,} bytes.", Reason.PACKET_TOO_LARGE)
        if packet.retain and limits.retained is not None and size > limits.retained:
            raise ProtocolError(f"A retained message of {size:,} bytes.", Reason.QUOTA_EXCEEDED)
        self._check_levels(packet.topic)

    def _check_levels(self, topic: str) -> None:
        if self.limits.levels is not None and topic.count("/") >= self.limits.levels:
            raise ProtocolError(f"A topic of {topic.count('/') + 1} levels.", Reason.TOPIC_NAME_INVALID)
