"""One MQTT connection, as the rest of Midge sees it.

`Connection` is what the shells of the device and of the aggregator hold. paho-mqtt is behind it, or the in-memory twin;
one contract suite holds both to the same behaviour.

The rules:

- Only QoS 0 and 1. `publish` at QoS 1 returns when the broker's PUBACK has come, which says nothing about any
  subscriber: a stock Mosquitto acknowledges messages that it drops.
- A negative acknowledgement is raised, never swallowed. Where the protocol has none (3.1.1), there is none to raise.
- Incoming messages at QoS 1 are acknowledged by `ack`, by whoever took them in. An acknowledgement belongs to the
  connection that delivered: after a reconnect it is dropped.
- A lost connection is raised as `ConnectionLost` from `messages()` and from every `publish` and `subscribe` that
  waits. A connection never reconnects by itself; the shells do, with back-off and jitter.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

Payload = bytes | bytearray | memoryview
QoS = Literal[0, 1]


class BrokerError(Exception):
    """Something between us and the broker went wrong; the message says what to do."""


class BrokerUnreachable(BrokerError):
    """Nothing serves MQTT at that address, or it does not answer in time."""


class BrokerRefused(BrokerError):
    """The broker answered and said no: bad credentials, not authorised, certificate not trusted."""


class ConnectionLost(BrokerError):
    """A connection that stood is gone."""

    def __init__(self, message: str, *, taken_over: bool = False, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        """MQTT's, where the broker gave one, else 0."""
        self.taken_over = taken_over
        """True where the broker said that another client came with the same client id (MQTT 5, 0x8E)."""


class PublishRefused(BrokerError):
    """The broker acknowledged a publish with a reason code of 0x80 or above."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class SubscribeRefused(BrokerError):
    """The broker refused a subscription."""


class PacketTooLarge(BrokerError):
    """A payload does not fit into the largest packet that the broker takes. Raised before anything is sent."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us when we vanish without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True
    qos: QoS = 1


@dataclass(frozen=True, slots=True)
class Options:
    """How to connect, beside where to."""

    client_id: str
    will: Will | None = None
    keepalive: int = 30
    """Seconds between signs of life, at most."""
    receive_maximum: int = 20
    """How many unacknowledged QoS 1 messages we take at once (MQTT 5; 3.1.1 brokers have a limit of their own)."""
    largest: int | None = None
    """Bytes of the largest payload that is read; of a larger one the first byte is kept, which is no message."""
    timeout: float = 10.0
    """Seconds to wait for the broker's answer to CONNECT and SUBSCRIBE."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker said of itself in CONNACK, with MQTT's defaults where it said nothing."""

    protocol: Literal[4, 5] = 4
    """4 is MQTT 3.1.1."""
    maximum_packet_size: int | None = None
    receive_maximum: int = 65535
    retain_available: bool = True
    client_id: str = ""
    """The client id in force; a broker may assign another."""


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

        Several publishes may be under way at once; they leave in the order of the calls.

        Raises:
            ValueError: the topic is none; it is empty or has a wildcard.
            PacketTooLarge: it does not fit the broker's limit; nothing was sent.
            PublishRefused: the broker answered with a reason code of 0x80 or above.
            ConnectionLost: the connection ended before the PUBACK.
        """

    async def subscribe(self, *filters: str, qos: QoS = 1) -> None:
        """Subscribe to all filters in one packet; retained messages follow as deliveries.

        Raises:
            ValueError: one of the filters is none.
            SubscribeRefused: the broker refused one of them.
            ConnectionLost: the connection ended.
        """

    async def unsubscribe(self, *filters: str) -> None: ...

    def messages(self) -> AsyncIterator[Delivery]:
        """Deliveries, in order of arrival, for as long as the connection lives. For one reader.

        Raises:
            ConnectionLost: the connection ended; what had arrived before is delivered first.
        """

    def waiting(self) -> Sequence[Delivery]:
        """Take what has arrived already and waits in `messages()`, without waiting for more."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a QoS 1 delivery of this connection. One of another connection, or of QoS 0, is ignored."""


class Connector(Protocol):
    """Makes connections: what a shell is given instead of an address. Called again for each reconnect."""

    def __call__(self, options: Options) -> AbstractAsyncContextManager[Connection]: ...
