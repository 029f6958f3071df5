"""The aggregator's decisions, without I/O, without arrays and without a clock.

Events in, actions out. Durability rests on the order of the actions: a reply follows the journal record of what it
says. The core's state (`state`) changes in one function, shared by live decisions and the replay of the journal; so
recovery restores the state that the process had.

Exactly once: each outbox of a device has a high-water mark `hi`, up to which everything is settled, and the verdicts
of its last 16 updates. Only the update with seq hi + 1 is decided on. A lower seq is a duplicate and gets its earlier
verdict; a higher one is answered with hi, and the device resumes there.

Each decision has a module: whether an update is accepted (`update_admission`), when a step is made and from which
updates (`step_planner`), when a version is released (`release_schedule`), and the statistics before training
(`statistics_phase`). This module orders their decisions and turns them into actions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import Buffered
from midge.aggregator.core.masked_sums import MaskedSums
from midge.aggregator.core.participation_controller import ParticipationController
from midge.aggregator.core.privacy import arguments
from midge.aggregator.core.registry_decisions import RegistryDecisions
from midge.aggregator.core.release_pacer import ReleasePacer
from midge.aggregator.core.release_schedule import ReleaseSchedule
from midge.aggregator.core.sequence_tracker import TrackedOutbox
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.statistics_phase import StatisticsPhase
from midge.aggregator.core.step_planner import StepPlanner
from midge.aggregator.core.strategy import Form, Strategy
from midge.aggregator.core.turn import Turn
from midge.aggregator.core.update_admission import Bounds, Conditions, UpdateAdmission
from midge.aggregator.core.view import REANNOUNCE, CoreView
from midge.aggregator.model.statistics import FACTOR
from midge.wire.messages import Moment, Settled, Update, Verdict

__all__ = ["AggregatorCore", "Bounds"]


class AggregatorCore(CoreView):
    """Decides on updates, steps and releases.

    Args:
        strategy: when and how updates become the next model.
        lineage: of the store.
        schema_hash: of the model.
        moments: statistics to request before training; none trains at once.
        statistics_devices: number of devices whose statistics are pooled.
        statistics_deadline: seconds after which the statistics of fewer devices are pooled.
        statistics_factor: see `aggregator.model.statistics.FACTOR`.
        bounds: limits of one update and of the number of devices.
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
        """Outlier bound for the host's `examine`; None excludes only sentinels."""
        self.bounds = bounds or Bounds()
        self.steering = ParticipationController(strategy.pace)
        """Which share of the devices trains."""
        self.thrift = ReleasePacer(strategy.byte_rate, self.steering)
        self._state = CoreState(strategy, self.steering, self.bounds.devices, frozen=not moments)
        self._conditions = Conditions()
        self._admission = UpdateAdmission(
            strategy, self._state, self._conditions, lineage=lineage, schema_hash=schema_hash, bounds=self.bounds
        )
        self._turn = Turn(strategy, self._state, self.steering)
        self._steps = StepPlanner(strategy, self._state, self.steering, self.bounds, self._turn)
        self._releases = ReleaseSchedule(strategy, self._state, self.thrift, self._turn)
        self._gathering = StatisticsPhase(
            self._state, self._conditions, lineage, moments, devices=statistics_devices, deadline=statistics_deadline
        )
        self.registering = RegistryDecisions(self._state)
        """Decides on registered versions; its records are for `note` and `roll_back`."""
        self.sums = MaskedSums(strategy, self._state, self._steps)
        self._announced_at = float("-inf")

    # ---------------------------------------------------------------------- events

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Decide on an event; return the actions in the order to execute. `now` is in seconds of a monotonic clock."""
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
            case ev.StatisticsArrived():
                return self._statistics_arrived(event, now)
            case ev.Examined():
                return self._examined(event, now)
            case ev.FetchAsked(_, fetch):
                return [ev.Republish(fetch)] if fetch.lineage == self.lineage else []
            case ev.Revoked(device):
                return self._drop(self._state.withdrawn_with(device), "revoked")
            case ev.InputsCompared():
                self._conditions.take(event)
                return self._drop(self._gathering.refused, "unlike")
            case _:
                self._note(event)
                return []

    def _note(self, event: ev.Event) -> None:
        """Record a condition of the surroundings. Its consequences follow at the next event or tick."""
        match event:
            case ev.DevicesOnline(count, idle):
                self.steering.count_devices(len(self._state.heard), online=count, idle=idle)
            case ev.StoreFilled() | ev.StoreWritable() | ev.OperatorPaused():
                self._conditions.take(event)
            case ev.ClockCompared(ahead):
                self._state.versions.ahead = ahead
            case ev.ReleaseCarried(version, digest):
                self._state.carried(version, digest)
            case ev.ReleasePublished(announcement, step):
                self.thrift.costs = announcement, step
            case ev.MovementFollowed(quiet):
                self.steering.quiet = quiet

    def tick(self, now: float) -> list[ev.Action]:
        """Return the actions that are due."""
        # Without room for a record nothing can be decided, whatever is due.
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
        if now >= self._announced_at + REANNOUNCE and self.thrift.grown:
            self._announced_at = now
            actions.append(self._announce())
        return actions + self._maybe_release(now) + self._maybe_serve(now)

    def _announce(self) -> ev.Announce:
        self.thrift.announced()
        return ev.Announce()

    def start(self, now: float) -> list[ev.Action]:
        """Start after the replay of the journal: make the first release, or what became due meanwhile."""
        state = self._state
        self.thrift.begin(state.outboxes.devices, now)
        self._turn.begin(now)
        state.versions.shift(now)
        actions: list[ev.Action] = []
        if state.buffer:
            self._steps.arrived(now)
            self._steps.heard(now)
            if self._steps.filled:
                # The buffer may be another strategy's: mixing needs the models of its bases, which may be gone.
                actions += self._make_step(now, form="delta")
        self._gathering.begin(now)
        self.steering.begin(now)
        if state.version == 0 and state.frozen and not self.strategy.relays:  # the initial model, to train from
            actions += self._release(now)
        return actions + self._maybe_release(now)

    def begin_generation(self, generation: int, version: int, now: float) -> list[ev.Action]:
        """Continue above a generation and version that devices know and a restored store does not."""
        state = self._state
        newer = max(generation, state.generation) + 1
        record = rec.GenerationRecord(state.next, newer, max(version, state.version))
        # Not moved: the first release of the generation publishes the same model, with no device's work in it.
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=False)]

    def renormalise(self) -> rec.RenormaliseRecord:
        """Begin a generation that gathers statistics again; return the record for the caller to commit."""
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
        """Journal the strategy that decides from now on."""
        return self._write(rec.StrategyRecord(self._state.next, strategy, arguments(self.strategy.privacy)))

    # --------------------------------------------------------------------- updates

    def _offered(self, device: str, update: Update, now: float) -> list[ev.Action]:
        outbox = self._advance_to(device, update.outbox, update.first)
        if (settled := self._admission.hold(device, update, outbox)) is not None:
            return [self._held(device, update, outbox, settled)]
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox)]
        if update.seq <= outbox.claimed:
            return []  # all its chunks are here, and it is being decoded: its receipt follows
        if update.seq != outbox.hi + 1:
            return [ev.Reply(device, update.outbox, outbox.hi)]
        # A large update is refused by its header, before its chunks are sent.
        if (bad := self._admission.refusal(device, update, now)) is not None:
            return self._refuse(device, update, *bad)
        return [ev.GrantChunks(device, update, outbox.hi)]

    def _arrived(self, device: str, update: Update, key: int, now: float) -> list[ev.Action]:
        outbox = self._advance_to(device, update.outbox, update.first)
        drop = ev.Drop(key)
        if (settled := self._admission.hold(device, update, outbox)) is not None:
            return [self._held(device, update, outbox, settled), drop]
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox), drop]
        if update.seq <= outbox.claimed:
            return [drop]  # a duplicate of an update that is being decoded, whose receipt follows
        # In order only: hi covers every lower seq, so a verdict on a later update would settle a missing one.
        if update.seq != outbox.claimed + 1:
            return [ev.Reply(device, update.outbox, outbox.hi), drop]
        if (bad := self._admission.refusal(device, update, now)) is not None:
            if outbox.claimed != outbox.hi:
                return [drop]  # an earlier update is undecided; the device retransmits this one
            return [*self._refuse(device, update, *bad), drop]
        outbox.claimed = update.seq
        return [ev.Decode(device, update, key)]

    def _decoded(self, event: ev.Decoded, now: float) -> list[ev.Action]:
        device, update, key, norm = event.device, event.update, event.key, event.norm
        state = self._state
        # A private strategy scales it down like any other: a refusal would depend on the device's data.
        if norm > self.bounds.norm and self.strategy.privacy is None:
            why = f"its norm {norm:.3g} is above {self.bounds.norm:.3g}, more than the model's grid can follow"
            return [*self._refuse(device, update, Verdict.NORM_TOO_LARGE, why), ev.Drop(key)]
        # Before the record: its weight and scale depend on which devices count as recently heard.
        state.fleet.heard(device, update.seconds, now, age=state.versions.age(update.base, now), steps=update.steps)
        self._steps.heard(now)
        record = self._admission.accepted(event, now)
        # If each update is a step, its weight is not relative to others': what it counts is weight times rate.
        weight = record.weight * self._steps.mean_rate if self.strategy.single else record.weight
        settled = record.settled(weight)
        actions = [*self._write(record, key), ev.Reply(device, update.outbox, update.seq, (settled,))]
        self.steering.count_devices(len(state.heard))
        self.steering.count_update(state.fleet.seconds())
        self.thrift.count_update(update.size)
        self._steps.arrived(now)
        if self._steps.filled:
            actions += self._make_step(now)
        # Dropped after the step, which may read the body.
        return [*actions, ev.Drop(key), *self._maybe_release(now)]

    def _held(self, device: str, update: Update, outbox: TrackedOutbox | None, settled: Settled) -> ev.Reply:
        """Refuse an update for now. Nothing is settled, so nothing is journaled."""
        self._state.counts[settled.verdict.value] += 1
        return ev.Reply(device, update.outbox, 0 if outbox is None else outbox.hi, (settled,))

    def _refuse(self, device: str, update: Update, verdict: Verdict, why: str) -> list[ev.Action]:
        """Settle an update as refused. Journaled, or a retransmission after a restart could be accepted."""
        record = self._admission.refused(device, update, verdict, why)
        self._turn.refused(device, update.base)
        return [*self._write(record), ev.Reply(device, update.outbox, update.seq, (record.settled(),))]

    def _repeat(self, device: str, update: Update, outbox: TrackedOutbox) -> ev.Reply:
        self._state.counts["duplicate"] += 1
        return ev.Reply(device, update.outbox, outbox.hi, outbox.repeat(update.seq))

    def _greeted(self, device: str, number: int, first: int) -> ev.Reply:
        """Answer with the state of an outbox, and the verdicts whose receipts were lost: on updates that it holds."""
        # A greeting takes no room in the table: names cost nothing.
        if self._state.outboxes.get(device, number) is None:
            return ev.Reply(device, number, first - 1)
        outbox = self._advance_to(device, number, first)
        assert outbox is not None
        return ev.Reply(device, number, outbox.hi, outbox.verdicts(first))

    def _advance_to(self, device: str, number: int, first: int) -> TrackedOutbox | None:
        return self._state.outboxes.advance_to(device, number, first, self._state.oldest_base)

    def forget(self, device: str, alias: str, before: int = 0) -> ev.Journal:
        """Erase a device of which no update waits; bases older than `before` are stale. A checkpoint must follow."""
        return ev.Journal(self._state.forget(device, alias, before))

    # ---------------------------------------------------------- steps and releases

    def _make_step(self, now: float, *, form: Form | None = None) -> list[ev.Action]:
        """Make a step of the buffer, and what becomes due by it."""
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
        """Complete a step of centred clipping; updates that arrived meanwhile wait for the next one."""
        self._steps.measuring = False
        return self._step(*self._steps.centred(distances), now) + (self._make_step(now) if self._steps.filled else [])

    def _step(
        self, scales: Sequence[float], updates: Sequence[Buffered], now: float, form: Form | None = None
    ) -> list[ev.Action]:
        record = self._steps.record(scales, updates, form)
        self._state.take(record)
        self._steps.made(now)
        # With one update to a step, release after the whole buffer: a release may forget a base that mixing needs.
        released = [] if self.strategy.single and self._state.buffer else self._maybe_release(now)
        return [ev.Journal(record, noise=math.ldexp(record.noise, -record.grid)), ev.Carry(record), *released]

    def _maybe_release(self, now: float) -> list[ev.Action]:
        return self._release(now) if self._releases.ready(now) else []

    def _release(self, now: float, *, moved: bool = True) -> list[ev.Action]:
        state = self._state
        devices = state.hiding if moved else 0
        at, decay = now + state.versions.ahead, self.strategy.serve_decay or None
        # Before the release, so that its announcement has the new number of local steps.
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

    def _statistics_arrived(self, event: ev.StatisticsArrived, now: float) -> list[ev.Action]:
        if (record := self._gathering.record(event)) is None:
            return [ev.Drop(event.key)]
        return [*self._write(record, event.key), ev.Drop(event.key), *self._gathering.arrived(now)]

    def _examined(self, found: ev.Examined, now: float) -> list[ev.Action]:
        record = self._gathering.examined(found, now)
        if record is None:
            return []
        # A model that was published keeps its values: what x has beyond them may be the work of one device.
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=not record.keep)]

    # ----------------------------------------------------------------------- state

    def _write(self, record: rec.Record, key: int | None = None) -> list[ev.Action]:
        self._state.take(record)
        return [ev.Journal(record, key)]

    def _drop(self, waiting: tuple[int, ...], why: str) -> list[ev.Action]:
        return [do for record in self._state.drop(waiting, why) for do in (ev.Journal(record), ev.Carry(record))]

    def replay(self, record: rec.Record) -> None:
        """Apply a record of the journal, as `CoreState.replay`."""
        self._state.replay(record)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from the result of `dump`."""
        self._state.load(state)

    def forget_bases(self, before: int) -> None:
        """Refuse updates of versions before this one, because their models cannot be rebuilt."""
        self._state.versions.forget_before(before)


def _past(due: float | None, now: float) -> bool:
    return due is not None and now >= due
