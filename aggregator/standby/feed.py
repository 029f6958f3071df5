"""The aggregator's side of a standby: ships each transaction of its store, and knows how far the standby is.

The standby asks for a session and says what its files are. It gets what differs as one transaction, and from then on
each one of the store. What is lost on the way is sent again; a standby that is too far behind gets a new copy. Without
`--sync` a standby that is slow or away costs the aggregator some memory and never stops it.
"""

import asyncio
import logging
import math
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.standby.files import ALONE
from midge.aggregator.standby.gate import PublicationGate
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
AWAY = 5.0
"""Seconds without a message of the standby until it is away."""
_AGAIN = 3.0
"""Seconds without progress after which what is on the way is sent again."""
_LOOK = 2.0
"""Seconds between two looks for files that changed without a transaction."""
_MOST_PENDING = 10_000
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
        self._federation, self._gate, self._tell = federation, gate, tell
        self._policy, self._topics = federation.config.standby, federation.config.topics
        policy = self._policy
        self._link = link_of(federation.issuer)
        """Seals messages; None without a release key: then no standby can follow."""
        self._session: FeedSession | None = None
        self._asked = 0
        """The session that was asked for last, whose description of files arrives."""
        self._described = bytearray()
        self._parts = 0
        self._heard = self._since = time.monotonic()
        self.expected = policy.follow or policy.sync
        """Whether there is meant to be a standby."""
        self._progress = self._looked = 0.0
        self._beats = 0
        self._again = False
        self._news, self._sent = asyncio.Event(), asyncio.Event()
        self._pending: deque[tuple[int, float, int]] = deque()
        """Transactions that the standby does not have: when each was committed, and the updates before it."""
        self._state = "none"
        self._mark = federation.store.directory / ALONE
        self._alone = self._mark.exists()
        """Whether receipts do not wait, because there is no standby to wait for."""
        gate.closed = policy.sync and not self._alone
        gate.committed, gate.confirmed = 1, 0
        if self._link is not None:
            federation.store.on_commit(self._committed)
            federation.more_alarms = self.alarms

    # ------------------------------------------------------------------- the store

    @property
    def _updates(self) -> int:
        return self._federation.store.decided

    def _committed(self) -> None:
        """Ship a transaction of the store."""
        self._gate.committed += 1
        if len(self._pending) < _MOST_PENDING:
            self._pending.append((self._gate.committed, time.monotonic(), self._updates))
        self._ship(lambda: self._gate.committed)

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
            self._session.close()
            self._session = None
            self._news.set()

    def close(self) -> None:
        """Stop following the store."""
        self._federation.store.on_commit(None)
        if self._session is not None:
            self._session.close()
            self._session = None

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
                self._heard, self.expected = now, True
                if self._session.arrived(arrived):
                    self._progress = now
                self._again |= gap
                self._news.set()
                if transaction > self._gate.confirmed:
                    self._confirm(transaction)

    def _confirm(self, transaction: int) -> None:
        failpoint("copy.confirmed")
        self._gate.confirmed = transaction
        while self._pending and self._pending[0][0] <= transaction:
            self._pending.popleft()
        if not self._pending and transaction < self._gate.committed:
            self._pending.append((self._gate.committed, time.monotonic(), self._updates))
        self._gate.look()

    def _hear_request(
        self, number: int, who: tuple[int, str, float], piece: tuple[int, bool, bytes], now: float
    ) -> None:
        session, (part, last, data) = self._session, piece
        if session is not None:
            ours = session.standby == who[0]
            # Another one follows already; or this is an old request, sent again.
            if (not ours and now - self._heard < AWAY) or (ours and number <= session.number):
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
        self._heard = self._progress = now
        self.expected = True
        self._gate.confirmed = 0  # this may be another host than the one that had it
        self._news.set()

    # ------------------------------------------------------------------- the state

    def _look(self, now: float) -> None:
        if self._session is not None and now - self._looked >= _LOOK:
            self._looked = now
            self._ship(self._extra)
        state = self._judged(now)
        if self._policy.alone_after is not None and state != "following" and not self._alone:
            if now - max(self._heard, self._since) > self._policy.alone_after:
                self._alone = True
                log.warning("The standby is away: receipts no longer wait for it.")
        elif state == "following" and self._alone:
            self._alone = False
            self._mark.unlink(missing_ok=True)
        self._gate.closed = self._policy.sync and not self._alone
        self._gate.look()
        if state != self._state and (state != "none" or self.expected):
            self._state = state
            self._tell("standby", state=state, why=self._words(state))

    def _extra(self) -> int:
        """The number of a transaction that is none of the store's: files have changed, such as an operator's orders."""
        self._gate.committed += 1
        self._pending.append((self._gate.committed, time.monotonic(), self._updates))
        return self._gate.committed

    def _judged(self, now: float) -> str:
        if self._session is None:
            return "none"
        if now - self._heard > AWAY:
            return "away"
        return "following" if self._gate.confirmed else "copying"

    def state(self, now: float) -> StandbyState | None:
        """How far the standby is; None if there can be none."""
        if self._link is None:
            return None
        session, (_, at, updates) = self._session, self._pending[0] if self._pending else (0, now, self._updates)
        state = self._judged(now)
        return StandbyState(
            state=state,
            name="" if session is None else session.name,
            waits=self._policy.sync and not self._alone,
            seconds=max(0.0, now - at),
            number=self._gate.committed + 1 - self._pending[0][0] if self._pending else 0,
            updates=max(0, self._updates - updates),
            why=self._words(state)[:400],
        )

    def _words(self, state: str) -> str:
        """What the operator should do, without figures: an alarm is reported again when its words change."""
        if state == "following" or not self.expected:
            return ""
        if state == "copying":
            return "The standby makes its copy of the store."
        waits = "receipts wait for it" if self._gate.closed else "what is receipted is on this host only"
        return f"No standby follows this store, so {waits}: start it again."

    def alarms(self) -> tuple[str, ...]:
        """What the operator should do about the standby."""
        now = time.monotonic()
        state = self._judged(now)
        why = self._words(state)
        return (why,) if why and state != "copying" and now - self._since > AWAY else ()

    @property
    def hold(self) -> str | None:
        """Why no updates are accepted; None if they are."""
        if not self._gate.closed or self._judged(time.monotonic()) == "following":
            return None
        return "receipts wait for the standby, which is away or makes its copy"

    @property
    def longest_pause(self) -> float:
        """Seconds between two attempts to connect, at most."""
        return _PATIENT if self._session is None else min(_PATIENT, self._session.patience / 2)

    @property
    def standing(self) -> float:
        """Seconds after which this process must look whether the standby has taken over."""
        return _STANDING if self._session is None else min(_STANDING, self._session.patience / 2)

    @property
    def busy(self) -> float:
        """The same for one batch, which may include a long step: without a standby, any length is accepted."""
        return math.inf if self._session is None else self.standing

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
            if session is not None and session.on_the_way and now - self._progress > _AGAIN:
                self._again, self._progress = True, now
            try:
                if session is not None and self._again:
                    self._again = False
                    for piece in list(session.on_the_way):
                        await self._publish(connection, session.number, ["piece", *piece])
                if (piece := await self._next(session)) is not None and session is not None:
                    await self._publish(connection, session.number, ["piece", *piece])
                    continue
                if now >= beat and self.expected:
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
