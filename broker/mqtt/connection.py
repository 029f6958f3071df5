"""The contract of an MQTT connection.

`Connection` is what the shells of the device and of the aggregator use. paho-mqtt implements it, and so does the
in-memory broker; one contract suite tests both.

The rules:

- Only QoS 0 and 1. `publish` at QoS 1 returns with the broker's PUBACK, which says nothing about any subscriber: a
  stock Mosquitto acknowledges messages that it drops.
- A negative acknowledgement is raised, never swallowed. MQTT 3.1.1 has none.
- Incoming messages at QoS 1 are acknowledged by a call of `ack`. An acknowledgement belongs to the connection that
  delivered: after a reconnect it is dropped. Acknowledgements are sent in the order of arrival, whatever the order of
  the calls: one waits for those of all earlier messages.
- A lost connection is raised as `ConnectionLost` from `messages()` and from every waiting `publish` and `subscribe`.
  A connection never reconnects by itself; the shells do, with back-off and jitter.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from midge.broker.mqtt.services import NO_SERVICE, ServiceLimits
from midge.wire.field_checks import Range

Payload = bytes | bytearray | memoryview
QoS = Literal[0, 1]
Keepalive = Annotated[int, Range(ge=1, le=65_535)]


class BrokerError(Exception):
    """An error between us and the broker; the message says what to do."""


class BrokerUnreachable(BrokerError):
    """Nothing serves MQTT at that address, or it does not answer in time."""


class BrokerRefused(BrokerError):
    """The broker refused the connection: bad credentials, not authorised, certificate not trusted."""


class ConnectionLost(BrokerError):
    """An established connection has ended."""

    def __init__(self, message: str, *, taken_over: bool = False, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        """MQTT's reason code if the broker gave one, otherwise 0."""
        self.taken_over = taken_over
        """Whether the broker said that another client connected with the same client id (MQTT 5, 0x8E)."""


class PublishRefused(BrokerError):
    """The broker acknowledged a publish with a reason code of 0x80 or above."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class SubscribeRefused(BrokerError):
    """The broker refused a subscription."""


class PacketTooLarge(BrokerError):
    """A payload does not fit into the broker's largest packet. Raised before anything is sent."""


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the broker publishes if we vanish without DISCONNECT."""

    topic: str
    payload: bytes
    retain: bool = True
    qos: QoS = 1


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a connection, beside the address."""

    client_id: str
    will: Will | None = None
    keepalive: int = 30
    """Keepalive in seconds."""
    receive_maximum: int = 20
    """Most unacknowledged QoS 1 messages to us at once (MQTT 5; brokers of 3.1.1 have a limit of their own)."""
    largest: int | None = None
    """Bytes of the largest payload that is read; of a larger one only the first byte is kept, which is no message."""
    timeout: float = 10.0
    """Seconds to wait for the broker's answer to CONNECT and SUBSCRIBE."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The broker's limits from CONNACK, with MQTT's defaults for missing ones."""

    protocol: Literal[4, 5] = 4
    """4 is MQTT 3.1.1."""
    maximum_packet_size: int | None = None
    receive_maximum: int = 65535
    retain_available: bool = True
    client_id: str = ""
    """The client id in force; a broker may assign another."""
    service: ServiceLimits = NO_SERVICE
    """What is known of a hosted broker beside its CONNACK."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One incoming message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool = False
    token: object = field(default=None, compare=False, repr=False)
    """The connection's own handle for `ack`."""


class Connection(Protocol):
    """An established connection. It ends with the `async with` block that made it."""

    @property
    def limits(self) -> Limits: ...

    async def publish(self, topic: str, payload: Payload, *, qos: QoS = 1, retain: bool = False) -> None:
        """Send one message; at QoS 1 return after its PUBACK.

        Several publishes may be in flight at once; they are sent in the order of the calls.

        Raises:
            ValueError: the topic is empty or has a wildcard.
            PacketTooLarge: it exceeds the broker's limit; nothing was sent.
            PublishRefused: the broker answered with a reason code of 0x80 or above.
            ConnectionLost: the connection ended before the PUBACK.
        """

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        """Subscribe to all filters in one packet; retained messages follow as deliveries.

        Raises:
            ValueError: a filter is invalid.
            SubscribeRefused: the broker refused one of them.
            ConnectionLost: the connection ended.
        """

    async def unsubscribe(self, *filters: str) -> None: ...

    def messages(self) -> AsyncIterator[Delivery]:
        """Deliveries, in order of arrival, while the connection lives. For one reader.

        Raises:
            ConnectionLost: the connection ended; earlier messages are delivered first.
        """

    def waiting(self) -> Sequence[Delivery]:
        """Take the deliveries that have arrived already, without waiting."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a QoS 1 delivery of this connection. Others, and those of QoS 0, are ignored."""

    def abort(self, why: str) -> None:
        """End at once, without what waits to be sent and without DISCONNECT: the broker publishes the will.

        Args:
            why: the message of the `ConnectionLost` that its users get.
        """


class Connector(Protocol):
    """Makes connections to one broker; called again for each reconnect."""

    def __call__(self, options: Options) -> AbstractAsyncContextManager[Connection]: ...
