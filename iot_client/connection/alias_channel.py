"""Follows the names of registered versions: fetches what they stand for, uses it, and reports how it does here."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from midge.broker.mqtt.connection import Connection, ConnectionLost
from midge.iot_client.connection.model_fetcher import Fetcher, FetchError
from midge.iot_client.state.alias_models import AliasModel, AliasModels
from midge.wire import sharing
from midge.wire.lineage import State
from midge.wire.messages import ModelAlias
from midge.wire.topics import ALIASES, Alias, Topics

log = logging.getLogger("iot_client")

EVERY = 3600.0
"""Seconds after which a device measures the versions in force again: a report may be lost, and its data changes."""

Measure = Callable[[AliasModel], Awaitable[bool]]
"""Measures a version on the device's own rows, and publishes the result; whether it could."""


class AliasChannel:
    """The names of one device's federation.

    Args:
        topics: the federation's.
        device: its name.
        kept: keeps the models.
        use: called, in a thread, once another model is to be used; with None, the newest as without names.
    """

    def __init__(
        self, topics: Topics, device: str, kept: AliasModels, use: Callable[[AliasModel | None], None]
    ) -> None:
        self._kept, self._use = kept, use
        self._topics = {topics.alias(name): name for name in ALIASES}
        self.fetcher = Fetcher(topics, device, channel="registered")
        self.wanted = False
        """Whether the device predicts."""
        self.measure: Measure | None = None
        """None measures nothing."""
        self._told: dict[Alias, ModelAlias] = {}
        """What each name stands for now."""
        self._news, self._chosen = asyncio.Event(), asyncio.Event()
        self._muted = self._at_work = False
        self._used: tuple[bytes, int, int] | None = None
        """Digest, version and generation of what is used."""
        self._boot: int | None = None
        """Of the aggregator."""
        self._measured: dict[int, float] = {}
        """When each version was measured last."""

    @property
    def topics(self) -> tuple[str, ...]:
        """To be subscribed to."""
        return tuple(self._topics)

    def restore(self) -> None:
        """Use what was kept before a restart."""
        self._kept.restore()
        self._choose()

    def named(self, topic: str) -> Alias | None:
        """The name whose topic this is."""
        return self._topics.get(topic)

    @property
    def busy(self) -> bool:
        """Whether there is something to fetch, or a measurement is being made: no time to sleep."""
        return self._at_work or (not self._muted and any(self._missing(alias) for alias in self._told.values()))

    def mute(self, muted: bool) -> None:
        """Fetch nothing while the link must not be used."""
        self._muted = muted
        self._news.set()

    def told(self, alias: ModelAlias) -> None:
        """Process a name that was verified."""
        if not self._kept.old(alias):
            self._told[alias.name] = alias
            self._news.set()

    def announced(self, lineage: bytes) -> None:
        """Follow the lineage: names of another one count no more."""
        if lineage != self._kept.lineage:
            self._kept.lineage = lineage
            self._news.set()

    def seen(self, boot: int) -> None:
        """Follow the aggregator: one that was restarted may not have heard what was measured."""
        if boot != self._boot:
            self._boot = boot
            self._measured.clear()
            self._chosen.set()

    def _missing(self, alias: ModelAlias) -> bool:
        """Whether a version that this device is to use is not here."""
        kept = self._kept.kept(alias.name)
        here = kept is not None and kept.alias.order == alias.order and kept.alias.version == alias.version
        ours = self._kept.lineage in {None, alias.lineage} and (alias.name == "champion" or self._kept.tries(alias))
        return bool(alias.version) and ours and not here

    async def follow(self, connection: Connection) -> None:
        """Follow the names over this connection."""
        measuring = asyncio.create_task(self._measuring())
        self._news.set()
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                try:
                    for alias in list(self._told.values()):
                        await self._take(connection, alias)
                except FetchError as error:
                    log.info("A registered version could not be fetched: %s", error)
                except ConnectionLost:
                    return
                await asyncio.to_thread(self._choose)
                self._chosen.set()
        finally:
            measuring.cancel()

    async def _measuring(self) -> None:
        """Measure what is in force, now and then: it may wait for a training, which the names must not."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._chosen.wait()
            self._chosen.clear()
            await self._measure()

    async def _take(self, connection: Connection, alias: ModelAlias) -> None:
        """Fetch what a name stands for, if that is needed, and keep it."""
        kept = self._kept.kept(alias.name)
        if kept is not None and kept.alias.order == alias.order and kept.alias.version == alias.version:
            return
        state = None
        if self._missing(alias):
            if self._muted:
                return
            state = self._kept.held(alias.digest) or await self._fetch(connection, alias)
        await asyncio.to_thread(self._kept.keep, alias if state is not None else _none(alias), state)

    async def _fetch(self, connection: Connection, alias: ModelAlias) -> State:
        asked = alias.announcement()
        spread = sharing.spread(asked.byte_rate, asked.devices, alias.size, 2 * alias.parts)
        await asyncio.sleep(spread * random.random())  # noqa: S311 - spreads load
        return await self.fetcher.fetch(connection, asked, asked.frames, None)

    def _choose(self) -> None:
        """Use what is in force now."""
        chosen = next(iter(self._kept.in_force()), None)
        used = None if chosen is None else (chosen.alias.digest, chosen.alias.version, chosen.alias.generation)
        if used != self._used:
            self._used = used
            self._use(chosen)

    async def _measure(self) -> None:
        found, now = self._kept.in_force(), time.monotonic()
        due = any(now >= self._measured.get(each.alias.version, -math.inf) + EVERY for each in found)
        if self.measure is None or not due:
            return
        # All of them, one after the other: the aggregator compares the results of one device with each other.
        self._at_work = True
        try:
            done = [await self.measure(each) for each in found]
        finally:
            self._at_work = False
        self._measured = {each.alias.version: now for each, good in zip(found, done, strict=True) if good}


def _none(alias: ModelAlias) -> ModelAlias:
    """The same decision, of which this device has no version: it is withdrawn, or for others."""
    return alias.model_copy(update={"version": 0, "digest": b""})
