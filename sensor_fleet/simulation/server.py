"""The aggregator of a simulation: the production core, engine and arithmetic, without a disk.

Frames are encoded only if a run counts the bytes that devices receive; otherwise a version is just its state. If the
run restarts the aggregator, its journal is kept in memory and recovered as production recovers from its store.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.engine import Engine, recover
from midge.aggregator.ingress.reassembly import UpdateReassembler, Whole
from midge.aggregator.model.averaging import refuse_noise
from midge.aggregator.model.model import Frame, Model
from midge.aggregator.shell import AggregatorShell
from midge.aggregator.store.store import Store
from midge.sensor_fleet.simulation.chunk_counting import TroubleReporter, counting_reassembler
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.incidents import Crash
from midge.sensor_fleet.simulation.memory_store import MemoryStore
from midge.sensor_fleet.simulation.publisher import VersionPublisher
from midge.sensor_fleet.simulation.result import AcceptedUpdates
from midge.sensor_fleet.simulation.server_setup import DeviceCalls, ServerSetup, Tamper
from midge.sensor_fleet.simulation.state_only_model import StateOnlyModel
from midge.wire import chunks
from midge.wire.messages import (
    AggregatorState,
    AggregatorStatus,
    Chunk,
    Fetch,
    Settled,
    Statistics,
    Update,
    Verdict,
)
from midge.wire.schema import Vector


class Server:
    """One aggregator on virtual time: the host of the shell, as `aggregator.processor` is in production.

    Messages of devices come in by `greeted`, `arrived`, `offered` and then `chunk`, `statistics` and `fetch_asked`.
    """

    def __init__(self, clock: Clock, setup: ServerSetup, calls: DeviceCalls, tamper: Tamper | None = None) -> None:
        strategy, schema, seed = setup.strategy, setup.schema, setup.seed
        refuse_noise(strategy, schema)
        self._clock, self._tamper, self._setup = clock, tamper, setup
        self._calls = calls
        self.core = self._setup.core()
        self.shell = AggregatorShell(self.core, self)
        durable = setup.checkpoint is not None
        model = (Model if setup.framed or durable else StateOnlyModel).of(setup.initial, schema)
        model.keeps_past = strategy.form == "mixing"
        self._store = MemoryStore(schema, seed, durable=durable)
        self.engine = Engine(model, cast("Store", self._store))
        self.publisher = VersionPublisher(clock, setup, calls.released)
        self.accepted = AcceptedUpdates()
        self.refused: Counter[str] = Counter()
        """Refused updates, by verdict."""
        self._bodies: dict[int, _Body] = {}
        """Bodies of updates and statistics that are not decided yet, by key."""
        self._offers: dict[str, DecodedUpdate] = {}
        """Updates that devices have offered to send in chunks, by device."""
        self._reassembler = self._new_reassembler()
        self._key = 0
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
        troubles = self._troubles = TroubleReporter(self._calls.trouble)
        known = lambda device: self.core.contributed(device)  # noqa: E731, PLW0108 - a restart replaces the core
        return counting_reassembler(self._setup.memory, troubles, known)

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
        self._schedule()

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
            self._end_process()

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
        self._publish()
        self._tell_status()
        self._clock.after(0.0, lambda: self.devices_online(0))  # device statuses arrive after the subscription
        self._schedule()

    def _end_process(self) -> None:
        self._down, self._due = True, None
        self._tell_status()

    def _tell_status(self) -> None:
        if self._calls.status is not None:
            self._calls.status(self.status)

    def _count_action(self) -> None:
        """Count an action, and end the process if it was the last one."""
        if self._actions is not None:
            self._actions -= 1
            if self._actions < 0:
                raise _ProcessEnded

    def _run(self, work: Callable[[], None]) -> None:
        """Run a step of the process, unless it is down."""
        if self._down:
            return
        try:
            work()
        except _ProcessEnded:
            self._end_process()
        else:
            self._schedule()

    # ------------------------------------------------------------------ messages

    def greeted(self, device: str, outbox: int, first: int) -> None:
        self._run(lambda: self.shell.handle(ev.Greeted(device, outbox, first), self.now))

    def arrived(self, device: str, update: Update, decoded: DecodedUpdate) -> None:
        if self._tamper is not None:
            turned = self._tamper.sent(device, update, decoded)
            if turned is None:
                return
            decoded = turned
        self.inject(device, update, decoded)

    def inject(self, device: str, update: Update, decoded: DecodedUpdate) -> None:
        """Accept a message without tampering."""
        self._handle(ev.Arrived(device, update, self._keep(_Body(decoded))))

    def offered(self, device: str, update: Update, decoded: DecodedUpdate) -> None:
        """Handle the header of an update that is to come in chunks; `granted` is called with those to send."""
        self._offers[device] = decoded
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

    def devices_online(self, change: int) -> None:
        """Add devices that came online, or subtract those that went offline."""
        self._online += change
        if not self._down:
            self.core.handle(ev.DevicesOnline(self._online), self.now)

    # ------------------------------------------------------------- the shell's host

    def decode(self, action: ev.Decode, now: float) -> ev.Decoded:  # noqa: ARG002 - signature of the shell's hook
        body = self._bodies[action.key]
        decoded = body.decoded
        assert decoded is not None
        mass = action.update.weight if action.update.accepted else 1.0  # a site is judged by the mean of its devices
        mean = decoded.delta if mass == 1 else decoded.delta / np.float32(mass)
        body.direction = self.engine.direction(self.core.strategy, mean)
        agreement = self.engine.agreement(body.direction)
        return ev.Decoded(action.device, action.update, action.key, decoded.norm / mass, agreement)

    def commit(self, entries: Sequence[ev.Journal]) -> None:
        """Store what the engine reads again, and what a restart recovers from."""
        self._count_action()
        for entry in entries:
            held = None if entry.key is None else self._bodies[entry.key]
            decoded = None if held is None else held.decoded
            body = self._store.noise(entry.noise) if entry.noise else b"" if held is None else held.packed
            self._store.commit(entry.record, body, None if decoded is None else decoded.delta)

    def journaled(self, record: rec.Record, key: int | None, now: float) -> None:
        self._count_action()
        if not isinstance(record, rec.UpdateRecord):
            return
        if record.verdict != Verdict.ACCEPTED:
            self.refused[record.verdict] += 1
            return
        assert key is not None
        body = self._bodies[key]
        assert body.decoded is not None
        self.engine.hold(record, body.decoded.delta, body.direction)
        self.accepted.add(self._clock.now, self._setup.places[record.device], record.staleness, record.weight)
        self._troubles.report_doubt(self.core, record, now)

    def carry(self, record: rec.Record, now: float) -> None:
        self._count_action()
        if isinstance(record, rec.ServeRecord):
            return  # the run evaluates by itself
        frames = self.engine.carry(record)
        if isinstance(record, rec.ReleaseRecord):
            self.core.handle(ev.ReleaseCarried(record.version, self.model.state.digest()), now)
            if self._store.durable:
                self._store.add_frames((frame, 0) for frame in frames)
            self._count_action()
            self._publish(frames)

    def measure(self, lsns: Sequence[int]) -> ev.Measured:
        return ev.Measured(self.engine.measure(lsns))

    def examine(self, lsns: Sequence[int]) -> ev.Examined:
        event, _ = self.engine.examine(lsns, self.core.moments, factor=self.core.statistics_factor, names={})
        return event

    def announce(self) -> None:
        self._publish()

    def republish(self, fetch: Fetch) -> None:
        if self._calls.republished is not None:
            self._calls.republished(fetch)

    def reply(self, device: str, outbox: int, hi: int, settled: Sequence[Settled]) -> None:
        self._count_action()
        self._calls.reply(device, outbox, hi, tuple(settled))

    def grant(self, device: str, update: Update, hi: int, now: float) -> None:
        answer = self._reassembler.grant(device, update, self._setup.chunk, now)
        if isinstance(answer, Settled):
            self._calls.reply(device, update.outbox, hi, (answer,))
        elif self._calls.granted is not None:
            self._calls.granted(device, update.outbox, hi, answer)

    def drop(self, key: int) -> None:
        self._bodies.pop(key, None)

    def flush(self, now: float) -> None:
        """Do nothing: replies are sent at once."""

    def serving(self) -> dict[str, Any]:
        """The model that users would get, all tensors by name: the published or the served one."""
        return self.model.used().parameters()

    def _publish(self, frames: Sequence[Frame] = ()) -> None:
        self.publisher.publish(self.core, self.model, self.now, frames)

    def _schedule(self) -> None:
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


class _ProcessEnded(Exception):
    """The process has ended within a batch."""


@dataclass(slots=True)
class _Body:
    """What the shell holds under one key."""

    decoded: DecodedUpdate | None = None
    """Of an update."""
    packed: bytes = b""
    """Of statistics."""
    direction: Vector | None = None
