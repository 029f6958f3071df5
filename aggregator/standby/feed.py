"""The aggregator's side of a standby: sends it each transaction of the store (`aggregator.standby.progress`).

The standby asks for a session and says what its files are. It gets what differs as one transaction, and from then on
each one of the store. What is lost on the way is sent again; a standby that is too far behind gets a new copy. Without
`--sync` a standby that is slow or away costs the aggregator some memory and never stops it.
"""

import asyncio
import logging
import sqlite3
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.standby.files import ALONE
from midge.aggregator.standby.gate import PublicationGate
from midge.aggregator.standby.progress import StandbyProgress
from midge.aggregator.standby.session import FeedSession
from midge.broker.mqtt.connection import Connection, ConnectionLost, Delivery, PublishRefused, SubscribeRefused
from midge.broker.mqtt.waiting import happened
from midge.storage.changes import TooMuchChanged
from midge.storage.failpoints import failpoint
from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.standby import OVERHEAD, StandbyLink, StandbyState

log = logging.getLogger("aggregator")

BEAT = 1.0
"""Seconds between two heartbeats."""
_AGAIN = 3.0
"""Seconds without progress after which what is on the way is sent again."""
_LOOK = 2.0
"""Seconds between two looks for files that changed without a transaction."""
_MOST_MANIFEST = 64 * 2**20
"""Bytes of the description of a standby's files."""
_PATIENT = 30.0
"""Longest pause between two attempts to connect, without a standby; with one, half of the time until it takes over."""
_STANDING = 15.0
"""Seconds after which this process must have been suspended; with a standby, half of the time until it takes over."""


class StandbyFeed:
    """One start of an aggregator, and the standby that follows it.

    Args:
        federation: the open runtime.
        gate: holds what is published, with `--sync`.
        tell: takes events.
    """

    def __init__(self, federation: FederationRuntime, gate: PublicationGate, tell: Callable[..., None]) -> None:
        self._federation, self._gate, self._topics = federation, gate, federation.config.topics
        self._link = link_of(federation.issuer)
        """Seals messages; None without a release key: then no standby can follow."""
        mark = federation.store.directory / ALONE
        self.progress = StandbyProgress(federation.config.standby, gate, mark, lambda: federation.store.decided, tell)
        self._session: FeedSession | None = None
        self._asked = 0
        """The session that was asked for last, whose description of files arrives."""
        self._described = bytearray()
        self._parts = 0
        self._advanced = self._looked = 0.0
        self._beats = 0
        self._again = False
        self._news, self._sent = asyncio.Event(), asyncio.Event()
        if self._link is not None:
            federation.store.on_commit(self._committed)
            federation.more_alarms.append(self.progress.alarms)

    # ------------------------------------------------------------------- the store

    def _committed(self) -> None:
        """Ship a transaction of the store."""
        transaction = self.progress.advance()
        self._ship(lambda: transaction)

    def _ship(self, transaction: Callable[[], int]) -> None:
        session = self._session
        if session is None:
            return
        try:
            session.look(transaction)
        except (TooMuchChanged, OSError) as error:
            self._end(f"the changes cannot be read ({error})")
            return
        if session.overrun:
            self._end("it is too far behind")
            return
        self._news.set()
        failpoint("copy.sending")

    def _end(self, why: str) -> None:
        if self._session is not None:
            log.warning("The standby %s needs a new copy: %s.", self._session.name, why)
            self._forget()
            self._news.set()

    def close(self) -> None:
        """Stop following the store."""
        self._federation.store.on_commit(None)
        if self._session is not None:
            self._forget()

    def _forget(self) -> None:
        assert self._session is not None
        self._session.close()
        self._session = None
        self.progress.end()

    # ------------------------------------------------------------------- the standby

    def sift(self, connection: Connection, batch: list[Delivery], now: float) -> list[Delivery]:
        """Process what the standby says; return the other messages."""
        if self._link is None:
            return batch
        heard = [delivery for delivery in batch if delivery.topic == self._topics.follow]
        for delivery in heard:
            connection.ack(delivery)
            with suppress(WireError, TypeError, ValueError):
                self._hear(*self._link.open("follow", delivery.payload), now)
        self._look(now)
        return [delivery for delivery in batch if delivery.topic != self._topics.follow] if heard else batch

    def _hear(self, number: int, content: tuple[Any, ...], now: float) -> None:
        match content:
            case ("follow", int(standby), str(name), float(patience), int(part), bool(last), bytes(data)):
                self._hear_request(number, (standby, name[:64], patience), (part, last, data), now)
            case ("have", int(arrived), int(transaction), bool(gap)) if (
                self._session and number == self._session.number
            ):
                self.progress.heard(now)
                if self._session.arrived(arrived):
                    self._advanced = now
                self._again |= gap
                self._news.set()
                self.progress.confirm(transaction)

    def _hear_request(
        self, number: int, who: tuple[int, str, float], piece: tuple[int, bool, bytes], now: float
    ) -> None:
        session, (part, last, data) = self._session, piece
        if session is not None:
            ours = session.standby == who[0]
            # Another one follows already; or this is an old request, sent again.
            if (not ours and not self.progress.away(now)) or (ours and number <= session.number):
                return
        if part == 0:
            self._asked, self._parts, self._described = number, 0, bytearray()
        if number != self._asked or part != self._parts or len(self._described) > _MOST_MANIFEST:
            return
        self._parts += 1
        self._described += data
        if last:
            described = frames.unpack(zlib.decompress(self._described), pairs=dict)
            self._described = bytearray()
            self._begin(number, who, described, now)

    def _begin(self, number: int, who: tuple[int, str, float], known: dict[str, Any], now: float) -> None:
        if self._session is not None:
            self._session.close()
        most = max(1024, self._federation.shelf.chunk - OVERHEAD)
        self._session = FeedSession(number, *who, self._federation.store.directory, most)
        self._session.begin(self._gate.committed, known)
        self._advanced = now
        self.progress.begin(self._session.name, now)
        self._news.set()

    def _look(self, now: float) -> None:
        if self._session is not None and now - self._looked >= _LOOK:
            self._looked = now
            # A transaction that is none of the store's: files have changed, such as an operator's orders.
            self._ship(self.progress.advance)
        self.progress.look(now)

    def state(self, now: float) -> StandbyState | None:
        """How far the standby is; None if there can be none."""
        return None if self._link is None else self.progress.state(now)

    @property
    def longest_pause(self) -> float:
        """Seconds between two attempts to connect, at most."""
        return _PATIENT if self._session is None else min(_PATIENT, self._session.patience / 2)

    @property
    def standing(self) -> float:
        """Seconds after which this process must look whether the standby has taken over."""
        return _STANDING if self._session is None else min(_STANDING, self._session.patience / 2)

    @property
    def followed(self) -> bool:
        """Whether a standby follows, which may take over."""
        return self._session is not None

    # ------------------------------------------------------------------- sending

    async def send(self, connection: Connection) -> None:
        """Hear standbys; send what one does not have, and heartbeats, while the connection lives.

        Raises:
            ConnectionLost: it ended.
        """
        if self._link is None:
            return
        try:
            await connection.subscribe(self._topics.follow)
        except SubscribeRefused as error:
            log.warning("%s No standby can follow.", error)
            return
        self._again, beat = True, 0.0
        while True:
            self._news.clear()
            session, now = self._session, time.monotonic()
            if session is not None and session.on_the_way and now - self._advanced > _AGAIN:
                self._again, self._advanced = True, now
            try:
                if session is not None and self._again:
                    self._again = False
                    for piece in list(session.on_the_way):
                        await self._publish(connection, session.number, ["piece", *piece])
                if (piece := await self._next(session)) is not None and session is not None:
                    await self._publish(connection, session.number, ["piece", *piece])
                    continue
                if now >= beat and self.progress.expected:
                    beat = now + BEAT
                    number = 0 if session is None else session.number
                    self._beats += 1
                    content = ["beat", self._federation.issuer.token, self._beats, self._gate.committed]
                    await self._publish(connection, number, content)
            except PublishRefused as error:
                log.warning("%s No standby can follow.", error)
                return
            self._sent.set()
            await happened(self._news, BEAT)

    async def _next(self, session: FeedSession | None) -> Any:
        if session is None:
            return None
        try:
            return await session.next()
        except (sqlite3.Error, OSError, WireError) as error:
            if session is self._session:
                self._end(f"the copy cannot be made ({error})")
            return None

    async def _publish(self, connection: Connection, session: int, content: list[Any]) -> None:
        assert self._link is not None
        try:
            async with asyncio.timeout(self.standing):
                await connection.publish(self._topics.copy, self._link.seal(session, "copy", content))
        except TimeoutError as error:  # by the end of its keepalive the standby would have taken over long ago
            raise ConnectionLost("The broker does not answer.") from error

    async def drained(self) -> None:
        """Wait until everything is on its way to the standby, if there is one."""
        while self._session is not None and self._session.waits:
            self._sent.clear()
            await self._sent.wait()


def link_of(issuer: AnnouncementSigner) -> StandbyLink | None:
    """What seals messages between the holders of a release key; None for others, and for a site's gateway."""
    key = issuer.newest_key
    return None if key is None or issuer.certificate else StandbyLink(key, issuer.federation)
