"""The aggregator of a simulation: the production core, engine and arithmetic, without a disk.

Frames are encoded only if a run counts the bytes that devices receive; otherwise a version is just its state. If the
run restarts the aggregator, its journal is kept in memory and recovered as production recovers from its store.
"""

import hashlib
import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore, Bounds
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine, recover
from midge.aggregator.ingress.rate_limits import TROUBLE
from midge.aggregator.ingress.reassembly import DISPLACED, UpdateReassembler, Whole
from midge.aggregator.model.averaging import refuse_noise
from midge.aggregator.model.model import KEYFRAME_BITS, Frame, Model
from midge.aggregator.model.step_merging import listed
from midge.aggregator.publish.part_sizes import PART, count
from midge.aggregator.shell import AggregatorShell
from midge.aggregator.store.store import Store
from midge.iot_client.session.session import reread
from midge.sensor_fleet.simulation import headers
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.coding import Said
from midge.sensor_fleet.simulation.incidents import Crash
from midge.sensor_fleet.simulation.memory_store import MemoryStore
from midge.sensor_fleet.simulation.shards import Start
from midge.wire import chunks, codecs, lineage, messages
from midge.wire.chunks import Assembly
from midge.wire.lineage import State
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Announcement,
    Chunk,
    Fetch,
    FrameInfo,
    Grant,
    Moment,
    Settled,
    Statistics,
    Trouble,
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
"""Fields that every announcement carries, for its encoded size: no simulated device reads them."""
KEPT = 256
"""Number of versions that devices on slow or lossy links can still read."""
SNAPSHOTS = 2

Reply = Callable[[str, int, int, tuple[Settled, ...]], None]
"""Called with device, outbox, its `hi` and the settled updates."""
Granted = Callable[[str, int, int, Grant], None]
"""Called with device, outbox, its `hi` and the chunks that it may send."""
ONE_CHUNK = 2**28
"""Chunk size in bytes at which every update fits into one message."""


class Tamper(Protocol):
    """Intercepts updates between devices and the aggregator, to simulate attackers."""

    def begin(self, server: "Server", clock: Clock) -> None:
        """Get access to the aggregator before the first message."""

    def sent(self, device: str, update: Update, said: Said) -> Said | None:
        """Return the update that the aggregator receives instead; None drops it."""


class Bare(Model):
    """The model without frames: a version is its state, and no step is encoded or sized."""

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
    """A published version as devices receive it."""

    announcement: Announcement
    state: State
    at: float
    """Virtual time of its release."""
    number: int
    """Consecutive number of the announcement, from 1."""
    heard: float
    """Total bytes of this announcement and all earlier ones."""

    @cached_property
    def start(self) -> Start:
        """What a training from this version starts with; read-only."""
        told = self.announcement
        return Start(self.number, self.state.values(), told.plan, told.lineage)


class Taken:
    """The accepted updates of a run, one column for each attribute."""

    def __init__(self) -> None:
        self.at = array("d")
        self.device = array("q")
        """Index of the device."""
        self.staleness = array("q")
        self.weight = array("d")

    def __len__(self) -> int:
        return len(self.at)

    def arrays(self, devices: int) -> dict[str, npt.NDArray[Any]]:
        """The columns as arrays under the names of `Simulated`, and the number of updates of each device."""
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
    """Reassembly state of an update without its bytes: those of a whole fleet would not fit into memory."""

    def add(self, part: int, data: object) -> bool:  # noqa: ARG002 - nothing to keep
        if not self.misses(part):
            return False
        self._pieces[part] = b""
        return True

    def whole(self) -> memoryview:
        return memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """The configuration of a virtual aggregator."""

    strategy: Strategy
    initial: Parameters
    schema: Schema
    seed: int
    places: Mapping[str, int]
    """Index of each device by name."""
    framed: bool
    """Whether versions are encoded as frames, whose bytes are counted."""
    chunk: int = ONE_CHUNK
    """Maximum size of a chunk's body in bytes."""
    largest: int | None = None
    """Receive buffer of the smallest device in bytes; None sets no limit."""
    memory: int = 2**30
    """Maximum bytes of updates that are being reassembled."""
    moments: Sequence[Moment] = ()
    statistics_devices: int = 5
    checkpoint: int | None = None
    """Journal records between checkpoints; None if the aggregator is never restarted."""

    def core(self) -> AggregatorCore:
        """A core with empty state."""
        return AggregatorCore(
            self.strategy,
            lineage=hashlib.sha256(f"simulation/{self.seed}".encode()).digest()[:16],
            schema_hash=self.schema.hash,
            moments=self.moments,
            statistics_devices=self.statistics_devices,
            bounds=Bounds.of(self.schema),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCalls:
    """Callbacks by which the virtual aggregator reaches its devices."""

    reply: Reply
    released: Callable[[PublishedVersion], None]
    granted: Granted | None = None
    republished: Callable[[Fetch], None] | None = None
    trouble: Callable[[str, Trouble], None] | None = None
    """Called with a device and a problem that no receipt reports: a dropped message, or a doubted encoder."""
    status: Callable[[AggregatorStatus], None] | None = None


class Server:
    """One aggregator on virtual time: the host of the shell, as `aggregator.processor` is in production.

    Messages of devices come in by `greeted`, `arrived`, `offered` and then `chunk`, `statistics` and `fetch_asked`.
    """

    def __init__(self, clock: Clock, setup: ServerSetup, calls: DeviceCalls, tamper: Tamper | None = None) -> None:
        strategy, schema, seed = setup.strategy, setup.schema, setup.seed
        refuse_noise(strategy, schema)
        self._clock, self._tamper, self._setup = clock, tamper, setup
        self._places, self._chunk, self._calls = setup.places, setup.chunk, calls
        self.core = self._setup.core()
        self.shell = AggregatorShell(self.core, self)
        durable = setup.checkpoint is not None
        model = (Model if setup.framed or durable else Bare).of(setup.initial, schema)
        model.keeps_past = strategy.form == "mixing"
        self._frames: dict[tuple[int, int], int] | None = {} if setup.framed else None
        """Bytes of each offered frame, by version and span; None if frames are not encoded."""
        self._store = MemoryStore(schema, seed, durable=durable)
        self.engine = Engine(model, cast("Store", self._store))
        self.published: deque[PublishedVersion] = deque(maxlen=KEPT)
        """The newest versions, oldest first."""
        self.taken = Taken()
        self.told = 0.0
        """Announcement bytes that all devices together have received, rereads included."""
        self.refused: Counter[str] = Counter()
        """Refused updates, by verdict."""
        self._bodies: dict[int, _Body] = {}
        """Bodies of updates and statistics that are not decided yet, by key."""
        self._offers: dict[str, Said] = {}
        """Updates that devices have offered to send in chunks, by device."""
        self._reassembler = self._new_reassembler()
        self._key = self._announced = 0
        self._heard = self._read = 0.0
        self.weighs = 0
        """Bytes of the newest announcement; 0 if the run does not count bytes."""
        self._due: float | None = None
        self._ahead = 0.0
        """Offset of this process's monotonic clock to virtual time."""
        self._boot = 1
        self._down = False
        self._actions: int | None = None
        """Shell actions left before this process crashes; None if no crash is due."""
        self._online = 0
        """Devices whose retained status says online."""
        self._paused: str | None = None

    def _new_reassembler(self) -> UpdateReassembler:
        troubles = self._troubles = _Troubles(self._calls.trouble)
        return _reassembler(self._setup.memory, troubles, lambda device: self.core.contributed(device))  # noqa: PLW0108

    @property
    def model(self) -> Model:
        return self.engine.model

    @property
    def now(self) -> float:
        """The time on the process's clock."""
        return self._clock.now + self._ahead

    def start(self) -> None:
        if self._store.durable:
            self.engine.checkpoint(self.core)
        self.shell.carry_out(self.core.start(self.now), self.now)
        self._wake()

    # ------------------------------------------------------- restarts and the operator

    @property
    def status(self) -> AggregatorStatus:
        """The retained aggregator status."""
        held = AggregatorState.PAUSED if self._paused is not None else AggregatorState.READY
        state = AggregatorState.LOST if self._down else held
        return AggregatorStatus(state=state, boot=self._boot, lineage=self.core.lineage)

    def pause(self, why: str | None) -> None:
        """Pause or, with None, resume accepting updates."""
        self._paused = why
        if not self._down:
            self.core.handle(ev.OperatorPaused(why), self.now)
            self._tell_status()

    def crash(self, crash: Crash) -> None:
        """End the process: between two batches, or after the crash's number of shell actions."""
        if crash.clean:
            self.engine.checkpoint(self.core)
        self._actions = crash.actions
        if crash.actions == 0:
            self._die()

    def restart(self, clock: float) -> None:
        """Start another process on the same store.

        Raises:
            AssertionError: recovery has changed the model or the core's state.
        """
        # With few devices, the process may have ended without an action having ended it within a batch.
        before = _remembered(self.core, self.model) if not self._down or self._actions == 0 else None
        self._down, self._actions, self._due = False, None, None
        self._boot += 1
        self._ahead = clock - self._clock.now
        self._bodies.clear()
        self._offers.clear()
        self._reassembler = self._new_reassembler()
        self.core = self._setup.core()
        self.engine = recover(self.core, cast("Store", self._store), self._setup.schema)
        if before is not None and _remembered(self.core, self.model) != before:
            raise AssertionError("recovery has changed the model, or the core's state")
        self.core.handle(ev.OperatorPaused(self._paused), self.now)
        self.shell = AggregatorShell(self.core, self)
        self.shell.carry_out(self.core.note_strategy(self._setup.strategy.name), self.now)
        self.shell.carry_out(self.core.start(self.now), self.now)
        self._release()
        self._tell_status()
        self._clock.after(0.0, lambda: self.there(0))  # device statuses arrive after the subscription
        self._wake()

    def _die(self) -> None:
        self._down, self._due = True, None
        self._tell_status()

    def _tell_status(self) -> None:
        if self._calls.status is not None:
            self._calls.status(self.status)

    def _act(self) -> None:
        """Count an action, and end the process if it was the last one."""
        if self._actions is not None:
            self._actions -= 1
            if self._actions < 0:
                raise _Died

    def _run(self, work: Callable[[], None]) -> None:
        """Run a step of the process, unless it is down."""
        if self._down:
            return
        try:
            work()
        except _Died:
            self._die()
        else:
            self._wake()

    # ------------------------------------------------------------------ messages

    def greeted(self, device: str, outbox: int, first: int) -> None:
        self._run(lambda: self.shell.handle(ev.Greeted(device, outbox, first), self.now))

    def arrived(self, device: str, update: Update, said: Said) -> None:
        if self._tamper is not None:
            turned = self._tamper.sent(device, update, said)
            if turned is None:
                return
            said = turned
        self.inject(device, update, said)

    def inject(self, device: str, update: Update, said: Said) -> None:
        """Accept a message without tampering."""
        self._handle(ev.Arrived(device, update, self._keep(_Body(said))))

    def offered(self, device: str, update: Update, said: Said) -> None:
        """Handle the header of an update that is to come in chunks; `granted` is called with those to send."""
        self._offers[device] = said
        self._handle(ev.Offered(device, update))

    def chunk(self, device: str, chunk: Chunk) -> None:
        """Add one chunk of an offered update; the last one counts as the update's arrival."""
        come = self._reassembler.add(device, chunk, memoryview(b""), self.now)
        if isinstance(come, Whole):
            self.arrived(device, come.update, self._offers.pop(device))
        elif come is not None:
            hi = self.core.hi(device, come.outbox)
            self._run(lambda: self.shell.carry_out([ev.GrantChunks(device, come, hi)], self.now))

    def statistics(self, device: str, statistics: Statistics, body: bytes) -> None:
        """Handle a device's statistics."""
        key = self._keep(_Body(packed=body))
        self._handle(ev.StatisticsArrived(device, statistics, key, chunks.checksum(body)))

    def fetch_asked(self, device: str, fetch: Fetch) -> None:
        """Handle a request for a missing frame; `republished` is called with what is on offer."""
        self._run(lambda: self.shell.handle(ev.FetchAsked(device, fetch), self.now))

    def _keep(self, body: "_Body") -> int:
        self._key += 1
        self._bodies[self._key] = body
        return self._key

    def _handle(self, event: ev.Event) -> None:
        def work() -> None:
            self.shell.handle(event, self.now)
            self.shell.tick(self.now)

        self._run(work)

    def there(self, change: int) -> None:
        """Add devices that came online, or subtract those that went offline."""
        self._online += change
        if not self._down:
            self.core.handle(ev.DevicesOnline(self._online), self.now)

    # ------------------------------------------------------------- the shell's host

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded:  # noqa: ARG002 - signature of the shell's hook
        body = self._bodies[action.key]
        said = body.said
        assert said is not None
        body.direction = self.engine.direction(self.core.strategy, said.delta)
        return ev.Decoded(action.device, action.update, action.key, said.norm, self.engine.agreement(body.direction))

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Store what the engine reads again, and what a restart recovers from."""
        self._act()
        for entry in entries:
            held = None if entry.key is None else self._bodies[entry.key]
            said = None if held is None else held.said
            body = self._store.noise(entry.noise) if entry.noise else b"" if held is None else held.packed
            self._store.commit(entry.record, body, None if said is None else said.delta)

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        self._act()
        if not isinstance(record, rec.UpdateRecord):
            return
        if record.verdict != Verdict.ACCEPTED:
            self.refused[record.verdict] += 1
            return
        assert key is not None
        body = self._bodies[key]
        assert body.said is not None
        self.engine.hold(record, body.said.delta, body.direction)
        self.taken.add(self._clock.now, self._places[record.device], record.staleness, record.weight)
        self._troubles.see_encoder(self.core, record, now)

    def carry(self, record: rec.Record, now: float) -> None:
        self._act()
        if isinstance(record, rec.ServeRecord):
            return  # the run evaluates by itself
        frames = self.engine.carry(record)
        if isinstance(record, rec.ReleaseRecord):
            self.core.handle(ev.ReleaseCarried(record.version, self.model.state.digest()), now)
            if self._store.durable:
                self._store.add_frames((frame, 0) for frame in frames)
            self._act()
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
        self._act()
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
        """Do nothing: replies are sent at once."""

    # ------------------------------------------------------------------ releases

    @property
    def heard(self) -> float:
        """Total bytes of announcements so far, rereads included; 0 if the run does not count bytes."""
        return self._heard

    def serving(self) -> dict[str, Any]:
        """The model that users would get, all tensors by name: the published or the served one."""
        return self.model.used().parameters()

    def _release(self, frames: Sequence[Frame] = ()) -> None:
        core, model = self.core, self.model
        self._announced += 1
        if not self.published or model.version > self.published[-1].announcement.version:
            core.handle(ev.MovementFollowed(model.follow_movement(core.versions_a_turn)), self.now)
        version = model.version  # within a batch the core may be ahead of the actions carried out
        announcement = Announcement.model_construct(
            federation="simulation",
            lineage=core.lineage,
            generation=core.generation,
            version=version,
            step=core.step_at(version),
            phase="training" if core.frozen else "statistics",
            schema_hash=core.schema_hash,
            digest=bytes(16),
            frames=self._offered(version, frames),
            moments=() if core.frozen else core.moments,
            chunk=self._chunk,
            plan=core.plan,
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
            core.handle(ev.ReleasePublished(weighs, step), self.now)
        new = PublishedVersion(announcement, model.state, self._clock.now, self._announced, self._heard)
        self.published.append(new)
        model.forget_steps(core.oldest_base if model.keeps_past else version)
        self._calls.released(new)

    def _offered(self, version: int, frames: Sequence[Frame]) -> tuple[FrameInfo, ...]:
        """The frames that lead to a version, as `aggregator.publish.model_publisher` selects them, or a dummy one."""
        if self._frames is None:
            return (FrameInfo(version, 0, 4 * self.model.schema.size, 1),)
        part = min(self._chunk, PART)
        self._frames.update({(frame.version, frame.span): len(frame.data) for frame in frames})
        snapshots = sorted((known for known, span in self._frames if span == 0), reverse=True)[:SNAPSHOTS]
        for known, span in list(self._frames):
            if not (known in snapshots if span == 0 else listed(known, span, version, small=self.model.small)):
                del self._frames[known, span]
        cut = partial(count, most=part, limit=self._setup.largest)
        return tuple(FrameInfo(known, span, size, cut(size)) for (known, span), size in self._frames.items())

    def _wake(self) -> None:
        due = self.core.deadline
        if due is not None and not self._down and (self._due is None or due < self._due):
            self._due = due
            self._clock.at(due - self._ahead, partial(self._tick, self._boot))
        if (every := self._setup.checkpoint) is not None and self._store.since_checkpoint >= every and not self._down:
            self.engine.checkpoint(self.core)

    def _tick(self, boot: int) -> None:
        if boot == self._boot and (due := self._due) is not None:
            self._due = None
            self._run(lambda: self.shell.tick(max(self.now, due)))  # rounding, if the clock is offset


def _remembered(core: AggregatorCore, model: Model) -> tuple[bytes, dict[str, Any]]:
    """The state that a restart must preserve.

    Excluded is what leaves no record: greetings and repeats, and a cohort's share, which each release sets by the
    number of devices online.
    """
    found = core.dump()
    pairs = zip(found["outboxes"], found["bases"], strict=True)
    outboxes = sorted([*outbox, base] for outbox, base in pairs if outbox[2] > 0)
    return model.digest(), {**found, "outboxes": outboxes, "bases": None, "counts": None, "share": None}


class _Died(Exception):
    """The process has ended within a batch."""


class _Troubles:
    """Reports to devices what no receipt says, rate-limited as in production."""

    def __init__(self, call: Callable[[str, Trouble], None] | None) -> None:
        self._call = call
        self._told: dict[str, float] = {}

    def tell(self, device: str, why: str, now: float) -> None:
        """Send a reason to a device, unless one was sent recently."""
        if why and self._call is not None and now >= self._told.get(device, -math.inf) + TROUBLE:
            self._told[device] = now
            self._call(device, Trouble(why=why[:400]))

    def see_encoder(self, core: AggregatorCore, record: rec.UpdateRecord, now: float) -> None:
        """Report to a device that its encoder is doubted, if its codec needs error feedback."""
        if codecs.parse(record.codec).feedback:
            self.tell(record.device, core.encoder_doubt(record.device, now), now)


def _reassembler(memory: int, troubles: _Troubles, known: Callable[[str], bool]) -> UpdateReassembler:
    found = UpdateReassembler(budget=memory, dropped=Counter(), assembly=_Counted)
    found.known = known
    found.displaced = lambda device, now: troubles.tell(device, DISPLACED, now)
    return found


@dataclass(slots=True)
class _Body:
    """What the shell holds under one key."""

    said: Said | None = None
    """Of an update."""
    packed: bytes = b""
    """Of statistics."""
    direction: Vector | None = None
