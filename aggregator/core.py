"""The aggregator's decisions, without I/O, without arrays and without a clock.

Events in, actions out. The order of the actions is the durability argument: what a device is told stands behind the
journal record of it. Everything that the core remembers changes in one place, `_take`, which a live decision and the
replay of the journal share; so a restart ends where the process had been.

Exactly once: for each device and outbox there is a high-water mark `hi`, up to which all is settled, and the
verdicts of the last 16. An update is decided on only where its seq is hi + 1; one below is a repeat and gets its old
verdict, one above is answered with hi, so that the device goes back to it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator import events as ev
from aggregator import records as rec
from aggregator.fairness import Participations
from aggregator.fleet_statistics import FEWEST, FleetStatistics
from aggregator.growth import GrowthGuard
from aggregator.margin import Margin
from aggregator.outboxes import Outbox, Outboxes
from aggregator.pace import Steering
from aggregator.standing import Standings
from aggregator.statistics import CAP
from aggregator.strategy import Form, Strategy, Waiting
from aggregator.thrift import Thrift
from aggregator.versions import Versions
from wire import codecs, sealing
from wire.errors import WireError
from wire.messages import Moment, Settled, Statistics, Update, Verdict
from wire.schema import Schema

_FIRST_WAIT = 10.0
"""Seconds for which the first step waits for the norms of three devices: some devices may never train."""
_OFTEN = 10.0
"""Times the rate of updates of the device in the middle beyond which a device counts less in filling a buffer: the
fastest of twenty devices with log-normal speeds (σ = 1.2) reaches ten."""
_TRAININGS = 5.0
"""Median trainings for which a round waits at most."""
_CLAIM = 4.0
"""Times the fleet's median that a device's own count of rows weighs at most."""
_MOST_STATISTICS = 256
"""Devices whose statistics are kept at most, unless more are asked for."""
_TURNS_LEAST = 0.1
"""Of what all devices learned in one training: a model that moves by less takes more than ten times as long."""
_STILL = 60.0
"""Seconds that a channel which never changed is waited for."""
_AGAIN = 1.0
"""Seconds between two announcements that only tell of more devices."""
_ROUNDING = 1 - 1e-6
"""A clipped delta stays below its bound whatever float32 makes of the product."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of what the core takes on, against peers that would fill the memory or run the model off its grid."""

    devices: int = 100_000
    update: int = 2**30
    """Bytes of one update's encoded delta."""
    norm: float = 2.0**60
    """L2 norm beyond which an update is refused: the model's grid cannot follow it."""
    step: float = 2.0**30
    """L2 norm that an update is scaled down to from a store's first update on, before the fleet's norms are known."""

    @classmethod
    def of(cls, schema: Schema) -> "Bounds":
        """With an update of any codec no larger than the model's values as they are, and one scale, and sealed.

        One update moves a parameter by a million in the root mean square at most: normalised models stay within tens.
        """
        return cls(update=4 * schema.size + 4 + sealing.OVERHEAD, step=2.0**20 * max(schema.size, 1) ** 0.5)


@dataclass(frozen=True, slots=True)
class Buffered(Waiting):
    """An accepted update that waits for its step, by its lsn."""

    lsn: int = 0


class AggregatorCore:
    """Decides on updates, steps and releases."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        lineage: bytes,
        schema_hash: bytes,
        moments: Sequence[Moment] = (),
        statistics_devices: int = 0,
        statistics_deadline: float = 10.0,
        bounds: Bounds | None = None,
    ) -> None:
        self.strategy = strategy
        self.lineage = lineage
        self.schema_hash = schema_hash
        self.moments = tuple(moments)
        self.bounds = bounds or Bounds()
        self.full: str | None = None
        """Why nothing can be decided if the store has no room: all is refused for now, and no timer does anything."""
        self.paused: str | None = None
        """Why nothing is accepted if the operator has paused."""
        self.features: tuple[str, ...] = ()
        """Names of the model's inputs, in order; empty if they are not known."""
        self.unlike: Mapping[str, str] = {}
        """Devices whose inputs are not the model's, each with why in words: nothing of theirs is taken."""
        self._statistics_devices = statistics_devices
        self._statistics_deadline = statistics_deadline
        # --- what the journal can rebuild
        self.lsn = 0
        self.generation = 0
        self.version = 0
        self.step = 0
        self.frozen = not moments
        self.counts: Counter[str] = Counter()
        self._outboxes = Outboxes(self.bounds.devices)
        self._heard = Participations()
        self._margin = Margin(strategy.calibration, strategy.momentum, normalised=strategy.normalise == "weight")
        self._fleet = FleetStatistics()
        self._standings = Standings()
        self._versions = Versions()
        self.served = 0
        """The version that was last released for use."""
        self._buffer: list[Buffered] = []
        self._contributors: set[str] = set()
        self._statistics: dict[str, int] = {}
        self._digests: dict[str, bytes] = {}
        """Of each device's statistics."""
        # --- timers, which are not replayed: they start over with the process
        self._buffer_since: float | None = None
        self._statistics_since: float | None = None
        self._gathering_since: float | None = None
        self._examining = False
        self._unfit: str | None = None
        """Why the statistics that are here cannot be pooled, in words."""
        self._released_at: float | None = None
        self._served_at: float | None = None
        self._told_at = float("-inf")
        self._measuring = False
        self._first_heard_at: float | None = None
        self.growth = GrowthGuard()
        self.steering = Steering(strategy.pace)
        """Who takes part."""
        self.thrift = Thrift(strategy.byte_rate, self.steering)

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
            case ev.StatisticsArrived(device, statistics_, key, digest):
                return self._statistics_arrived(device, statistics_, key, digest, now)
            case ev.Examined():
                return self._examined(event, now)
            case ev.FetchAsked(_, fetch):
                return [ev.Republish(fetch)] if fetch.lineage == self.lineage else []
            case _:
                self._note(event)
                return []

    def _note(self, event: ev.Event) -> None:
        """Follow a condition around the core; what it changes is done at the next event or tick."""
        match event:
            case ev.DevicesOnline(count):
                self.steering.live = count
            case ev.StoreFilled(why):
                self.full = why
            case ev.StoreWritable():
                self.full = None
            case ev.OperatorPaused(why):
                self.paused = why
            case ev.InputsCompared(names, unlike):
                self.features, self.unlike = names, unlike
            case ev.ReleasePublished(announcement, step):
                self.thrift.costs = announcement, step

    def tick(self, now: float) -> list[ev.Action]:
        """What the passing of time asks for."""
        if self.full is not None:
            return []
        self.thrift.follow(now)
        actions: list[ev.Action] = []
        if (due := self._step_due) is not None and now >= due:
            actions += self._make_step(now)
        if not self.frozen and _due(self._statistics_since, self._statistics_deadline, now):
            actions += self._freeze()
        if self.steering.tick(now):
            actions += [*self._write(rec.PaceRecord(self._next(), self.steering.share)), self._announce()]
        if _due(self._told_at, _AGAIN, now) and self.thrift.grown:
            self._told_at = now
            actions.append(self._announce())
        return actions + self._maybe_release(now) + self._maybe_serve(now)

    def _announce(self) -> ev.Announce:
        self.thrift.announced()
        return ev.Announce()

    @property
    def deadline(self) -> float | None:
        """When `tick` next has something to do; None where only an event can bring that."""
        if self.full is not None:
            return None
        times = [self.steering.due, self._serve_due, self._step_due]
        if not self.frozen and self._statistics_since is not None and self._freezable:
            times.append(self._statistics_since + self._statistics_deadline)
        if self._releasable and (due := self._release_due) is not None:
            times.append(due)
        if self.thrift.grown:
            times.append(self._told_at + _AGAIN)
        return min((time for time in times if time is not None), default=None)

    def start(self, now: float) -> list[ev.Action]:
        """Begin, after the journal has been replayed: the first release, or what is due since."""
        self.thrift.begin(self._outboxes.devices, now)
        self._versions.shift(now)
        actions: list[ev.Action] = []
        if self._buffer:
            self._buffer_since = self._first_heard_at = now
            if self._filled:
                # Where another strategy has left several updates, perhaps of bases that are gone, they are not mixed.
                actions += self._make_step(now, form="delta")
        if self._statistics:
            self._statistics_since = self._gathering_since = now
        self.steering.begin(now)
        if self.version == 0 and self.frozen:
            actions += self._release(now)
        return actions + self._maybe_release(now)

    def begin_generation(self, generation: int, version: int, now: float) -> list[ev.Action]:
        """Go on behind a version that devices know and this store does not: it had been put back."""
        newer = max(generation, self.generation) + 1
        record = rec.GenerationRecord(self._next(), newer, max(version, self.version))
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=False)]

    def renormalise(self) -> rec.RenormaliseRecord:
        """Begin a generation that gathers statistics again; the record is to be written."""
        record = rec.RenormaliseRecord(self._next(), self.generation + 1)
        self._take(record)
        return record

    def note_strategy(self, strategy: str) -> list[ev.Action]:
        """Write into the journal who decides from here on."""
        return self._write(rec.StrategyRecord(self._next(), strategy))

    # --------------------------------------------------------------------- updates

    def _offered(self, device: str, update: Update, now: float) -> list[ev.Action]:
        outbox = self._outboxes.raised(device, update.outbox, update.first)
        if refusal := self._hold(device, update, outbox):
            return refusal
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox)]
        if update.seq <= outbox.claimed:
            return []
        if update.seq != outbox.hi + 1:
            return [self._hi(device, update.outbox, outbox)]
        if (bad := self._unfitting(device, update) or self._inadmissible(device, update, now)) is not None:
            return self._refuse(device, update, *bad)
        return [ev.Grant(device, update, outbox.hi)]

    def _arrived(self, device: str, update: Update, key: int, now: float) -> list[ev.Action]:
        outbox = self._outboxes.raised(device, update.outbox, update.first)
        drop = ev.Drop(key)
        if refusal := self._hold(device, update, outbox):
            return [*refusal, drop]
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox), drop]
        if update.seq <= outbox.claimed:
            return [drop]  # it is being decoded: its receipt is on the way
        if update.seq != outbox.claimed + 1:
            return [self._hi(device, update.outbox, outbox), drop]
        if (bad := self._unfitting(device, update) or self._inadmissible(device, update, now)) is not None:
            if outbox.claimed != outbox.hi:
                return [drop]  # one before it is undecided: the device sends it again
            return [*self._refuse(device, update, *bad), drop]
        outbox.claimed = update.seq
        return [ev.Decode(device, update, key)]

    def _decoded(self, event: ev.Decoded, now: float) -> list[ev.Action]:
        device, update, key, norm = event.device, event.update, event.key, event.norm
        if norm > self.bounds.norm:
            why = f"its norm {norm:.3g} is beyond {self.bounds.norm:.3g}, more than the model's grid can follow"
            return [*self._refuse(device, update, Verdict.NORM_TOO_LARGE, why), ev.Drop(key)]
        self._fleet.heard(device, update.seconds, now)
        if self._first_heard_at is None:
            self._first_heard_at = now
        tau = self._staleness(update.base)
        record = rec.UpdateRecord(
            lsn=self._next(),
            device=device,
            outbox=update.outbox,
            seq=update.seq,
            verdict=Verdict.ACCEPTED.value,
            base=update.base,
            staleness=tau,
            weight=self._weight(device, update, tau, now),
            scale=self._scale(update, norm),
            norm=norm,
            codec=update.codec,
            tensors=update.tensors,
            examples=update.examples,
            steps=update.steps,
            size=update.size,
            agreement=event.agreement,
            reference=self._fleet.norm(now),
        )
        told = record.weight * self._mean_rate if self.strategy.single else record.weight
        settled = Settled(seq=update.seq, verdict=Verdict.ACCEPTED, weight=told, staleness=tau)
        actions = [*self._write(record, key), ev.Reply(device, update.outbox, update.seq, (settled,))]
        self.steering.came(self._fleet.seconds())
        self.thrift.came(update.size)
        if self._buffer_since is None:
            self._buffer_since = now
        if self._filled:
            actions += self._make_step(now)
        return [*actions, ev.Drop(key), *self._maybe_release(now)]

    @property
    def _safe_rate(self) -> float | None:
        """The largest rate that the fleet's delays allow."""
        return self._margin.rate(self.strategy.size(self.steering.live))

    @property
    def _mean_rate(self) -> float:
        return self.strategy.mean_rate(self.steering.live, self._safe_rate)

    def _weight(self, device: str, update: Update, tau: int, now: float) -> float:
        """How much an update counts in its step: what a device says of itself is bounded by what others say."""
        age = self._versions.age(update.base, now)
        examples, typical = update.examples, self._fleet.examples()
        if typical:
            examples = min(examples, round(_CLAIM * typical))
        weight = self.strategy.admission_weight(tau, age, examples, self._fleet.staleness(device))
        bound = self.strategy.fairness
        return weight if bound is None else weight * self._heard.correction(device, bound)

    def _scale(self, update: Update, norm: float) -> float:
        """What its delta is multiplied by, whatever else is in its step."""
        scale = 1.0
        if self.strategy.privacy is not None and norm > self.strategy.privacy.clip:
            scale *= _ROUNDING * self.strategy.privacy.clip / norm
        if self.strategy.even_steps and update.steps and (typical := self._fleet.steps()):
            scale *= min(max(typical / update.steps, 1 / 16), 16.0)
        return scale

    def _hold(self, device: str, update: Update, outbox: Outbox | None) -> list[ev.Action]:
        """Refuse for now: the device keeps the update and comes again."""
        if outbox is None:
            why = "this aggregator knows as many devices, or as many outboxes of this device, as it can"
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=300)
        elif self.full is not None and update.seq > outbox.hi:
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=self.full[:400], retry_after=30)
        elif self.paused is not None and update.seq > outbox.hi:
            settled = Settled(seq=update.seq, verdict=Verdict.PAUSED, why=self.paused[:400], retry_after=30)
        elif self.strategy.privacy is not None and update.seq > outbox.hi and self.waits(device):
            why = "an update of this device waits for its step, and differential privacy allows one in each"
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=5)
        elif update.seq > outbox.hi and self.waiting(device) >= self.strategy.most_waiting:
            why = "as many updates of this device as a step takes wait for it"
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=5)
        else:
            return []
        self.counts[settled.verdict.value] += 1
        return [ev.Reply(device, update.outbox, 0 if outbox is None else outbox.hi, (settled,))]

    def _inadmissible(self, device: str, update: Update, now: float) -> tuple[Verdict, str] | None:
        """Why an update cannot be taken, cheapest reason first; None where it can."""
        if update.lineage != self.lineage:
            return Verdict.FOREIGN_LINEAGE, "it was trained from a model of another federation or store"
        if update.schema_hash not in (b"", self.schema_hash):
            return Verdict.WRONG_SCHEMA, "its model has other tensors than the federation's"
        if update.generation > self.generation or update.base > self.version:
            return Verdict.UNKNOWN_BASE, f"version {update.generation}.{update.base} is not known here"
        if update.base not in self._versions:
            return Verdict.STALE, f"version {update.base} is not remembered here any more: train from the newest one"
        newest = update.base == self.version
        if (tau := self._staleness(update.base)) > self.strategy.max_staleness and not newest:
            return Verdict.STALE, f"{tau} steps old; at most {self.strategy.max_staleness} are taken"
        limit, age = self.strategy.max_age, self._versions.age(update.base, now)
        if limit is not None and age > limit and not newest:
            return Verdict.STALE, f"its version was released {age:.0f} seconds ago; at most {limit:g} are taken"
        if not self.frozen or update.base == 0:
            return Verdict.UNKNOWN_BASE, "no model has been released to train from"
        privacy = self.strategy.privacy
        if privacy is not None and self._heard.given(device) >= privacy.contributions:
            why = f"this device has given {privacy.contributions} updates, all that ε = {privacy.epsilon:g} allows"
            return Verdict.QUOTA, why
        if update.size > self.bounds.update:
            return Verdict.TOO_LARGE, f"{update.size} bytes; at most {self.bounds.update} are taken"
        try:
            codecs.parse(update.codec)
        except WireError as error:
            return Verdict.UNKNOWN_CODEC, str(error)
        return None

    def _unfitting(self, device: str, update: Update) -> tuple[Verdict, str] | None:
        """Why an update means something else than the model does: other statistics, other inputs; None if it fits."""
        if update.lineage != self.lineage:
            return None  # told as such
        if update.generation < self.generation and update.base not in self._versions:
            trained, now = update.generation, self.generation
            why = f"it was trained in generation {trained}; this is {now}: train again from the newest model"
            return Verdict.STALE, why
        why = self.unlike.get(device, "")
        return (Verdict.WRONG_SCHEMA, why) if why else None

    def _refuse(self, device: str, update: Update, verdict: Verdict, why: str) -> list[ev.Action]:
        why = why[:400]
        record = rec.UpdateRecord(
            lsn=self._next(),
            device=device,
            outbox=update.outbox,
            seq=update.seq,
            verdict=verdict.value,
            why=why,
            base=update.base,
            codec=update.codec,
            examples=update.examples,
            size=update.size,
        )
        settled = Settled(seq=update.seq, verdict=verdict, why=why)
        return [*self._write(record), ev.Reply(device, update.outbox, update.seq, (settled,))]

    def _repeat(self, device: str, update: Update, outbox: Outbox) -> ev.Action:
        self.counts["duplicate"] += 1
        verdict = outbox.verdict(update.seq)
        settled = () if verdict is None else (Settled(seq=update.seq, verdict=verdict, repeat=True),)
        return ev.Reply(device, update.outbox, outbox.hi, settled)

    def _greeted(self, device: str, number: int, first: int) -> ev.Action:
        """What we have of an outbox, with the verdicts on what it still holds: their receipts were lost."""
        outbox = self._outboxes.raised(device, number, first)
        if outbox is None:
            return ev.Reply(device, number, 0)
        return ev.Reply(device, number, outbox.hi, outbox.verdicts(first))

    def _hi(self, device: str, number: int, outbox: Outbox | None) -> ev.Action:
        return ev.Reply(device, number, 0 if outbox is None else outbox.hi)

    def forget(self, device: str, alias: str) -> ev.Journal:
        """Remove what is known of a device; where a count needs it, it stands there under another name.

        To be followed by a checkpoint: the journal says only that it was done. None of its updates may wait for a step.
        """
        assert not self.waits(device)
        record = rec.ForgetRecord(self._next(), alias)
        self._take(record)
        self._outboxes.forget(device)
        self._heard.forget(device)
        self._fleet.forget(device)
        self._standings.forget(device)
        self._margin.forget(device, alias)
        self._statistics.pop(device, None)
        self._digests.pop(device, None)
        if device in self._contributors:
            self._contributors.discard(device)
            self._contributors.add(alias)
        return ev.Journal(record)

    def waits(self, device: str) -> bool:
        """Whether an update of this device waits for its step."""
        return self.waiting(device) > 0

    def waiting(self, device: str) -> int:
        """How many updates of this device wait for their step."""
        return sum(item.device == device for item in self._buffer)

    def _staleness(self, base: int) -> int:
        known = self._versions.step(base)
        return 0 if known is None else self.step - known

    # ---------------------------------------------------------- steps and releases

    @property
    def _filled(self) -> bool:
        """Whether a step is due: K updates are there, or one of each device, so that no more will come.

        One device fills at most half of a robust strategy's buffer, however often it sends.
        """
        if self._measuring:
            return False
        live = self.steering.live
        shares = Counter(item.device for item in self._buffer)
        if (self._voices(shares) if self.strategy.by_device else len(self._buffer)) >= self.strategy.size(live):
            return True
        return self.strategy.privacy is None and len(shares) >= max(live, self.strategy.release_floor) and live > 0

    def _voices(self, shares: Mapping[str, int]) -> float:
        """How many updates those of the buffer, counted by device, fill it like.

        A device that floods counts for less than one update: if it is in every buffer, it leaves room for the others.
        """
        size = self.strategy.size(self.steering.live)
        if sum(shares.values()) < size:
            return 0.0
        half, voices = max(size / 2, 1.0), 0.0
        for device, count in shares.items():
            often = self._heard.often(device)
            voices += min(count, half) if often <= _OFTEN else _OFTEN / often
        return voices

    @property
    def _patience(self) -> float | None:
        """Seconds for which a step waits for a full buffer.

        Of a cohort, chance may ask fewer than make a buffer: once most have had the time to train, no more will come.
        """
        deadline, seconds = self.strategy.deadline, self._fleet.seconds()
        if deadline is None or self.strategy.pace.cohort is None or not seconds:
            return deadline
        return min(deadline, _TRAININGS * seconds)

    @property
    def _comparable_from(self) -> float:
        """From when on a first step is made although the norms of too few devices tell which update is a large one."""
        known = len(self._fleet) >= min(FEWEST, self.steering.live)
        if known or self.step > 0 or self.strategy.norm_bound == math.inf or self._first_heard_at is None:
            return -math.inf
        return self._first_heard_at + _FIRST_WAIT

    @property
    def _step_due(self) -> float | None:
        """When `tick` makes a step of what is in the buffer; None if only another update can bring that."""
        since, deadline, opens = self._buffer_since, self._patience, self._comparable_from
        if since is None or self._measuring:
            return None
        if self.step == 0 and self._filled:
            return max(since, opens)  # it would have been made, but for the norms
        return None if deadline is None else max(since + deadline, opens)

    def _make_step(self, now: float, *, form: Form | None = None) -> list[ev.Action]:
        """Apply what is in the buffer, and what is due after it."""
        if not self._buffer or self._measuring or now < self._comparable_from:
            return []
        if self.strategy.combine == "centred":
            self._measuring = True
            return [ev.Measure(tuple(item.lsn for item in self._buffer))]
        if not self.strategy.single or form is not None:
            return self._step([self._bounded(item, now) for item in self._buffer], self._buffer, now, form=form)
        actions: list[ev.Action] = []
        while self._buffer:
            actions += self._step([self._bounded(self._buffer[0], now)], self._buffer[:1], now)
        return actions

    def _bounded(self, item: Buffered, now: float) -> float:
        """What a delta is multiplied by in a step now: its own scale, and what brings it within the fleet's norms."""
        times = self.strategy.norm_bound
        if times == math.inf:
            return item.scale
        length, reference = item.norm * item.scale, self._fleet.norm(now)
        bound, robust = times * reference, self.strategy.robust
        if robust:
            bound = self._standings.longest(item.device, bound, reference)
        bound = min(bound, self.bounds.step)
        scale = item.scale * bound / length if length > bound else item.scale
        if not robust:
            return scale
        usual, typical = self._fleet.agreement(), self._fleet.typical(item.device)
        return scale * self._standings.factor(item.device, item.agreement, usual, typical, reference)

    def _measured(self, distances: Mapping[int, float], now: float) -> list[ev.Action]:
        """Go on with a step of centred clipping: each delta is clipped at the median distance from the last one."""
        self._measuring = False
        waiting = [item for item in self._buffer if item.lsn in distances]
        radius = statistics.median(distances[item.lsn] for item in waiting)
        scales = [min(1.0, radius / distances[item.lsn]) if distances[item.lsn] else 1.0 for item in waiting]
        actions = self._step(scales, waiting, now)
        return actions + (self._make_step(now) if self._filled else [])

    def _step(
        self, scales: Sequence[float], updates: Sequence[Buffered], now: float, *, form: Form | None = None
    ) -> list[ev.Action]:
        strategy = self.strategy
        optimizer, privacy = strategy.optimizer, strategy.privacy
        record = rec.StepRecord(
            lsn=self._next(),
            step=self.step + 1,
            updates=tuple((item.lsn, weight) for item, weight in zip(updates, strategy.weights(updates), strict=True)),
            rate=self.growth.damping
            * strategy.step_rate(max(item.staleness for item in updates), self.steering.live, self._safe_rate),
            form=form or strategy.form,
            normalise="none" if strategy.single else strategy.normalise,
            scales=() if all(scale == 1 for scale in scales) else tuple(scales),
            divisor=strategy.divisor(strategy.size(self.steering.live)),
            combine=strategy.combine,
            trim=strategy.trim,
            calibration=strategy.calibration,
            optimizer=(optimizer.kind, optimizer.beta1, optimizer.beta2, optimizer.epsilon),
            noise=0.0 if privacy is None else privacy.deviation,
        )
        self._take(record)
        self.growth.saw(self._fleet.norm(now), self._fleet.turn)
        self._buffer_since = now if self._buffer else None
        return [ev.Journal(record, noise=record.noise), ev.Carry(record), *self._maybe_release(now)]

    @property
    def _releasable(self) -> bool:
        ripe = self._staleness(self.version) >= self.strategy.release_every
        return self.frozen and ripe and len(self._contributors) >= self.strategy.release_floor

    @property
    def _release_due(self) -> float | None:
        """When the next release may be: as asked, and so that its bytes stay within the rate; None before the first."""
        if self._released_at is None:
            return None
        return max(self._released_at + self.strategy.release_interval, self.thrift.paid)

    def _maybe_release(self, now: float) -> list[ev.Action]:
        due = self._release_due
        early = due is not None and now < due
        return [] if early or not self._releasable else self._release(now)

    def _release(self, now: float, *, moved: bool = True) -> list[ev.Action]:
        devices = len(self._contributors) if moved else 0
        decay = self.strategy.serve_decay or None
        record = rec.ReleaseRecord(self._next(), self.version + 1, self.step, devices, now, decay)
        self._released_at = now
        self.thrift.released(now)
        self.steering.released(now)
        return [*self._write(record), ev.Carry(record), *self._maybe_serve(now)]

    @property
    def _serve_due(self) -> float | None:
        """When there is something new to release for use."""
        interval = self.strategy.serve_interval
        if interval is None or not self.frozen or self.served == self.version:
            return None
        return -1.0 if self._served_at is None else self._served_at + interval

    def _maybe_serve(self, now: float) -> list[ev.Action]:
        due = self._serve_due
        if due is None or now < due:
            return []
        self._served_at = now
        record = rec.ServeRecord(self._next(), self.version, self.step)
        return [*self._write(record), ev.Carry(record)]

    # ------------------------------------------------------------------ statistics

    def _statistics_arrived(
        self, device: str, sent: Statistics, key: int, digest: bytes, now: float
    ) -> list[ev.Action]:
        asked = tuple((moment.name, moment.channels) for moment in self.moments)
        unasked = sent.lineage != self.lineage or sent.names != asked
        known = device in self._statistics
        crowded = not known and len(self._statistics) >= max(_MOST_STATISTICS, self._statistics_devices)
        same = known and self._digests.get(device) == digest
        if self.frozen or unasked or same or crowded or self.full is not None:
            return [ev.Drop(key)]
        record = rec.StatisticsRecord(self._next(), device, sent.names, sent.missing, digest)
        actions = [*self._write(record, key), ev.Drop(key)]
        if self._statistics_since is None:
            self._statistics_since = now
        if self._gathering_since is None:
            self._gathering_since = now
        if len(self._statistics) >= self._statistics_devices and self._unfit is None:
            actions += self._freeze()
        return actions

    @property
    def _freezable(self) -> bool:
        """One device's statistics would be published as they are; so they wait for a second one."""
        return len(self._statistics) >= 2 and not self._examining

    def _freeze(self) -> list[ev.Action]:
        """Have the statistics examined: whether they can be pooled is a question of their values."""
        if not self._freezable:
            return []
        self._examining = True
        return [ev.Examine(tuple(self._statistics.values()))]

    def _examined(self, found: ev.Examined, now: float) -> list[ev.Action]:
        """Pool the statistics that were found fit; otherwise wait for more devices, or for newer ones of the same."""
        self._examining = False
        since = self._gathering_since
        still = found.soon if since is not None and now < since + _STILL else ""
        self._unfit = found.wait or still or None
        if self._unfit is not None:
            self._statistics_since = None if found.wait else now
            return []
        record = rec.FreezeRecord(self._next(), found.kept, cap=CAP, keep=self.version > 0)
        self._gathering_since = None
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=not record.keep)]

    # ------------------------------------------------------------- what is remembered

    def _next(self) -> int:
        return self.lsn + 1

    def _write(self, record: rec.Record, key: int | None = None) -> list[ev.Action]:
        self._take(record)
        return [ev.Journal(record, key)]

    def replay(self, record: rec.Record) -> None:
        """Take a record of the journal as decided.

        Raises:
            ValueError: it does not follow on the one before.
        """
        if record.lsn != self.lsn + 1:
            raise ValueError(f"journal record {record.lsn} follows {self.lsn}")
        self._take(record)

    def _take(self, record: rec.Record) -> None:
        self.lsn = record.lsn
        match record:
            case rec.UpdateRecord():
                self._take_update(record)
            case rec.StepRecord():
                self.step = record.step
                taken = {lsn for lsn, _ in record.updates}
                self._contributors |= {item.device for item in self._buffer if item.lsn in taken}
                self._buffer = [item for item in self._buffer if item.lsn not in taken]
            case rec.ReleaseRecord():
                self.version = record.version
                self._versions.add(record.version, record.step, record.at)
                if record.devices:
                    self._contributors.clear()
                self._versions.forget_steps_before(self.step - self.strategy.max_staleness)
            case rec.StatisticsRecord():
                self._statistics[record.device] = record.lsn
                self._digests[record.device] = record.digest
            case rec.FreezeRecord():
                self.frozen = True
                self._statistics.clear()
                self._digests.clear()
            case rec.RenormaliseRecord():
                self.generation = record.generation
                self.frozen = False
                self._versions.clear()  # what was trained with the old statistics fits no more
                self._fleet, self._standings = FleetStatistics(), Standings()  # and neither do its norms
                self._statistics.clear()
                self._digests.clear()
            case rec.GenerationRecord():
                self.generation = record.generation
                self.version = record.version
                self._versions.clear()
            case rec.ServeRecord():
                self.served = record.version
            case rec.PaceRecord():
                self.steering.share = record.share
            case rec.ForgetRecord() | rec.StrategyRecord():
                pass

    def _take_update(self, record: rec.UpdateRecord) -> None:
        self._outboxes.obtain(record.device, record.outbox).settle(record.seq, Verdict(record.verdict))
        self.counts[record.verdict] += 1
        if record.verdict == Verdict.ACCEPTED:
            self._heard.take(record.device)
            self._margin.saw(record.device, record.staleness, record.weight, record.base, len(self._heard))
            self._fleet.take(record)
            self._standings.take(record.device, record.agreement, record.norm, record.reference)
            self._buffer.append(
                Buffered(
                    record.device,
                    record.staleness,
                    record.weight,
                    record.scale,
                    record.norm,
                    record.agreement,
                    lsn=record.lsn,
                )
            )

    def forget_bases(self, before: int) -> None:
        """Take no more updates of versions before this one: they cannot be rebuilt."""
        self._versions.forget_before(before)

    def step_at(self, version: int) -> int:
        """The step at which a version was released."""
        known = self._versions.step(version)
        return self.step if known is None else known

    @property
    def buffered(self) -> int:
        """How many accepted updates wait for their step."""
        return len(self._buffer)

    def hi(self, device: str, outbox: int) -> int:
        """Up to which seq all is settled."""
        known = self._outboxes.get(device, outbox)
        return 0 if known is None else known.hi

    @property
    def obstacle(self) -> str | None:
        """What keeps the model from moving, in words: too few devices, or weights near zero. None if nothing does."""
        if not self.frozen and self._unfit is not None:
            return f"The statistics cannot be pooled yet: {self._unfit}."
        if len(self._statistics) == 1:
            return "Only one device has sent its statistics; training begins with those of a second one."
        strategy, live = self.strategy, self.steering.live
        if self._buffer and strategy.privacy is not None and strategy.deadline is None and live < strategy.size(live):
            return (
                f"A step takes the updates of {strategy.size(live)} distinct devices, and {live} are there: "
                "nothing is released before (buffer_size of the private strategy)."
            )
        if self._contributors and not self._releasable:
            return (
                f"Only {len(self._contributors)} of at least {self.strategy.release_floor} distinct devices have "
                f"contributed since version {self.version}; a release never carries the work of fewer "
                "(release_floor of the strategy)."
            )
        gain = self._turn_gain
        if gain is not None and gain < _TURNS_LEAST:
            return (
                f"One training of all {live} devices moves the model by about 1/{2 ** round(-math.log2(gain))} of what "
                f"they learned: with {strategy.staleness.kind} staleness weights, updates as stale as theirs count "
                "almost nothing. Use a larger rate, or weights that fall more slowly (polynomial, relative)."
            )
        return None

    @property
    def _turn_gain(self) -> float | None:
        """How far one training of all devices moves the model, of what they learned; None without a bound or devices.

        An adaptive optimizer divides by what it sees: there, no rate says how far a step goes.
        """
        live = self.steering.live
        if not live or self._safe_rate is None or self.strategy.optimizer.kind != "sgd":
            return None
        return self._mean_rate * self._margin.mean_weight * live / self.strategy.size(live)

    @property
    def oldest_needed(self) -> int:
        """The lowest lsn whose body a restart may still need."""
        waiting = [item.lsn for item in self._buffer] + list(self._statistics.values())
        return min(waiting, default=self.lsn + 1)

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        oldest = self._versions.oldest
        return self.version if oldest is None else oldest

    def dump(self) -> dict[str, Any]:
        """Everything that the journal up to `lsn` had said, for a checkpoint."""
        return {
            "lsn": self.lsn,
            "generation": self.generation,
            "version": self.version,
            "step": self.step,
            "frozen": self.frozen,
            "counts": dict(self.counts),
            "outboxes": self._outboxes.dump(),
            "heard": self._heard.dump(),
            "margin": self._margin.dump(),
            "fleet": self._fleet.dump(),
            "standings": self._standings.dump(),
            "versions": self._versions.dump(),
            "served": self.served,
            "share": self.steering.share,
            "buffer": [
                [item.lsn, item.device, item.staleness, item.weight, item.scale, item.norm, item.agreement]
                for item in self._buffer
            ],
            "contributors": sorted(self._contributors),
            "statistics": dict(self._statistics),
            "digests": dict(self._digests),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self.lsn = state["lsn"]
        self.generation = state["generation"]
        self.version = state["version"]
        self.step = state["step"]
        self.frozen = state["frozen"]
        self.counts = Counter(state["counts"])
        self._outboxes.load(state["outboxes"])
        self._heard.load(state["heard"])
        self._margin.load(state["margin"])
        self.served = state["served"]
        self.steering.share = state["share"]
        self._fleet.load(state.get("fleet", ()))  # older checkpoints have none: the fleet's next updates rebuild it
        self._standings.load(state.get("standings", ()))
        if "versions" in state:
            self._versions.load(state["versions"])
        else:
            times = dict(state["times"])
            self._versions.load([number, step, times.get(number, 0.0)] for number, step in state["steps_at"])
        self._buffer = [
            Buffered(device, staleness, weight, scale, *later, lsn=lsn)  # type: ignore[misc]  # by position
            for lsn, device, staleness, weight, scale, *later in state["buffer"]
        ]
        self._contributors = set(state["contributors"])
        self._statistics = dict(state["statistics"])
        self._digests = dict(state.get("digests", {}))


def _due(since: float | None, delay: float | None, now: float) -> bool:
    return since is not None and delay is not None and now >= since + delay
