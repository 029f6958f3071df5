"""The standby: a copy of the store of the aggregator that serves, until that one is silent.

Silence counts only while the broker answers this process, and only for an aggregator that it has followed up to its
newest transaction. So a standby whose own network fails takes nothing over, nor does one with an old copy: then an
operator decides (`midge store promote`).
"""

import asyncio
import logging
import secrets
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.standby.files import (
    ALL,
    BESIDE,
    PROMOTE,
    fold_log,
    follows,
    has_copy,
    mark_following,
    take_over,
)
from midge.aggregator.store.consistency import DATABASE
from midge.aggregator.store.errors import StoreError, StoreInUse
from midge.broker.mqtt.connection import BrokerError, Connection, Delivery, Options
from midge.broker.mqtt.waiting import batches, happened
from midge.storage.changes import manifest
from midge.storage.database import Database, DiskFull, InUse, Unwritable
from midge.storage.failpoints import failpoint
from midge.storage.redo_log import LOG, RedoLog
from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.standby import StandbyLink

log = logging.getLogger("aggregator")

_SAY = 1.0
"""Seconds between two messages to the aggregator."""
_REQUEST = 3.0
"""Seconds until a session is asked for again."""
_GAP = 0.5
"""Seconds between two reports that something is missing."""
_PIECE = 48 * 1024
"""Bytes of a piece of the description of our files."""
_LONGEST_PAUSE = 5.0
_BEHIND = 60.0
"""Seconds by which the copy may be behind when the aggregator falls silent, for this to take over by itself."""


class Follower:
    """One stretch of following, from taking the store's lock to giving it back.

    Args:
        config: of the federation.
        link: seals messages.
        tell: takes events.
    """

    def __init__(self, config: AggregatorConfig, link: StandbyLink, tell: Callable[..., None]) -> None:
        self._config, self._link, self._tell = config, link, tell
        self._topics, self._directory = config.topics, config.directory
        self._identity = secrets.randbits(62)
        self._stop = asyncio.Event()
        self._session = 0
        self._expected = 1
        """The number of the next piece."""
        self._transaction = self._durable = 0
        """The newest whole transaction, and the newest on the disk."""
        self._accepted = False
        """Whether the aggregator knows our session."""
        self._heard = self._silent_since = float("-inf")
        """When the aggregator was heard, and since when it could have been and was not."""
        self._in_step_at = float("-inf")
        """When this had everything that was committed."""
        self._beat, self._committed, self._beat_at = (0, 0), 0, 0.0
        """The newest heartbeat: its order, the newest transaction then, and when it came."""
        self._described = b""
        """Our files, as they are described in a request."""
        self._told_at = self._asked_at = self._gap_at = float("-inf")
        self._redo: RedoLog
        self._complete = False
        """Whether there is a whole copy."""
        self._state = ""

    def stop(self) -> None:
        """End `follow`. To be called in its loop."""
        self._stop.set()

    async def follow(self) -> bool:
        """Follow; return whether to serve now: otherwise this was stopped.

        Raises:
            StoreError: the store's directory cannot be used.
            BrokerError: the broker refused the first connection.
        """
        lock = Database(self._directory / DATABASE, lock=self._directory / "lock")
        try:
            lock.lock()
            return await self._follow()
        except InUse as error:
            raise StoreInUse(f"The store {self._directory} is in use by another aggregator.") from error
        except (Unwritable, DiskFull, OSError, sqlite3.Error) as error:
            raise StoreError(f"The copy in {self._directory} cannot be written ({error}): see to its disk.") from error
        finally:
            lock.close()

    async def _follow(self) -> bool:
        if not follows(self._directory):
            fold_log(self._directory)
            mark_following(self._directory, complete=has_copy(self._directory))
        self._complete = has_copy(self._directory)
        self._redo = RedoLog(self._directory, ALL)
        try:
            if not await self._reconnecting():
                return False
            self._redo.restart()
            self._redo.settle()
        finally:
            self._redo.close()
        failpoint("standby.promoted")
        (self._directory / LOG).unlink(missing_ok=True)
        take_over(self._directory)
        return True

    async def _reconnecting(self) -> bool:
        pause = 0.5
        while not self._stop.is_set():
            try:
                options = Options(f"midge-{self._topics.federation}-standby-{self._identity:016x}", keepalive=10)
                async with self._config.connector(options) as connection:
                    pause = 0.5
                    await connection.subscribe(self._topics.copy)
                    self._silent_since = time.monotonic()
                    if await self._read(connection):
                        return True
            except BrokerError as error:
                log.info("%s Trying again in about %.0f s.", error, pause)
                self._tell("disconnected", why=str(error), refused=False)
                await happened(self._stop, pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return False

    async def _read(self, connection: Connection) -> bool:
        """Follow on one connection; return whether to serve now."""
        async with batches(connection, self._stop) as batch:
            while not self._stop.is_set():
                if deliveries := await batch(_SAY):
                    await self._take(connection, deliveries)
                if await self._look(connection):
                    return True
        return False

    # ------------------------------------------------------------------- from the aggregator

    async def _take(self, connection: Connection, batch: list[Delivery]) -> None:
        now, gap = time.monotonic(), False
        for delivery in batch:
            connection.ack(delivery)
            with suppress(WireError, TypeError, ValueError):
                gap |= self._hear(*self._link.open("copy", delivery.payload), now)
        if self._transaction > self._durable:
            self._redo.sync()
            self._durable = self._transaction
            await self._say(connection)
            self._redo.apply()
            if not self._complete:
                mark_following(self._directory, complete=True)
                self._complete = True
        elif gap and now - self._gap_at >= _GAP:
            self._gap_at = now
            await self._say(connection, gap=True)
        if self._accepted and self._committed and self._durable >= self._committed:
            self._in_step_at = self._beat_at
            self._report("following")

    def _hear(self, session: int, content: tuple[Any, ...], now: float) -> bool:
        """Process a message; return whether something before it is missing."""
        match content:
            case ("beat", int(token), int(number), int(committed)) if (token, number) > self._beat:
                self._beat = token, number
                self._heard = self._silent_since = now
                self._accepted = self._session != 0 and session == self._session
                if self._accepted:
                    self._committed, self._beat_at = committed, now
            case ("piece", int(number), int(transaction), bool(last), bytes(data)) if session == self._session:
                self._heard = self._silent_since = now
                self._accepted = True
                if number > self._expected:
                    return True
                if number == self._expected:
                    self._expected += 1
                    self._described = b""
                    self._redo.append(data, last=last)
                    if last:
                        self._transaction = transaction
        return False

    # ------------------------------------------------------------------- to the aggregator

    async def _look(self, connection: Connection) -> bool:
        now = time.monotonic()
        if (self._directory / PROMOTE).exists():
            log.warning("An operator has promoted this standby.")
            return True
        if not self._accepted and now - self._asked_at >= _REQUEST:
            await self._request(connection)
        elif now - self._told_at >= _SAY:
            await self._say(connection)
        silent = time.monotonic() - self._silent_since
        if silent < self._config.standby.takeover_after:
            return False
        if not self._heard - self._in_step_at <= _BEHIND:  # not a number, if it was never heard
            self._report("waiting")
            return False
        # The broker acknowledges a message of ours, so it is not our network that fails.
        await self._say(connection)
        log.warning("Nothing was heard of the aggregator for %.0f s: this standby takes over.", silent)
        self._report("takes over")
        return True

    async def _say(self, connection: Connection, *, gap: bool = False) -> None:
        self._told_at = time.monotonic()
        if self._session:
            content = ["have", self._expected - 1, self._durable, gap]
            await connection.publish(self._topics.follow, self._link.seal(self._session, "follow", content))

    async def _request(self, connection: Connection) -> None:
        """Ask for a session, from the files as they are."""
        self._redo.restart()
        if not self._described:
            self._redo.settle()
            known = await asyncio.to_thread(manifest, self._directory, DATABASE, BESIDE)
            self._described = zlib.compress(frames.pack({name: list(each) for name, each in known.items()}))
        described = self._described
        self._session = max(self._session + 1, int(1000 * time.time()))
        self._expected, self._transaction, self._durable, self._committed = 1, 0, 0, 0
        who = [self._identity, socket.gethostname(), self._config.standby.takeover_after]
        starts = range(0, len(described), _PIECE)
        for part, start in enumerate(starts):
            content = ["follow", *who, part, part == len(starts) - 1, described[start : start + _PIECE]]
            await connection.publish(self._topics.follow, self._link.seal(self._session, "follow", content))
        self._asked_at = time.monotonic()

    def _report(self, state: str) -> None:
        if state == self._state:
            return
        self._state = state
        why = ""
        if state == "waiting":
            why = (
                "No aggregator is heard, and this copy may lack what it accepted: start it again, or accept that: "
                f"midge store promote {self._directory}"
            )
            log.warning("%s", why)
        self._tell("standby", state=state, why=why)
