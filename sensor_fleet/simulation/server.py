"""The aggregator in a simulation: the real core, engine and arithmetic, with nothing written.

Frames are made and weighed if a run counts what devices receive; otherwise a version is its state and nothing more.
"""

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine
from midge.aggregator.ingress.reassembly import UpdateReassembler, Whole
from midge.aggregator.model.averaging import refuse_noise
from midge.aggregator.model.model import KEYFRAME_BITS, Frame, Model
from midge.aggregator.model.step_merging import listed
from midge.aggregator.publish.model_publisher import PART
from midge.aggregator.shell import AggregatorShell
from midge.aggregator.store.store import Store
from midge.iot_client.session.session import reread
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.coding import Said
from midge.sensor_fleet.simulation.shards import Start
from midge.wire import chunks, lineage, messages
from midge.wire.chunks import Assembly
from midge.wire.lineage import State
from midge.wire.messages import (
    Announcement,
    Chunk,
    Fetch,
    FrameInfo,
    Grant,
    Moment,
    Settled,
    Statistics,
    Update,
    Verdict,
)
from midge.wire.schema import Parameters, Schema, Vector

_STAMPED: dict[str, Any] = {
    "parent": b"\1" * 16,
    "issued": 1.8e9,
    "expires": 1.8e9 + 86_400,
    "epoch": 1_800_000_000_000,
}
"""What every announcement is stamped with, for its weight: no device here reads it."""
KEPT = 256
"""Versions that a device can still hear of: links are slow, and messages are lost."""
SNAPSHOTS = 2

Reply = Callable[[str, int, int, tuple[Settled, ...]], None]
"""Told of a device, an outbox, its hi, and what is settled."""
Granted = Callable[[str, int, int, Grant], None]
"""Told of a device, an outbox, its hi, and the chunks that it may send."""
ONE_CHUNK = 2**28
"""Bytes of a chunk by which every update goes in one message."""


class Tamper(Protocol):
    """Stands between devices and the aggregator: what liars send in place of what they learned, and beside it."""

    def begin(self, server: "Server", clock: Clock) -> None:
        """Look around before the first message."""

    def sent(self, device: str, update: Update, said: Said) -> Said | None:
        """Return what the aggregator gets in place of an update, None if it gets nothing."""


class Bare(Model):
    """The model without frames: a version is its state, and what its steps would weigh is not asked."""

    def __init__(self, schema: Schema, x: Vector, frozen: bytes) -> None:
        super().__init__(schema, x, frozen)
        self._past: dict[int, State] = {}

    def _release(self, record: rec.ReleaseRecord) -> list[Frame]:
        step = None if self.keyframe else self._quantiser.step(self.x, self.state)
        if step is not None:
            self.state = self.state.advance(step)
        else:
            if not self.keyframe or record.devices:
                self.state = lineage.on_grid(self.x, self.schema, self.state.frozen, bits=KEYFRAME_BITS)
            self._quantiser.begin(self.x, self.state)
            self.keyframe = False
        self.version = record.version
        if self.keeps_past:
            self._past[self.version] = self.state
        return []

    def published(self, version: int) -> Vector:
        return self._past[version].values()

    def forget_steps(self, oldest: int) -> None:
        for version in [version for version in self._past if version < oldest]:
            del self._past[version]


@dataclass(frozen=True, eq=False)
class PublishedVersion:
    """A version as devices get it."""

    announcement: Announcement
    state: State
    at: float
    """When it was released."""
    number: int
    """From 1, over everything that was announced."""
    heard: float
    """Bytes of this announcement and all before it."""

    @cached_property
    def start(self) -> Start:
        """What a training from it begins with; not to be written to."""
        told = self.announcement
        return Start(self.number, self.state.values(), told.plan, told.lineage)


class Taken:
    """The accepted updates, for the result: one column for each of their traits."""

    def __init__(self) -> None:
        self.at = array("d")
        self.device = array("q")
        """Its place among the devices."""
        self.staleness = array("q")
        self.weight = array("d")

    def __len__(self) -> int:
        return len(self.at)

    def arrays(self, devices: int) -> dict[str, npt.NDArray[Any]]:
        """What a result tells of them, by its names: of each update, and how many of each device."""
        senders = np.array(self.device, np.int64)
        return {
            "staleness": np.array(self.staleness, np.int64),
            "update_times": np.array(self.at),
            "senders": senders,
            "weights": np.array(self.weight),
            "per_device": np.bincount(senders, minlength=devices).astype(np.int64),
        }

    def add(self, at: float, device: int, staleness: int, weight: float) -> None:
        self.at.append(at)
        self.device.append(device)
        self.staleness.append(staleness)
        self.weight.append(weight)


class _Counted(Assembly):
    """Chunks that have come of an update, without their bytes: a fleet's would not fit into the memory."""

    def add(self, part: int, data: object) -> bool:  # noqa: ARG002 - nothing to keep
        if not self.misses(part):
            return False
        self._pieces[part] = b""
        return True

    def whole(self) -> memoryview:
        return memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """What a virtual aggregator serves."""

    strategy: Strategy
    initial: Parameters
    schema: Schema
    seed: int
    places: Mapping[str, int]
    """The place of each device among all, by its name."""
    framed: bool
    """Whether versions are made into frames, whose bytes count."""
    chunk: int = ONE_CHUNK
    """Bytes of a chunk's body, at most."""
    memory: int = 2**30
    """Bytes that updates may take which come in chunks."""
    moments: Sequence[Moment] = ()
    statistics_devices: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCalls:
    """How the virtual aggregator reaches its devices."""

    reply: Reply
    released: Callable[[PublishedVersion], None]
    granted: Granted | None = None
    republished: Callable[[Fetch], None] | None = None


class Server:
    """One aggregator on virtual time: the host of the shell, as `aggregator.processor` is in a process.

    What a device says comes by `greeted`, `arrived`, `offered` and then `chunk`, `statistics` and `fetch_asked`.
    """

    def __init__(self, clock: Clock, setup: ServerSetup, calls: DeviceCalls, tamper: Tamper | None = None) -> None:
        strategy, schema, seed = setup.strategy, setup.schema, setup.seed
        refuse_noise(strategy, schema)
        self._clock, self._tamper = clock, tamper
        self._places, self._chunk, self._calls = setup.places, setup.chunk, calls
        self.core = AggregatorCore(
            strategy,
            lineage=hashlib.sha256(f"simulation/{seed}".encode()).digest()[:16],
            schema_hash=schema.hash,
            moments=setup.moments,
            statistics_devices=setup.statistics_devices,
            bounds=Bounds.of(schema),
        )
        self.shell = AggregatorShell(self.core, self)
        self.model: Model = (Model if setup.framed else Bare).of(setup.initial, schema)
        self.model.keeps_past = strategy.form == "mixing"
        self._frames: dict[tuple[int, int], int] | None = {} if setup.framed else None
        """Bytes of each frame that is on offer, by version and span."""
        self._journal = _Journal(schema.size, seed)
        self.engine = Engine(self.model, cast("Store", self._journal))
        self.published: deque[PublishedVersion] = deque(maxlen=KEPT)
        """The newest versions, oldest first."""
        self.taken = Taken()
        self.told = 0.0
        """Bytes of announcements that devices have heard, all together, and of those that they have read again."""
        self.refused: Counter[str] = Counter()
        """Refused updates, by verdict."""
        self._bodies: dict[int, _Body] = {}
        """What an update or statistics hold, until they are decided on."""
        self._offers: dict[str, Said] = {}
        """What devices have offered to send in chunks."""
        self._reassembler = UpdateReassembler(budget=setup.memory, dropped=Counter(), assembly=_Counted)
        self._key = self._announced = 0
        self._heard = self._read = 0.0
        self.weighs = 0
        """Bytes of the newest announcement; 0 if a run does not count bytes."""
        self._due: float | None = None

    def start(self) -> None:
        self.shell.carry_out(self.core.start(self._clock.now), self._clock.now)
        self._wake()

    # ------------------------------------------------------------------ messages

    def greeted(self, device: str, outbox: int, first: int) -> None:
        self.shell.handle(ev.Greeted(device, outbox, first), self._clock.now)  # it moves no timer

    def arrived(self, device: str, update: Update, said: Said) -> None:
        if self._tamper is not None:
            turned = self._tamper.sent(device, update, said)
            if turned is None:
                return
            said = turned
        self.inject(device, update, said)

    def inject(self, device: str, update: Update, said: Said) -> None:
        """Take a message in as it is."""
        self._handle(ev.Arrived(device, update, self._keep(_Body(said))))

    def offered(self, device: str, update: Update, said: Said) -> None:
        """Take the header of an update that is to come in chunks; `granted` is called with those to send."""
        self._offers[device] = said
        self._handle(ev.Offered(device, update))

    def chunk(self, device: str, chunk: Chunk) -> None:
        """Take one chunk of what was offered; the last one is the update's arrival."""
        come = self._reassembler.add(device, chunk, memoryview(b""), self._clock.now)
        if isinstance(come, Whole):
            self.arrived(device, come.update, self._offers.pop(device))
        elif come is not None:
            hi = self.core.hi(device, come.outbox)
            self.shell.carry_out([ev.GrantChunks(device, come, hi)], self._clock.now)

    def statistics(self, device: str, statistics: Statistics, body: bytes) -> None:
        """Take a device's moments in."""
        key = self._keep(_Body(packed=body))
        self._handle(ev.StatisticsArrived(device, statistics, key, chunks.checksum(body)))

    def fetch_asked(self, device: str, fetch: Fetch) -> None:
        """A device did not find a frame: `republished` is called with what is on offer."""
        self.shell.handle(ev.FetchAsked(device, fetch), self._clock.now)

    def _keep(self, body: "_Body") -> int:
        self._key += 1
        self._bodies[self._key] = body
        return self._key

    def _handle(self, event: ev.Event) -> None:
        self.shell.handle(event, self._clock.now)
        self.shell.tick(self._clock.now)
        self._wake()

    def there(self, change: int) -> None:
        """Count devices that have come online, or gone if it is negative."""
        self.core.handle(ev.DevicesOnline(self.core.steering.live + change), self._clock.now)

    # ------------------------------------------------------------- the shell's host

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded:  # noqa: ARG002 - of the shell's hook
        body = self._bodies[action.key]
        said = body.said
        assert said is not None
        body.direction = self.engine.direction(self.core.strategy, said.delta, said.norm)
        return ev.Decoded(action.device, action.update, action.key, said.norm, self.engine.agreement(body.direction))

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Nothing is written, and a simulation replays nothing: only what a live engine reads again is kept."""
        for entry in entries:
            if entry.noise:
                self._journal.draw(entry.record.lsn, entry.noise)
            elif isinstance(entry.record, rec.StatisticsRecord):
                assert entry.key is not None
                self._journal.keep(entry.record, self._bodies[entry.key].packed)

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        if not isinstance(record, rec.UpdateRecord):
            return
        if record.verdict != Verdict.ACCEPTED:
            self.refused[record.verdict] += 1
            return
        assert key is not None
        body = self._bodies[key]
        assert body.said is not None
        self.engine.hold(record, body.said.delta, body.direction)
        self.taken.add(now, self._places[record.device], record.staleness, record.weight)

    def carry(self, record: rec.Record, now: float) -> None:  # noqa: ARG002 - of the shell's hook
        if isinstance(record, rec.ServeRecord):
            return  # whoever evaluates looks for itself
        frames = self.engine.carry(record)
        if isinstance(record, rec.ReleaseRecord):
            self._release(frames)

    def measure(self, lsns: Sequence[int]) -> ev.Measured:
        return ev.Measured(self.engine.measure(lsns))

    def examine(self, lsns: Sequence[int]) -> ev.Examined:
        event, _ = self.engine.examine(lsns, self.core.moments, factor=self.core.statistics_factor, names={})
        return event

    def announce(self) -> None:
        self._release()

    def republish(self, fetch: Fetch) -> None:
        if self._calls.republished is not None:
            self._calls.republished(fetch)

    def reply(self, device: str, outbox: int, hi: int, settled: Sequence[Settled]) -> None:
        self._calls.reply(device, outbox, hi, tuple(settled))

    def grant(self, device: str, update: Update, hi: int, now: float) -> None:
        answer = self._reassembler.grant(device, update, self._chunk, now)
        if isinstance(answer, Settled):
            self._calls.reply(device, update.outbox, hi, (answer,))
        elif self._calls.granted is not None:
            self._calls.granted(device, update.outbox, hi, answer)

    def drop(self, key: int) -> None:
        self._bodies.pop(key, None)

    def flush(self, now: float) -> None:
        """Nothing waits: each reply is on its way already."""

    # ------------------------------------------------------------------ releases

    @property
    def heard(self) -> float:
        """Bytes of all announcements so far, and of those read again; 0 if a run does not count bytes."""
        return self._heard

    def serving(self) -> dict[str, Any]:
        """The model that users would get, all tensors by name: as it is published, or what the strategy serves."""
        return self.model.used().parameters()

    def _release(self, frames: Sequence[Frame] = ()) -> None:
        core, model = self.core, self.model
        self._announced += 1
        version = core.version
        announcement = Announcement.model_construct(
            federation="simulation",
            lineage=core.lineage,
            generation=core.generation,
            version=version,
            step=core.step,
            phase="training" if core.frozen else "statistics",
            schema_hash=core.schema_hash,
            digest=bytes(16),
            frames=self._offered(version, frames),
            moments=() if core.frozen else core.moments,
            chunk=self._chunk,
            plan=core.strategy.plan,
            participation=core.steering.participation(),
            byte_rate=0.0 if self._frames is None else core.strategy.byte_rate,
            devices=core.thrift.devices,
            **_STAMPED,
        )
        if self._frames is not None:
            weighs, now = len(messages.encode_announcement(announcement)), self._clock.now
            again = (now - self._read) / reread(announcement) * (self.weighs + headers.status())
            self._read, self.weighs = now, weighs
            self._heard += weighs + again
            self.told += (weighs + again) * self.core.steering.live
            step = min((len(frame.data) for frame in frames), default=0)
            core.handle(ev.ReleasePublished(weighs, step), now)
        new = PublishedVersion(announcement, model.state, self._clock.now, self._announced, self._heard)
        self.published.append(new)
        model.forget_steps(core.oldest_base if model.keeps_past else version)
        self._calls.released(new)

    def _offered(self, version: int, frames: Sequence[Frame]) -> tuple[FrameInfo, ...]:
        """What leads to a version: as `aggregator.publish.model_publisher` has it, or a snapshot of no weight."""
        if self._frames is None:
            return (FrameInfo(version, 0, 4 * self.model.schema.size, 1),)
        part = min(self._chunk, PART)
        self._frames.update({(frame.version, frame.span): len(frame.data) for frame in frames})
        snapshots = sorted((known for known, span in self._frames if span == 0), reverse=True)[:SNAPSHOTS]
        for known, span in list(self._frames):
            if not (known in snapshots if span == 0 else listed(known, span, version)):
                del self._frames[known, span]
        return tuple(
            FrameInfo(known, span, size, chunks.count(size, part)) for (known, span), size in self._frames.items()
        )

    def _wake(self) -> None:
        due = self.core.deadline
        if due is not None and (self._due is None or due < self._due):
            self._due = due
            self._clock.at(due, self._tick)

    def _tick(self) -> None:
        self._due = None
        self.shell.tick(self._clock.now)
        self._wake()


@dataclass(slots=True)
class _Body:
    """What the shell holds under one key."""

    said: Said | None = None
    """Of an update."""
    packed: bytes = b""
    """Of statistics."""
    direction: Vector | None = None


class _Journal:
    """In place of a store: of its journal a live engine reads noise and statistics again, and nothing else."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._rng = size, np.random.default_rng((seed, 3))
        self._noise: dict[int, bytes] = {}
        self._statistics: dict[int, tuple[rec.StatisticsRecord, bytes]] = {}

    def draw(self, lsn: int, deviation: float) -> None:
        self._noise[lsn] = (deviation * self._rng.standard_normal(self._size)).astype("<f4").tobytes()

    def keep(self, record: rec.StatisticsRecord, body: bytes) -> None:
        self._statistics[record.lsn] = record, body

    def record(self, lsn: int) -> rec.Record:
        return self._statistics[lsn][0]

    def body(self, lsn: int) -> bytes:
        return self._statistics[lsn][1] if lsn in self._statistics else self._noise.pop(lsn)
