"""An MQTT broker in memory: no socket, no thread, on any event loop, including one with a virtual clock.

It runs the same routing as the embedded broker and keeps the same contract as a connection through a library; one
contract suite tests all of them. Tests and simulations use its faults: broken connections, lost and duplicated
messages.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from midge.broker.embedded.routing import Action, Close, Deliver, RoutedMessage, Router
from midge.broker.mqtt.connection import (
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Delivery,
    Limits,
    Options,
    PacketTooLarge,
    Payload,
    QoS,
)
from midge.broker.mqtt.receive_queue import Inbox
from midge.broker.mqtt.topic_filters import check_topic

PUBLISH_OVERHEAD = 10
"""Most bytes of a PUBLISH beside topic and payload: fixed header 5, topic length 2, packet id 2, properties 1."""

Copies = Callable[[str, RoutedMessage], int]
"""How often a client's message reaches the broker, by client id: 1 is a network without faults, 0 loses the message, 2
duplicates it. The publisher gets its acknowledgement in any case, as from a stock Mosquitto."""


class Twin:
    """A broker in memory. `connect` is a `Connector`."""

    def __init__(self, *, maximum_packet_size: int | None = None, max_queued: int = 1_000_000) -> None:
        """Start a broker without clients.

        Args:
            maximum_packet_size: announced in CONNACK, in bytes.
            max_queued: most messages queued for one client.
        """
        self.router = Router(max_queued)
        self.copies: Copies = lambda _client, _message: 1
        """The network's faults; assign another function to change them."""
        self.reachable = True
        """If False, new connections are refused."""
        self._maximum_packet_size = maximum_packet_size
        self._connections: dict[str, _TwinConnection] = {}

    def connect(self, options: Options) -> AbstractAsyncContextManager[Connection]:
        """Connect; at the end of the block the client disconnects properly."""
        return self._connect(options)

    @asynccontextmanager
    async def _connect(self, options: Options) -> AsyncGenerator[Connection, None]:
        if not self.reachable:
            raise BrokerUnreachable("The broker in memory is stopped.")
        will = options.will
        actions = self.router.connect(
            options.client_id,
            window=options.receive_maximum,
            will=None if will is None else RoutedMessage(will.topic, will.payload, will.qos, will.retain),
        )
        self.perform(actions)
        limits = Limits(5, self._maximum_packet_size, client_id=options.client_id)
        connection = _TwinConnection(self, options.client_id, limits)
        self._connections[options.client_id] = connection
        try:
            yield connection
        finally:
            if not connection.lost:
                connection.lose("The connection was closed here.")
                del self._connections[options.client_id]
                self.perform(self.router.disconnect(options.client_id, goodbye=True))

    def drop(self, client_id: str, why: str = "The connection broke.") -> None:
        """Break a client's connection like a dead link: its will is published."""
        connection = self._connections.pop(client_id, None)
        if connection is not None:
            connection.lose(why)
            self.perform(self.router.disconnect(client_id, goodbye=False))

    def kill(self) -> None:
        """Break all connections and forget everything, as a broker without persistence does when it dies."""
        self.reachable = False
        self.router = Router()
        for connection in self._connections.values():
            connection.lose("The broker died.")
        self._connections.clear()

    def restart(self) -> None:
        """Accept connections again."""
        self.reachable = True

    def publish(self, client_id: str, message: RoutedMessage) -> None:
        """Accept a client's message, as often as `copies` says."""
        for _ in range(self.copies(client_id, message)):
            self.perform(self.router.publish(message))

    def perform(self, actions: list[Action]) -> None:
        """Carry out the router's actions."""
        for action in actions:
            match action:
                case Deliver():
                    self._connections[action.client].arrive(action)
                case Close():
                    self._connections.pop(action.client).lose(
                        f"Another client came with the same client id {action.client!r}.", taken_over=True
                    )


class _TwinConnection:
    """The contract of `broker.mqtt.connection.Connection`, in memory."""

    def __init__(self, twin: Twin, client_id: str, limits: Limits) -> None:
        self.limits = limits
        self._twin = twin
        self._client_id = client_id
        self._inbox = Inbox()

    @property
    def lost(self) -> bool:
        return self._inbox.loss is not None

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        self._inbox.raise_if_lost()
        check_topic(topic)
        size = len(topic.encode()) + len(payload) + PUBLISH_OVERHEAD
        most = self.limits.maximum_packet_size
        if most is not None and size > most:
            raise PacketTooLarge(
                f"A packet of {size} bytes is more than the broker takes ({most} bytes): send smaller chunks."
            )
        self._twin.publish(self._client_id, RoutedMessage(topic, bytes(payload), qos, retain))
        await asyncio.sleep(0)  # let other tasks run, as a socket would; the connection may end meanwhile
        if qos == 1:
            self._inbox.raise_if_lost()

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        self._inbox.raise_if_lost()
        self._twin.perform(self._twin.router.subscribe(self._client_id, [(each, qos) for each in filters]))
        await asyncio.sleep(0)
        self._inbox.raise_if_lost()

    async def unsubscribe(self, *filters: str) -> None:
        self._inbox.raise_if_lost()
        self._twin.router.unsubscribe(self._client_id, filters)
        await asyncio.sleep(0)
        self._inbox.raise_if_lost()

    def messages(self) -> AsyncIterator[Delivery]:
        return self._inbox.messages()

    def waiting(self) -> Sequence[Delivery]:
        return self._inbox.waiting()

    def ack(self, delivery: Delivery) -> None:
        for packet_id in self._inbox.settle(delivery):
            self._twin.perform(self._twin.router.acknowledge(self._client_id, packet_id))

    def abort(self, why: str) -> None:
        if not self.lost:
            self._twin.drop(self._client_id, why)

    def arrive(self, action: Deliver) -> None:
        """Accept a message from the broker."""
        token = self._inbox.expect_ack(action.packet_id) if action.qos == 1 else None
        message = action.message
        self._inbox.put(Delivery(message.topic, message.payload, action.qos, action.retain, action.duplicate, token))

    def lose(self, message: str, *, taken_over: bool = False) -> None:
        """End the connection and wake the reader."""
        self._inbox.end(ConnectionLost(message, taken_over=taken_over))
