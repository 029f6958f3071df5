"""The topic that a broker is probed with: this user may both publish and read it, and no other client uses it.

That is a topic below `check/` of the federation, where the user may; a device whose rights are narrow has its own
status topic, where a JOINING status is passed over by aggregators whatever its body holds.
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
"""Seconds to wait for what a broker has, where no marker tells that it was all."""


@dataclass(frozen=True, slots=True)
class Role:
    """Whose rights are looked at: one device's by its name, or the aggregator's."""

    device: str | None = None


class Prober:
    """Makes short connections of its own, since a broker may answer a refused message by hanging up."""

    def __init__(self, connector: Connector, client_id: str, timeout: float) -> None:
        self._connector = connector
        self._client_id = client_id
        self._timeout = timeout
        self._number = 0

    def of(self, connector: Connector) -> "Prober":
        """Another that reaches the broker as another user."""
        return Prober(connector, f"{self._client_id}-o", self._timeout)

    def options(self) -> Options:
        """With an unused client id."""
        self._number += 1
        return Options(f"{self._client_id}-{self._number}", timeout=self._timeout)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A connection of its own.

        Raises:
            BrokerError: it does not come about, or ends within the block.
        """
        async with self._connector(self.options()) as connection:
            yield connection


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a message comes back from."""

    topic: str
    head: bytes = b""
    """What each payload begins with, so that it is passed over."""
    ours: bool = True
    """Whether no other client uses the topic, so that retained messages may be tried on it."""

    def payload(self, body: bytes) -> bytes:
        return self.head + body


async def find_ground(prober: Prober, topics: Topics, role: Role | None, random: str) -> Ground | None:
    """The first ground from which a message comes back; None where there is none for this user."""
    grounds = [Ground(f"{topics.prefix}/check/{random}")]
    if role is not None and role.device is not None:
        grounds.append(Ground(topics.status(role.device), joining(), ours=False))
    for ground in grounds:
        try:
            async with prober.connect() as connection:
                await connection.subscribe(ground.topic)
                if await echo(connection, ground.topic, ground.payload(random.encode()), PATIENCE):
                    return ground
        except BrokerUnreachable:
            raise
        except BrokerError:
            continue
    return None


def joining() -> bytes:
    """A status that aggregators and other devices pass over; a device of the same name says once more that it lives."""
    return frames.encode(Hello(state=DeviceState.JOINING, outbox=0))


async def echo(connection: Connection, topic: str, payload: bytes, patience: float, *, retain: bool = False) -> bool:
    """Publish where we have subscribed, and whether it came back as it left.

    Raises:
        PublishRefused: the broker refused it and said so.
        PacketTooLarge: it is larger than what the broker says to take.
        ConnectionLost: the connection ended.
    """
    await connection.publish(topic, payload, retain=retain)
    return await came(connection, topic, payload, patience) is not None


async def gather(connection: Connection, ground: Ground | None) -> list[Delivery]:
    """What the broker has for us: all that comes before a marker of ours does, or for a while where none can.

    Raises:
        ConnectionLost: the connection ended.
    """
    marker = b""
    if ground is not None:
        marker = ground.payload(secrets.token_bytes(8))
        await connection.subscribe(ground.topic)
        await connection.publish(ground.topic, marker)
    found: list[Delivery] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE if ground else _SHORT):
            async for delivery in connection.messages():
                connection.ack(delivery)
                if ground is not None and delivery.topic == ground.topic and delivery.payload == marker:
                    break
                found.append(delivery)
    return found


async def came(connection: Connection, topic: str, payload: bytes, patience: float) -> Delivery | None:
    """Read until this message has come; None where it does not in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            async for delivery in connection.messages():
                connection.ack(delivery)
                if delivery.topic == topic and delivery.payload == payload:
                    return delivery
    return None
