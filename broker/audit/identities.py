"""Test identities for attacks on a broker, and connections that observe where messages go."""

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
    """The identities of an audit.

    None may be in use: if the identity is the client id, its user would be disconnected.
    """

    attacker: Endpoint
    name: str
    """The user name of the attacker, as the broker knows it."""
    victim: Endpoint
    """Another device's credentials, or the attacker's if there are no others."""
    victim_name: str
    witness: Endpoint | None = None
    """A user that may read the whole federation; None if none is known."""
    revoked: Endpoint | None = None
    """Revoked credentials."""

    @property
    def alone(self) -> bool:
        """Whether there is only one identity."""
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
        """Open a connection of its own.

        Raises (on entering):
            BrokerError: the broker does not let us in.
        """
        return connect_with(self.version, endpoint, self.options(client_id))

    async def let_in(self, endpoint: Endpoint) -> str | None:
        """None if the broker lets us in, otherwise why not."""
        try:
            async with self.visit(endpoint):
                return None
        except BrokerError as error:
            return str(error)


@dataclass(slots=True)
class Watch:
    """A connection that records messages on some topics, and uses a marker to know that it has received all."""

    session: PahoSession
    marker: str
    """A topic that it may both publish and read."""
    head: bytes = b""
    """Prefix of each marker, which makes other clients ignore it."""

    async def seen(self) -> list[Delivery] | None:
        """Messages received so far; None if the marker does not come back, so that the list may be incomplete."""
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
    """Watch these topics; None if that is not possible. Retained messages have been skipped."""
    async with visitor.visit(endpoint) as session:
        watch = Watch(session, marker)
        with suppress(BrokerError):
            await session.subscribe(*topics, marker)
        yield None if await watch.seen() is None else watch
