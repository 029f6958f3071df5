"""The aggregator's decisions, without I/O, without arrays and without a clock.

Events in, actions out. The order of the actions is the durability argument: what a device is told stands behind the
journal record of it. What the core remembers is in `core_state` and changes in one place, which a live decision and the
replay of the journal share; so a restart ends where the process had been.

Exactly once: for each device and outbox there is a high-water mark `hi`, up to which all is settled, and the
verdicts of the last 16. An update is decided on only if its seq is hi + 1; one below is a repeat and gets its old
verdict, one above is answered with hi, so that the device goes back to it.

The decisions themselves are in parts with one question each: whether an update is taken (`update_admission`), when a
step is made and of what (`step_planner`), when a version is released (`release_schedule`), and what comes before any
training (`statistics_phase`). This file puts them into an order, and into actions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.participation_controller import Steering
from midge.aggregator.core.registry_decisions import RegistryDecisions
from midge.aggregator.core.release_pacer import Thrift
from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.sequence_tracker import TrackedOutbox
from midge.aggregator.core.state import Buffered, CoreState
from midge.aggregator.core.statistics_phase import StatisticsPhase
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Form, Strategy
from midge.aggregator.core.update_admission import MOST, Bounds, Conditions, UpdateAdmission
from midge.aggregator.core.view import AGAIN, CoreView
from midge.aggregator.model.statistics import FACTOR
from midge.wire.messages import Moment, Settled, Statistics, Update, Verdict

__all__ = ["AggregatorCore", "Bounds"]


class AggregatorCore(CoreView):
    """Decides on updates, steps and releases.

    Args:
        strategy: when and how updates become the next model.
        lineage: of the store.
        schema_hash: of the model.
        moments: statistics to ask for before training.
        statistics_devices: how many devices' statistics are pooled.
        statistics_deadline: seconds after which those of fewer are.
        statistics_factor: how far apart they may be.
        bounds: what is taken on at most.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        lineage: bytes,
        schema_hash: bytes,
        moments: Sequence[Moment] = (),
        statistics_devices: int = 0,
        statistics_deadline: float = 10.0,
        statistics_factor: float | None = FACTOR,
        bounds: Bounds | None = None,
    ) -> None:
        self.strategy, self.lineage, self.schema_hash = strategy, lineage, schema_hash
        self.moments = tuple(moments)
        self.statistics_factor = statistics_factor
        """For whoever examines statistics; None takes any."""
        self.bounds = bounds or Bounds()
        self.steering = Steering(strategy.pace)
        """Who takes part."""
        self.thrift = Thrift(strategy.byte_rate, self.steering)
        self._state = CoreState(strategy, self.steering, self.bounds.devices, frozen=not moments)
        self._conditions = Conditions()
        self._admission = UpdateAdmission(
            strategy,
            self._state,
            self._conditions,
            lineage=lineage,
            schema_hash=schema_hash,
            bounds=self.bounds,
        )
        self._steps = StepPlanner(strategy, self._state, self.steering, self.bounds)
        self._releases = ReleaseSchedule(strategy, self._state, self.thrift)
        self._gathering = StatisticsPhase(self._state, lineage, self.moments, statistics_devices, statistics_deadline)
        self.registering = RegistryDecisions(self._state)
        """What is decided about registered versions; the records are for `note` and `roll_back`."""
        self._told_at = float("-inf")

    # ---------------------------------------------------------------------- events

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """What to do about an event. `now` is seconds of any clock that never goes back."""
        match event:
            case ev.Arrived(device, update, key):
                return self._arrived(device, update, key, now)
            case ev.Decoded():
                return self._decoded(event, now)
            case ev.Undecodable(device, update, key, verdict, why):
                return [*self._refuse(device, update, verdict, why), ev.Drop(key)]
            case ev.Greeted(device, outbox, first):
                return [self._greeted(device, outbox, first)]
            case ev.Offered(device, update):
                return self._offered(device, update, now)
            case ev.Measured(distances):
                return self._measured(dict(distances), now)
            case ev.StatisticsArrived(device, statistics, key, digest):
                return self._statistics_arrived(device, statistics, key, digest, now)
            case ev.Examined():
                return self._examined(event, now)
            case ev.FetchAsked(_, fetch):
                return [ev.Republish(fetch)] if fetch.lineage == self.lineage else []
            case ev.Revoked(device):
                return [do for record in self._state.revoke(device) for do in (ev.Journal(record), ev.Carry(record))]
            case _:
                self._note(event)
                return []

    def _note(self, event: ev.Event) -> None:
        """Follow a condition around the core; what it changes is done at the next event or tick."""
        match event:
            case ev.DevicesOnline(count):
                self.steering.reckon(len(self._state.heard), online=count)
            case ev.StoreFilled(why):
                self._conditions.full = why
            case ev.StoreWritable():
                self._conditions.full = None
            case ev.OperatorPaused(why):
                self._conditions.paused = why
            case ev.InputsCompared(names, unlike):
                self._conditions.features, self._conditions.unlike = names, unlike
            case ev.ClockCompared(ahead):
                self._state.versions.ahead = ahead
            case ev.ReleaseCarried(version, digest):
                self._state.carried(version, digest)
            case ev.ReleasePublished(announcement, step):
                self.thrift.costs = announcement, step
            case ev.MovementFollowed(quiet):
                self.steering.quiet = quiet

    def tick(self, now: float) -> list[ev.Action]:
        """What the passing of time asks for."""
        if self._conditions.full is not None:
            return []
        self.thrift.follow(now)
        actions: list[ev.Action] = []
        if _past(self._steps.due, now):
            actions += self._make_step(now)
        if not self._state.frozen and _past(self._gathering.due, now):
            actions += self._gathering.examine()
        if self.steering.tick(now, starved=self._steps.due is None and not self._releases.releasable):
            actions += [*self._write(self._state.pace()), self._announce()]
        # A crowd that comes at once is announced at most once a second: each announcement goes to all of it.
        if now >= self._told_at + AGAIN and self.thrift.grown:
            self._told_at = now
            actions.append(self._announce())
        return actions + self._maybe_release(now) + self._maybe_serve(now)

    def _announce(self) -> ev.Announce:
        self.thrift.announced()
        return ev.Announce()

    def start(self, now: float) -> list[ev.Action]:
        """Begin, after the journal has been replayed: the first release, or what is due since."""
        state = self._state
        self.thrift.begin(state.outboxes.devices, now)
        state.versions.shift(now)
        actions: list[ev.Action] = []
        if state.buffer:
            self._steps.arrived(now)
            self._steps.heard(now)
            if self._steps.filled:
                # If another strategy has left several updates, perhaps of bases that are gone, they are not mixed.
                actions += self._make_step(now, form="delta")
        self._gathering.begin(now)
        self.steering.begin(now)
        if state.version == 0 and state.frozen:
            actions += self._release(now)
        return actions + self._maybe_release(now)

    def begin_generation(self, generation: int, version: int, now: float) -> list[ev.Action]:
        """Go on behind a version that devices know and this store does not: it had been put back."""
        state = self._state
        newer = max(generation, state.generation) + 1
        record = rec.GenerationRecord(state.next, newer, max(version, state.version))
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=False)]

    def renormalise(self) -> rec.RenormaliseRecord:
        """Begin a generation that gathers statistics again; the record is to be written."""
        record = rec.RenormaliseRecord(self._state.next, self._state.generation + 1)
        self._state.take(record)
        return record

    def note(self, record: rec.Record, key: int | None = None) -> list[ev.Action]:
        """Write a decision that was made beside the core, with the body under `key`, and have it carried out."""
        return [*self._write(record, key), ev.Carry(record)]

    def roll_back(self, record: rec.RollbackRecord, key: int, now: float) -> list[ev.Action]:
        """Go on from a registered version, whose snapshot is under `key`, as a new generation."""
        return [*self.note(record, key), *self._release(now, moved=False)]

    def note_strategy(self, strategy: str) -> list[ev.Action]:
        """Write into the journal who decides from here on."""
        return self._write(rec.StrategyRecord(self._state.next, strategy))

    # --------------------------------------------------------------------- updates

    def _offered(self, device: str, update: Update, now: float) -> list[ev.Action]:
        outbox = self._raised(device, update.outbox, update.first)
        if (settled := self._admission.hold(device, update, outbox)) is not None:
            return [self._held(device, update, outbox, settled)]
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox)]
        if update.seq <= outbox.claimed:
            return []
        if update.seq != outbox.hi + 1:
            return [ev.Reply(device, update.outbox, outbox.hi)]
        # Refused by its header, before a byte of a large body is sent.
        if (bad := self._admission.refusal(device, update, now)) is not None:
            return self._refuse(device, update, *bad)
        return [ev.GrantChunks(device, update, outbox.hi)]

    def _arrived(self, device: str, update: Update, key: int, now: float) -> list[ev.Action]:
        outbox = self._raised(device, update.outbox, update.first)
        drop = ev.Drop(key)
        if (settled := self._admission.hold(device, update, outbox)) is not None:
            return [self._held(device, update, outbox, settled), drop]
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox), drop]
        if update.seq <= outbox.claimed:
            return [drop]  # it is being decoded: its receipt is on the way
        # In order only: a verdict on a later one would settle this one, of which nothing is known yet.
        if update.seq != outbox.claimed + 1:
            return [ev.Reply(device, update.outbox, outbox.hi), drop]
        if (bad := self._admission.refusal(device, update, now)) is not None:
            if outbox.claimed != outbox.hi:
                return [drop]  # one before it is undecided: the device sends it again
            return [*self._refuse(device, update, *bad), drop]
        outbox.claimed = update.seq
        return [ev.Decode(device, update, key)]

    def _decoded(self, event: ev.Decoded, now: float) -> list[ev.Action]:
        device, update, key, norm = event.device, event.update, event.key, event.norm
        state = self._state
        if norm > self.bounds.norm:
            why = f"its norm {norm:.3g} is beyond {self.bounds.norm:.3g}, more than the model's grid can follow"
            return [*self._refuse(device, update, Verdict.NORM_TOO_LARGE, why), ev.Drop(key)]
        # Before the record is made: this update's own norm is one of those that it is compared with.
        state.fleet.heard(device, update.seconds, now, age=state.versions.age(update.base, now), steps=update.steps)
        self._steps.heard(now)
        record = self._admission.accepted(event, now)
        # A rule in which each update is a step has no other updates to weigh against: its weight is its rate.
        told = record.weight * self._steps.mean_rate if self.strategy.single else record.weight
        said = record.settled(told)
        actions = [*self._write(record, key), ev.Reply(device, update.outbox, update.seq, (said,))]
        self.steering.reckon(len(state.heard))
        self.steering.came(state.fleet.seconds())
        self.thrift.came(update.size)
        self._steps.arrived(now)
        if self._steps.filled:
            actions += self._make_step(now)
        # Dropped behind the step: the body is read from there until then.
        return [*actions, ev.Drop(key), *self._maybe_release(now)]

    def _held(self, device: str, update: Update, outbox: TrackedOutbox | None, settled: Settled) -> ev.Reply:
        """Refuse for now. It leaves no record: nothing is settled."""
        self._state.counts[settled.verdict.value] += 1
        return ev.Reply(device, update.outbox, 0 if outbox is None else outbox.hi, (settled,))

    def _refuse(self, device: str, update: Update, verdict: Verdict, why: str) -> list[ev.Action]:
        """Settle an update that is not taken: journaled, or a repeat after a restart could be taken after all."""
        record = self._admission.refused(device, update, verdict, why)
        return [*self._write(record), ev.Reply(device, update.outbox, update.seq, (record.settled(),))]

    def _repeat(self, device: str, update: Update, outbox: TrackedOutbox) -> ev.Reply:
        self._state.counts["duplicate"] += 1
        return ev.Reply(device, update.outbox, outbox.hi, outbox.repeat(update.seq))

    def _greeted(self, device: str, number: int, first: int) -> ev.Reply:
        """What we have of an outbox, with the verdicts on what it still holds: their receipts were lost."""
        if self._state.outboxes.get(device, number) is None:
            return ev.Reply(device, number, first - 1)  # what it says of itself is not remembered before it sends
        outbox = self._raised(device, number, first)
        assert outbox is not None
        return ev.Reply(device, number, outbox.hi, outbox.verdicts(first))

    def _raised(self, device: str, number: int, first: int) -> TrackedOutbox | None:
        return self._state.outboxes.raised(device, number, first, self._state.oldest_base)

    def forget(self, device: str, alias: str) -> ev.Journal:
        """Remove what is known of a device, of which no update may wait. A checkpoint must follow."""
        return ev.Journal(self._state.forget(device, alias))

    # ---------------------------------------------------------- steps and releases

    def _make_step(self, now: float, *, form: Form | None = None) -> list[ev.Action]:
        """Apply what is in the buffer, and what is due after it."""
        steps, state = self._steps, self._state
        if not state.buffer or steps.measuring or now < steps.comparable_from:
            return []
        if self.strategy.combine == "centred":
            steps.measuring = True
            return [ev.Measure(tuple(item.lsn for item in state.buffer))]
        if not self.strategy.single or form is not None:
            return self._step([steps.bounded(item, now) for item in state.buffer], state.buffer, now, form=form)
        actions: list[ev.Action] = []
        while state.buffer:
            actions += self._step([steps.bounded(state.buffer[0], now)], state.buffer[:1], now)
        return actions

    def _measured(self, distances: Mapping[int, float], now: float) -> list[ev.Action]:
        """Go on with a step of centred clipping; what came meanwhile is of the next."""
        self._steps.measuring = False
        return self._step(*self._steps.centred(distances), now) + (self._make_step(now) if self._steps.filled else [])

    def _step(
        self, scales: Sequence[float], updates: Sequence[Buffered], now: float, form: Form | None = None
    ) -> list[ev.Action]:
        record = self._steps.record(scales, updates, form)
        self._state.take(record)
        self._steps.made(now)
        # Where each update is a step, behind the last that waits: a release may forget a version that is mixed with.
        released = [] if self.strategy.single and self._state.buffer else self._maybe_release(now)
        return [ev.Journal(record, noise=record.noise), ev.Carry(record), *released]

    def _maybe_release(self, now: float) -> list[ev.Action]:
        return self._release(now) if self._releases.ready(now) else []

    def _release(self, now: float, *, moved: bool = True) -> list[ev.Action]:
        state = self._state
        devices = len(state.contributors) if moved else 0
        at, decay = now + state.versions.ahead, self.strategy.serve_decay or None
        pace = self._write(state.pace()) if state.weigh_work() else []
        record = rec.ReleaseRecord(state.next, state.version + 1, state.step, devices, at, decay)
        self._releases.released_at = now
        self.thrift.released(now)
        self.steering.released(now)
        return [*pace, *self._write(record), ev.Carry(record), *self._maybe_serve(now)]

    def _maybe_serve(self, now: float) -> list[ev.Action]:
        if not _past(self._releases.serve_due, now):
            return []
        self._releases.served_at = now
        record = rec.ServeRecord(self._state.next, self._state.version, self._state.step)
        return [*self._write(record), ev.Carry(record)]

    # ------------------------------------------------------------------ statistics

    def _statistics_arrived(
        self, device: str, sent: Statistics, key: int, digest: bytes, now: float
    ) -> list[ev.Action]:
        if self.full is not None or not self._gathering.admits(device, sent, digest):
            return [ev.Drop(key)]
        record = rec.StatisticsRecord(self._state.next, device, sent.names, min(sent.missing, MOST), digest)
        actions = [*self._write(record, key), ev.Drop(key)]
        return actions + (self._gathering.examine() if self._gathering.arrived(now) else [])

    def _examined(self, found: ev.Examined, now: float) -> list[ev.Action]:
        record = self._gathering.examined(found, now)
        if record is None:
            return []
        # New constants for the model that was published: what x has beyond it may be the work of one device.
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=not record.keep)]

    # ------------------------------------------------------------- what is remembered

    def _write(self, record: rec.Record, key: int | None = None) -> list[ev.Action]:
        self._state.take(record)
        return [ev.Journal(record, key)]

    def replay(self, record: rec.Record) -> None:
        """Take a record of the journal as decided; a ValueError if it does not follow on the one before."""
        self._state.replay(record)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self._state.load(state)

    def forget_bases(self, before: int) -> None:
        """Take no more updates of versions before this one: they cannot be rebuilt."""
        self._state.versions.forget_before(before)


def _past(due: float | None, now: float) -> bool:
    return due is not None and now >= due
