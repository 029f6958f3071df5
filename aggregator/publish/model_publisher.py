"""Publishing of the model: frames in chunks, the announcement, and removal of old frames.

The offered frames follow from the version alone: steps, merged steps (`aggregator/model/step_merging.py`), two
snapshots. From any of the last 32 versions a device finds a cheap way to the newest, and from nothing another.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from midge.aggregator.core import events as ev
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine
from midge.aggregator.model.model import REGISTERED, SERVED, Frame
from midge.aggregator.model.step_merging import listed
from midge.aggregator.publish import part_sizes
from midge.aggregator.publish.aliases import alias_of
from midge.aggregator.publish.part_sizes import PART, PartSizes
from midge.aggregator.publish.publish_queue import Post
from midge.aggregator.store.store import Published
from midge.aggregator.token_bucket import TokenBucket
from midge.storage.failpoints import failpoint
from midge.wire import chunks, frames, lineage, messages
from midge.wire.messages import Announcement, FrameInfo, ModelAlias, Part
from midge.wire.topics import ALIASES, Frames, Topics

log = logging.getLogger("aggregator")

SNAPSHOTS = 2
"""Number of snapshots on offer, the newest ones."""
GRACE = 10.0
"""Seconds that a frame stays at the broker after it was dropped from the list."""
_FRESH = 3.0
"""Seconds for which a published chunk is not published again: it is in transit, and devices wait longer before they
request it."""
_REMEMBERED = 10_000
"""Number of recorded chunks above which old records are removed."""
_CACHED = 2**25
"""Bytes of frames cached for requests of chunks, or one frame if it is larger."""


class ModelPublisher:
    """Publishes the engine's frames."""

    def __init__(
        self,
        engine: Engine,
        core: AggregatorCore,
        topics: Topics,
        *,
        chunk: int,
        stepping_back: bool,
        encode: Callable[[Announcement | ModelAlias], bytes] = messages.encode_announcement,
    ) -> None:
        self._engine, self.core, self._topics = engine, core, topics
        self._encode = encode
        self.chunk = chunk
        """Most bytes of a chunk's body: ours, or less if the broker takes less."""
        self.sizes = PartSizes()
        """Smaller part sizes for online devices with small limits."""
        self._stepping_back = stepping_back
        self._on_offer: list[Published] | None = None
        """The store's list of frames at the broker, read once: a release needs it several times."""
        self._leaving: dict[tuple[int, int], float] = {}
        """When each frame that was dropped from the list is removed from the broker."""
        self._published_at: dict[tuple[int, int, int], float] = {}
        """When each chunk, by version, span and index, was last published, for recent ones."""
        self._cached: OrderedDict[tuple[int, int], tuple[bytes, bytes]] = OrderedDict()
        """Requested frames, with their checksums."""
        rate = core.strategy.byte_rate
        self._republish_rate = TokenBucket.full(rate, max(rate, PART), 0.0) if rate else None
        """Limits republished chunks to the federation's byte rate."""
        self._now = 0.0

    def add(self, new: Sequence[Frame]) -> None:
        """Store new frames before they are published, so that a crash leaves none unknown."""
        self._engine.store.add_frames((frame, self._count(len(frame.data))) for frame in new)
        self._on_offer = None

    def _count(self, size: int) -> int:
        """Number of chunks of a frame."""
        return part_sizes.count(size, min(self.chunk, PART), self.sizes.limit)

    def part_bytes(self, version: int, span: int) -> int:
        """Bytes of a part of a frame; 0 if there is none."""
        size = next((frame.size for frame in self._published() if (frame.version, frame.span) == (version, span)), 0)
        return chunks.part_size(size, self._count(size)) if size else 0

    def recut(self) -> Iterator[Post]:
        """Publish offered frames whose part size changed with `sizes`, and the announcements with the new sizes."""
        listed = self._listed()
        for known in self._published():
            name, parts = (known.version, known.span), self._count(known.size)
            earlier = part_sizes.count(known.size, min(self.chunk, PART), self.sizes.earlier)
            if parts == earlier or (data := self._engine.store.frame(*name)) is None:
                continue
            # Stored before they are published, or some topics would never be cleared.
            self.add([frame := Frame(*name, data)])
            if name in listed:
                yield from self._parts(frame)
                for index in range(parts, max(known.parts, earlier)):
                    yield Post(self._topic(*name, index), b"")
        self._on_offer = None
        yield self.announcement()
        yield from (post for post in self._served() if post.topic == self._topics.announcement("serve"))
        yield from self._aliases()

    def _published(self) -> list[Published]:
        if self._on_offer is None:
            self._on_offer = [frame for frame in self._engine.store.published() if frame.offered]
        return self._on_offer

    def release(self, new: Sequence[Frame], now: float) -> Iterator[Post]:
        """The posts of a release: its frames, the announcement, and the removal of expired frames."""
        self._now = now
        if len(self._published_at) > _REMEMBERED:
            self._published_at = {chunk: at for chunk, at in self._published_at.items() if now < at + _FRESH}
        if new:
            quiet = self._engine.model.follow_movement(self.core.versions_a_turn)
            self.core.handle(ev.MovementFollowed(quiet), now)
        for frame in new:
            yield from self._parts(frame)
        yield self.announcement()
        yield from self._clear(now)
        self._engine.model.forget_steps(self.core.oldest_base if self._stepping_back else self._engine.model.version)

    def serve(self, now: float) -> Iterator[Post]:
        """The posts of a served release: its snapshot, its announcement, and the removal of the one before."""
        yield from self._served()
        yield from self._clear(now)

    def reissued(self, channel: Frames) -> Iterator[Post]:
        """A channel's announcement, or the names of registered versions, again, with a new date and signature."""
        if channel == "train":
            yield self.announcement()
        elif channel == "registered":
            yield from self._aliases()
        else:
            yield from (post for post in self._served() if post.topic == self._topics.announcement("serve"))

    def _served(self) -> Iterator[Post]:
        version = self.core.served
        data = self._engine.store.frame(version, SERVED) if version else None
        if data is not None:
            yield from self._parts(Frame(version, SERVED, data))
            yield self._serve_announcement(version, data)

    def _serve_announcement(self, version: int, data: bytes) -> Post:
        core, model = self.core, self._engine.model
        announcement = Announcement(
            channel="serve",
            federation=self._topics.federation,
            lineage=core.lineage,
            generation=core.generation,
            version=version,
            step=core.step,
            phase="training",
            schema_hash=model.schema.hash,
            digest=lineage.decode_snapshot(data).digest(),
            frames=(FrameInfo(version, 0, len(data), self._count(len(data))),),
            chunk=self.chunk,
            byte_rate=core.strategy.byte_rate,
            devices=core.thrift.devices,
            features=core.features,
        )
        return Post(self._topics.announcement("serve"), self._encode(announcement))

    def named(self, now: float) -> Iterator[Post]:
        """The posts of a decision on names: chunks of the versions, the names, and the removal of others' chunks."""
        self._now = now
        yield from self._named()
        yield from self._clear(now)

    def _named(self) -> Iterator[Post]:
        for version in self.core.registry.named.values():
            if (data := self._engine.store.frame(version, REGISTERED)) is not None:
                self.add([frame := Frame(version, REGISTERED, data)])  # on offer from here on
                yield from self._parts(frame)
        yield from self._aliases()

    def _aliases(self) -> Iterator[Post]:
        """The names of registered versions; none before the first was given."""
        registry = self.core.registry
        for name in ALIASES if registry.number else ():
            version = registry.named.get(name, 0)
            data, _ = self._frame(version, REGISTERED)
            info = FrameInfo(version if data else 0, 0, len(data), max(1, self._count(len(data))))
            alias = alias_of(name, info, data, self.core, federation=self._topics.federation, chunk=self.chunk)
            yield Post(self._topics.alias(name), self._encode(alias))

    def overdue(self, now: float) -> Iterator[Post]:
        """The removal of frames whose grace period is over, if no release follows that would do it."""
        if self._leaving and now >= min(self._leaving.values()):
            yield from self._clear(now)

    def everything(self) -> Iterator[Post]:
        """All messages that must be retained: after a connect it is unknown what the broker still has."""
        self._on_offer = None
        for info in self._offered():
            data = self._engine.store.frame(info.version, info.span)
            if data is not None:
                yield from self._parts(Frame(info.version, info.span, data))
        self._on_offer = None  # some may have turned out to be damaged
        yield from self._replacement_snapshot()
        yield self.announcement()
        yield from self._served()
        yield from self._named()
        yield from self._clear()

    def _replacement_snapshot(self) -> Iterator[Post]:
        """A snapshot of the newest version, if none of the undamaged frames leads there."""
        model = self._engine.model
        offered = sorted((info.version, info.span) for info in self._offered())
        reached: set[int] = set()
        for version, span in offered:
            if span == 0 or version - span in reached:
                reached.add(version)
        if model.version and model.version not in reached and not model.keyframe:
            log.warning("No frame leads to version %d any more: a snapshot of it is made again.", model.version)
            frame = model.snapshot()
            self.add([frame])
            yield from self._parts(frame)

    def lacks(self, lineage: bytes, version: int, span: int) -> str:
        """Why a requested frame is not published; empty if it is available."""
        if lineage != self.core.lineage:
            return "it fetches from another lineage than the announced one: read the announcement again"
        if (version, span) in self._leaving or (version, span) in self._listed():
            return ""
        return f"no frame of span {max(span, 0)} to version {version} is on offer: read the announcement again"

    def missed(self, version: int, span: int, parts: Sequence[int], now: float) -> Iterator[tuple[int, int]]:
        """The chunks that a device missed and that may be published again, each with its size in bytes.

        Not those of a frame that is not offered, those just published, or any beyond the federation's rate. Nothing is
        read for this; `again` publishes the chosen ones.
        """
        name = version, span
        frame = next((one for one in self._published() if (one.version, one.span) == name), None)
        if frame is None or not (name in self._leaving or name in self._listed()):
            return
        count = self._count(frame.size)
        size = chunks.part_size(frame.size, count)
        for index in sorted(set(parts)):
            if self._republish_rate is not None and self._republish_rate.fill(now) < 0:
                return
            if index < count and now >= self._published_at.get((version, span, index), -_FRESH) + _FRESH:
                yield index, size

    def repeat(self, version: int, span: int, index: int, size: int, now: float) -> None:
        """Charge the federation's rate for a chunk that is published again."""
        self._now = now
        self._published_at[version, span, index] = now
        if self._republish_rate is not None:
            self._republish_rate.tokens -= size

    def again(self, version: int, span: int, parts: Sequence[int]) -> Iterator[Post]:
        """Chunks of a frame that a device missed; none if it is not offered."""
        if (version, span) in self._leaving or (version, span) in self._listed():
            data, sha256 = self._frame(version, span)
            if sha256:
                yield from self._parts(Frame(version, span, data), sha256, parts, again=True)
            else:  # it is damaged
                self._on_offer = None
                yield from self._replacement_snapshot()
                yield self.announcement()
                yield from self._clear(self._now)

    def _frame(self, version: int, span: int) -> tuple[bytes, bytes]:
        """A frame of the store and its checksum; empty if there is none."""
        name = version, span
        if name not in self._cached:
            data = self._engine.store.frame(version, span)
            if data is None:
                return b"", b""
            self._cached[name] = data, chunks.checksum(data)
            while len(self._cached) > 1 and sum(len(data) for data, _ in self._cached.values()) > _CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(name)
        return self._cached[name]

    def announcement(self) -> Post:
        """The announcement of the model's version; within a batch the core may be ahead of it."""
        core, model, offered = self.core, self._engine.model, tuple(self._offered())
        self.sizes.needed = chunks.part_size(max((frame.size for frame in offered), default=0), part_sizes.MOST)
        announcement = Announcement(
            federation=self._topics.federation,
            lineage=core.lineage,
            generation=core.generation,
            version=model.version,
            step=core.step_at(model.version),
            phase="training" if core.frozen else "statistics",
            schema_hash=model.schema.hash,
            digest=model.state.digest(),
            log=core.release_log,
            frames=offered,
            moments=() if core.frozen else core.moments,
            chunk=self.chunk,
            plan=core.plan,
            participation=core.steering.participation(),
            smallest_chunk=min(self.sizes.least, self.chunk),
            weigh_examples=core.strategy.weigh_examples,
            byte_rate=core.strategy.byte_rate,
            devices=core.thrift.devices,
            features=core.features,
            ledger=self._engine.store.ledger.head.packed() if self._engine.store.ledger.head.size else b"",
        )
        return Post(self._topics.announcement(), self._encode(announcement))

    def _offered(self) -> list[FrameInfo]:
        newest = self._engine.model.version
        known = [frame for frame in self._published() if frame.whole and frame.version <= newest and frame.span >= 0]
        snapshots = sorted((frame.version for frame in known if frame.span == 0), reverse=True)[:SNAPSHOTS]
        return [
            FrameInfo(
                version=frame.version,
                span=frame.span,
                size=frame.size,
                parts=self._count(frame.size),
            )
            for frame in known
            if (
                frame.version in snapshots
                if frame.span == 0
                else listed(frame.version, frame.span, newest, small=self._engine.model.small)
            )
        ]

    def _listed(self) -> set[tuple[int, int]]:
        registry = self.core.registry
        named = {(registry.champion, REGISTERED), (registry.candidate, REGISTERED)}
        return {(info.version, info.span) for info in self._offered()} | {(self.core.served, SERVED)} | named

    def _parts(
        self, frame: Frame, sha256: bytes = b"", wanted: Sequence[int] | None = None, *, again: bool = False
    ) -> Iterator[Post]:
        """The chunks of a frame, or the requested ones."""
        parts = self._count(len(frame.data))
        size = chunks.part_size(len(frame.data), parts)
        sha256 = sha256 or chunks.checksum(frame.data)
        view = memoryview(frame.data)
        for index in range(parts) if wanted is None else sorted(set(wanted)):
            if index >= parts:
                return
            header = Part(
                lineage=self.core.lineage,
                generation=self.core.generation,
                version=frame.version,
                span=max(frame.span, 0),
                part=index,
                parts=parts,
                sha256=sha256,
            )
            self._published_at[frame.version, frame.span, index] = self._now
            topic = self._topic(frame.version, frame.span, index)
            yield Post(topic, frames.encode(header, view[index * size : (index + 1) * size]), again=again)

    def _topic(self, version: int, span: int, index: int) -> str:
        if span == SERVED:
            return self._topics.part(version, 0, index, "serve")
        if span == REGISTERED:
            return self._topics.part(version, 0, index, "registered")
        return self._topics.part(version, span, index)

    def _clear(self, now: float = math.inf) -> Iterator[Post]:
        """Remove frames that are no longer listed, once devices with an older announcement have had time to fetch them.

        Without the delay, devices of a federation with a hundred versions a second would always request removed frames.
        """
        stay = self._listed()
        for frame in self._published():
            name = (frame.version, frame.span)
            if name not in stay and frame.version <= self._engine.model.version:
                if now < self._leaving.setdefault(name, now + GRACE):
                    continue
                del self._leaving[name]
                for index in range(max(frame.parts, 1)):
                    last = index == max(frame.parts, 1) - 1
                    topic = self._topic(*name, index)
                    yield Post(topic, b"", withdraws=name if last else None)

    def withdrawn(self, gone: Sequence[tuple[int, int]]) -> None:
        """Record that these frames were removed from the broker."""
        failpoint("frame.cleared")
        for name in gone:
            self._cached.pop(name, None)
        self._engine.store.withdraw(gone, keep=self._stepping_back)
        self._on_offer = None
        failpoint("frame.withdrawn")
