"""The topic that probes use: this user may both publish and read it, and no other client uses it.

It is a topic below `check/` of the federation if the user may use that; a device with narrow rights uses its own status
topic, where aggregators ignore a JOINING status whatever its body holds.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from midge.broker.mqtt.connection import BrokerError, BrokerUnreachable, Connection, Connector, Delivery, Options
from midge.wire import frames
from midge.wire.messages import DeviceState, Hello
from midge.wire.topics import Topics

PATIENCE = 3.0
"""Seconds to wait for a small message to come back."""
_SHORT = 1.0
"""Seconds to wait for a broker's messages if no marker can tell that they are complete."""


@dataclass(frozen=True, slots=True)
class Role:
    """The role whose rights are checked: one device's by its name, or the aggregator's."""

    device: str | None = None


class Prober:
    """Opens short connections, since a broker may answer a refused message by disconnecting."""

    def __init__(self, connector: Connector, client_id: str, timeout: float) -> None:
        self._connector = connector
        self._client_id = client_id
        self._timeout = timeout
        self._number = 0

    def of(self, connector: Connector) -> "Prober":
        """A prober that connects as another user."""
        return Prober(connector, f"{self._client_id}-o", self._timeout)

    def options(self) -> Options:
        """Options with an unused client id."""
        self._number += 1
        return Options(f"{self._client_id}-{self._number}", timeout=self._timeout)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Open a connection of its own.

        Raises:
            BrokerError: it cannot be opened, or ends within the block.
        """
        async with self._connector(self.options()) as connection:
            yield connection


@dataclass(frozen=True, slots=True)
class ProbeTopic:
    """A topic from which messages come back."""

    topic: str
    head: bytes = b""
    """Prefix of each payload, which makes other clients ignore it."""
    ours: bool = True
    """Whether no other client uses the topic, so that it may hold retained messages."""

    def payload(self, body: bytes) -> bytes:
        return self.head + body


async def find_probe_topic(prober: Prober, topics: Topics, role: Role | None, random: str) -> ProbeTopic | None:
    """The first topic from which a message comes back; None if this user has none."""
    grounds = [ProbeTopic(f"{topics.prefix}/check/{random}")]
    if role is not None and role.device is not None:
        grounds.append(ProbeTopic(topics.status(role.device), joining(), ours=False))
    for probe_topic in grounds:
        try:
            async with prober.connect() as connection:
                await connection.subscribe(probe_topic.topic)
                if await echo(connection, probe_topic.topic, probe_topic.payload(random.encode()), PATIENCE):
                    return probe_topic
        except BrokerUnreachable:
            raise
        except BrokerError:
            continue
    return None


def joining() -> bytes:
    """A status that aggregators and other devices ignore; a live device of the same name answers it."""
    return frames.encode(Hello(state=DeviceState.JOINING, outbox=0))


async def echo(connection: Connection, topic: str, payload: bytes, patience: float, *, retain: bool = False) -> bool:
    """Publish on a subscribed topic, and return whether the message came back unchanged.

    Raises:
        PublishRefused: the broker sent a negative acknowledgement.
        PacketTooLarge: it exceeds the broker's announced limit.
        ConnectionLost: the connection ended.
    """
    await connection.publish(topic, payload, retain=retain)
    return await came(connection, topic, payload, patience) is not None


async def gather(connection: Connection, probe_topic: ProbeTopic | None) -> list[Delivery]:
    """Messages that the broker has for us: all until a marker of ours arrives, or for a short while if we have none.

    Raises:
        ConnectionLost: the connection ended.
    """
    marker = b""
    if probe_topic is not None:
        marker = probe_topic.payload(secrets.token_bytes(8))
        await connection.subscribe(probe_topic.topic)
        await connection.publish(probe_topic.topic, marker)
    found: list[Delivery] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE if probe_topic else _SHORT):
            async for delivery in connection.messages():
                connection.ack(delivery)
                if probe_topic is not None and delivery.topic == probe_topic.topic and delivery.payload == marker:
                    break
                found.append(delivery)
    return found


async def came(connection: Connection, topic: str, payload: bytes, patience: float) -> Delivery | None:
    """Read until this message arrives; None if it does not in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            async for delivery in connection.messages():
                connection.ack(delivery)
                if delivery.topic == topic and delivery.payload == payload:
                    return delivery
    return None
