"""The referee: publishes, records the device's answers, and sends receipts."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from midge.aggregator.core.sequence_tracker import TrackedOutbox
from midge.aggregator.referee.model import OfferedFrame, RefereedModel
from midge.aggregator.referee.observer import HeardMessage, Observer, encoded_with
from midge.aggregator.referee.rules import Notebook
from midge.broker.mqtt.connection import Connection
from midge.wire import frames, messages
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    Envelope,
    Grant,
    Hello,
    Receipt,
    Settled,
    Update,
    Verdict,
)
from midge.wire.topics import Topics

M = TypeVar("M")
QUIET = 4.0
"""Seconds of silence that show that a device does not do something."""
RESENT = 25.0
"""Seconds in which an unanswered message must be sent again: twice the protocol's patience, and a margin."""


class Silent(Exception):
    """The device does not do what all further trials need."""


class Referee:
    """The referee of one device.

    Args:
        connection: to the broker.
        topics: of a federation that no other aggregator serves.
        device: its name.
        model: the announced model.
        patience: seconds that the device has to fetch, train and send.
        say: called with the name of each trial.
    """

    def __init__(
        self,
        connection: Connection,
        topics: Topics,
        device: str,
        model: RefereedModel,
        *,
        patience: float = 60.0,
        say: Callable[[str], None] = lambda _words: None,
    ) -> None:
        self.connection, self.topics, self.device, self.model = connection, topics, device, model
        self.patience, self.say = patience, say
        self.notebook = Notebook()
        self.observer = Observer(topics, device, self.notebook, model)
        self.heard: list[HeardMessage] = []
        """All messages of the device, in order."""
        self.known = TrackedOutbox()
        self.hi = 0
        self.boot, self.token = secrets.randbits(62), int(time.time() * 1000)
        self.announced: Announcement | None = None
        self._taken: dict[int, float] = {}
        self._news = asyncio.Event()
        self._retained: set[str] = set()

    # --------------------------------------------------------------------- receiving

    async def listen(self) -> None:
        """Record the device's messages while the connection lives."""
        async for delivery in self.connection.messages():
            self.connection.ack(delivery)
            heard = self.observer.hear(delivery.topic, delivery.payload, self.now)
            if heard is not None and not (delivery.retain and delivery.topic != self.topics.status(self.device)):
                self.heard.append(heard)
                self._news.set()

    @property
    def now(self) -> float:
        """The loop's clock, seconds."""
        return asyncio.get_running_loop().time()

    async def expect(
        self, kind: type[M], seconds: float, suits: Callable[[M], bool] = lambda _message: True, *, since: int
    ) -> HeardMessage | None:
        """The first message of a kind after a position in the record; None if none comes."""
        at = since
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    for heard in self.heard[at:]:
                        if isinstance(heard.message, kind) and suits(heard.message):
                            return heard
                    at = len(self.heard)
                    self._news.clear()
                    await self._news.wait()
        return None

    @property
    def place(self) -> int:
        """Number of recorded messages."""
        return len(self.heard)

    async def update(
        self, seconds: float | None = None, *, since: int, of: Callable[[Update], bool]
    ) -> HeardMessage | None:
        """Wait for an update or an offer."""
        return await self.expect(Update, self.patience if seconds is None else seconds, of, since=since)

    # --------------------------------------------------------------------- publishing

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, and record topics that must be cleared at the end."""
        if retain:
            self._retained.add(topic)
        await self.connection.publish(topic, payload, retain=retain)

    async def post_status(
        self, state: AggregatorState = AggregatorState.READY, *, unknown: Mapping[object, object] | None = None
    ) -> None:
        """Publish the aggregator's status."""
        version = self.model.version
        status = AggregatorStatus(
            state=state, boot=self.boot, lineage=self.model.name, version=version, step=version, token=self.token
        )
        payload = encoded_with(status, unknown) if unknown else frames.encode(status)
        await self.publish(self.topics.aggregator, payload, retain=True)

    async def post_frame(
        self,
        frame: OfferedFrame,
        *,
        without: Sequence[int] = (),
        claimed: bytes | None = None,
        instead: int | None = None,
    ) -> None:
        """Publish the chunks of a frame; the body of `instead` gets a flipped first byte."""
        for index, (topic, payload) in enumerate(self.model.cut(frame, claimed=claimed)):
            if index in without:
                continue
            if index == instead:
                payload = payload[:-1] + bytes([payload[-1] ^ 0xFF])  # noqa: PLW2901
            await self.publish(topic, payload, retain=True)

    async def announce(
        self, offered: Sequence[OfferedFrame], *, unknown: Mapping[object, object] | None = None, **fields: Any
    ) -> None:
        """Announce the newest version."""
        announcement = self.model.announcement(offered, **fields)
        self.announced = announcement
        self.observer.chunk = announcement.chunk
        self.observer.digests.setdefault(announcement.version, []).append(announcement.digest)
        payload = messages.encode_announcement(announcement)
        if unknown is not None:
            payload = encoded_with(Envelope(body=encoded_with(announcement, unknown)), unknown)
        await self.publish(self.topics.announcement(), payload, retain=True)

    async def release(self, delta: Any = None, **fields: Any) -> int:
        """Release the next version, with a step and a snapshot."""
        version = self.model.advance(delta)
        offered = [self.model.step(), self.model.snapshot()]
        for frame in offered:
            await self.post_frame(frame)
        await self.announce(offered, **fields)
        return version

    async def trained_from(self, version: int, *, since: int, seconds: float | None = None) -> HeardMessage | None:
        """Wait for the update of a version."""
        return await self.update(seconds, since=since, of=lambda update: update.base == version)

    async def next_update(self, **fields: Any) -> HeardMessage:
        """Release a version and wait for its update.

        Raises:
            Silent: none comes.
        """
        since = self.place
        version = await self.release(**fields)
        heard = await self.trained_from(version, since=since)
        if heard is None:
            raise Silent(f"no update of version {version} came in {self.patience:g} s")
        return heard

    # ---------------------------------------------------------------------- answering

    async def answer(
        self, *settled: Settled, hi: int | None = None, grants: Sequence[Grant] = (), **fields: Any
    ) -> Receipt:
        """Send a receipt."""
        receipt = Receipt(
            outbox=self.observer.outbox or 0,
            hi=self.hi if hi is None else hi,
            settled=settled,
            grants=tuple(grants),
            token=fields.pop("token", self.token),
        )
        unknown = fields.pop("unknown", None)
        payload = encoded_with(receipt, unknown) if unknown else frames.encode(receipt)
        await self.publish(self.topics.receipt(self.device), payload)
        return receipt

    async def accept(self, heard: HeardMessage, *, repeat: bool = False, **fields: Any) -> Receipt:
        """Settle an update."""
        assert isinstance(heard.message, Update)
        seq = heard.message.seq
        if seq == self.hi + 1:
            self.known.hi = seq - 1
            self.known.settle(seq, Verdict.ACCEPTED, heard.message.digest)
            self.hi = seq
        self._taken.setdefault(seq, self.now)
        self.observer.settled = self._taken
        return await self.answer(
            Settled(seq=seq, verdict=Verdict.ACCEPTED, repeat=repeat, weight=1.0, body=heard.message.digest), **fields
        )

    async def say_again(self, hello: Hello) -> None:
        """Answer a status with the known state of its outbox."""
        if hello.outbox == self.observer.outbox:
            self.hi = max(self.hi, hello.first - 1)
        await self.answer(*self.known.verdicts(hello.first))

    def renewed(self, hello: Hello) -> None:
        """Follow the device to another outbox."""
        self.known, self.hi, self._taken = TrackedOutbox(), hello.first - 1, {}
        self.observer.settled = self._taken

    async def clear(self) -> None:
        """Clear all retained messages."""
        for topic in sorted(self._retained):
            await self.connection.publish(topic, b"", retain=True)


async def came_again(
    referee: Referee, heard: HeardMessage, seconds: float, *, since: int | None = None
) -> HeardMessage | None:
    """Wait for the same seq again, after a position or its first time."""
    assert isinstance(heard.message, Update)
    seq = heard.message.seq
    place = referee.heard.index(heard) + 1 if since is None else since
    return await referee.update(seconds, since=place, of=lambda update: update.seq == seq)
