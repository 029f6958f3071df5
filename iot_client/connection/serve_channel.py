"""The channel `serve`: fetches and verifies each served model, and passes it to the device's owner."""

import asyncio
import logging
import random
from collections.abc import Callable

from midge.broker.mqtt.connection import Connection, ConnectionLost
from midge.iot_client.connection.model_fetcher import Fetcher, FetchError
from midge.wire import sharing
from midge.wire.lineage import State, route
from midge.wire.messages import Announcement
from midge.wire.schema import Parameters
from midge.wire.topics import Topics

log = logging.getLogger("iot_client")

OnModel = Callable[[Parameters, int], None]
"""Called with all tensors by name and the version, in a thread."""


class Serving:
    """Keeps the newest served model."""

    def __init__(self, topics: Topics, device: str, on_model: OnModel | None) -> None:
        self.on_model = on_model
        self.fetcher = Fetcher(topics, device, channel="serve")
        self._wanted: Announcement | None = None
        self._news = asyncio.Event()
        self.state: State | None = None
        """The newest served model; None before the first."""
        self.version = 0
        self.lineage, self.generation = b"", 0
        self.features: tuple[str, ...] = ()
        """Names of its inputs."""
        self._muted = False

    @property
    def wanted(self) -> bool:
        """Whether the device uses it."""
        return self.on_model is not None

    @property
    def busy(self) -> bool:
        """Whether there is a newer one to fetch."""
        wanted = self._wanted
        return wanted is not None and not self._muted and (self.state is None or self.state.digest() != wanted.digest)

    def mute(self, muted: bool) -> None:
        """Fetch nothing while the link must not be used."""
        self._muted = muted
        self._news.set()

    def announced(self, announcement: Announcement) -> None:
        """Process the announcement of a served model."""
        self._wanted = announcement
        self._news.set()

    async def follow(self, connection: Connection) -> None:
        """Fetch each release over this connection. A failure is retried with the next release."""
        while True:
            await self._news.wait()
            self._news.clear()
            wanted = self._wanted
            if wanted is None or self._muted or (self.state is not None and self.state.digest() == wanted.digest):
                continue
            way = route(wanted.frames, None, wanted.version)
            if way is None:
                continue
            size, parts = sum(frame.size for frame in way), sum(frame.parts for frame in way)
            spread = sharing.spread(wanted.byte_rate, wanted.devices, size, 2 * parts)
            await asyncio.sleep(spread * random.random())  # noqa: S311 - spreads load
            try:
                self.state = await self.fetcher.fetch(connection, wanted, way, None)
            except FetchError as error:
                log.info("The served model could not be fetched: %s", error)
                continue
            except ConnectionLost:
                return
            self.version, self.lineage, self.features = wanted.version, wanted.lineage, wanted.features
            self.generation = wanted.generation
            if self.on_model is not None:
                await asyncio.to_thread(self.on_model, self.state.parameters(), wanted.version)
