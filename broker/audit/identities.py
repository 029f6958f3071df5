"""With whose credentials attacks on a broker are tried, and how it is seen whether they went anywhere."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

from midge.broker.audit.probe_topic import PATIENCE
from midge.broker.audit.results import Version
from midge.broker.mqtt.connection import BrokerError, ConnectionLost, Delivery, Options, PublishRefused
from midge.broker.mqtt.endpoint import Endpoint
from midge.broker.mqtt.paho_connection import connect_with
from midge.broker.mqtt.paho_session import PahoSession


@dataclass(frozen=True, slots=True)
class Parties:
    """Who takes part in a trial. None of them may be at work: where the identity is the client id, it is put off."""

    attacker: Endpoint
    name: str
    """Whom the broker takes the attacker for."""
    victim: Endpoint
    """Another device's credentials, or the attacker's where there are no others."""
    victim_name: str
    witness: Endpoint | None = None
    """A user that may read the whole federation; None if none is known."""
    revoked: Endpoint | None = None
    """Credentials that are no longer good."""

    @property
    def alone(self) -> bool:
        """Whether there is one identity only."""
        return self.attacker == self.victim


class Visitor:
    """Makes connections with one version of MQTT, under unused client ids."""

    def __init__(self, version: Version, patience: float) -> None:
        self.version: Version = version
        self._patience = patience
        self.random = secrets.token_hex(4)
        self._number = 0

    def options(self, client_id: str | None = None) -> Options:
        self._number += 1
        return Options(client_id or f"midge-check-{self.random}-{self._number}", timeout=self._patience)

    def visit(self, endpoint: Endpoint, client_id: str | None = None) -> AbstractAsyncContextManager[PahoSession]:
        """A connection of its own.

        Raises (on entering):
            BrokerError: the broker does not let us in.
        """
        return connect_with(self.version, endpoint, self.options(client_id))

    async def let_in(self, endpoint: Endpoint) -> str | None:
        """None where the broker lets us in, else why not."""
        try:
            async with self.visit(endpoint):
                return None
        except BrokerError as error:
            return str(error)


@dataclass(slots=True)
class Watch:
    """A connection that sees what reaches some topics, and knows when it has seen all."""

    session: PahoSession
    marker: str
    """A topic that it may both publish and read."""
    head: bytes = b""
    """What each marker begins with, so that others pass it over."""

    async def seen(self) -> list[Delivery] | None:
        """What has come so far; None if the marker does not come back: then the end is not known."""
        nonce = self.head + secrets.token_bytes(8)
        found: list[Delivery] = []
        try:
            await self.session.publish(self.marker, nonce)
            async with asyncio.timeout(PATIENCE):
                async for delivery in self.session.messages():
                    self.session.ack(delivery)
                    if delivery.topic == self.marker and delivery.payload == nonce:
                        return found
                    found.append(delivery)
        except (TimeoutError, ConnectionLost, PublishRefused):
            pass
        return None


@asynccontextmanager
async def watching(
    visitor: Visitor, endpoint: Endpoint, topics: tuple[str, ...], marker: str
) -> AsyncIterator[Watch | None]:
    """A watch on these topics; None where it cannot be kept. What is retained there has been passed over."""
    async with visitor.visit(endpoint) as session:
        watch = Watch(session, marker)
        with suppress(BrokerError):
            await session.subscribe(*topics, marker)
        yield None if await watch.seen() is None else watch
