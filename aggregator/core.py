"""The aggregator's decisions, without I/O, without arrays and without a clock.

Events in, actions out. The order of the actions is the durability argument: what a device is told stands behind the
journal record of it. Everything that the core remembers changes in one place, `_take`, which a live decision and the
replay of the journal share; so a restart ends where the process had been.

Exactly once: for each device and outbox there is a high-water mark `hi`, up to which all is settled, and the
verdicts of the last 16. An update is decided on only where its seq is hi + 1; one below is a repeat and gets its old
verdict, one above is answered with hi, so that the device goes back to it.
"""

import statistics
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator import events as ev
from aggregator import records as rec
from aggregator.strategy import Form, Strategy
from wire import codecs
from wire.errors import WireError
from wire.messages import OUTBOX_LIMIT, Moment, Settled, Statistics, Update, Verdict
from wire.schema import Schema

_CODES = tuple(Verdict)
_NORMS = 128
"""Accepted norms that the running median covers."""
_WARM_UP = 20
"""Accepted norms before the median refuses anything."""
_OUTBOXES = 64
"""Outboxes that one device may have had; a broken or hostile one must not fill the memory with new ones."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of what the core takes on, against peers that would fill the memory or run the model off its grid."""

    devices: int = 100_000
    update: int = 2**30
    """Bytes of one update's encoded delta."""
    norm: float = 2.0**60
    """L2 norm of an update, whatever the strategy's own limit is."""

    @classmethod
    def of(cls, schema: Schema) -> "Bounds":
        """With an update of any codec no larger than the model's values as they are, and one scale."""
        return cls(update=4 * schema.size + 4)


@dataclass(slots=True)
class Outbox:
    """What is known of one outbox of one device."""

    hi: int = 0
    claimed: int = 0
    """The highest seq that is being decoded; at rest, hi."""
    gaps: int = 0
    """Updates that the device gave up or lost, as its own `first` tells."""
    codes: bytearray = field(default_factory=bytearray)
    """The verdicts of the last 16, newest last, as indices of Verdict."""

    def settle(self, seq: int, verdict: Verdict) -> None:
        self.gaps += seq - self.hi - 1
        if seq != self.hi + 1:
            self.codes.clear()
        self.hi = seq
        self.claimed = max(self.claimed, seq)
        self.codes.append(_CODES.index(verdict))
        del self.codes[:-OUTBOX_LIMIT]

    def verdict(self, seq: int) -> Verdict | None:
        """The verdict on a settled seq, where it is still remembered."""
        place = len(self.codes) - 1 - (self.hi - seq)
        return _CODES[self.codes[place]] if 0 <= place < len(self.codes) else None


@dataclass(frozen=True, slots=True)
class Buffered:
    """An accepted update that waits for its step."""

    lsn: int
    device: str
    staleness: int


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
        """Why nothing can be decided, where the store has no room: refused for now, and no timer does anything."""
        self.paused: str | None = None
        """Why nothing is accepted, where somebody said so."""
        self._statistics_devices = statistics_devices
        self._statistics_deadline = statistics_deadline
        # --- what the journal can rebuild
        self.lsn = 0
        self.generation = 0
        self.version = 0
        self.step = 0
        self.frozen = not moments
        self.counts: Counter[str] = Counter()
        self._outboxes: dict[tuple[str, int], Outbox] = {}
        self._outboxes_of: Counter[str] = Counter()
        self._steps_at: dict[int, int] = {0: 0}
        self._buffer: list[Buffered] = []
        self._contributors: set[str] = set()
        self._norms: deque[float] = deque(maxlen=_NORMS)
        self._statistics: dict[str, int] = {}
        # --- timers, which are not replayed: a restart starts them anew
        self._buffer_since: float | None = None
        self._statistics_since: float | None = None
        self._released_at: float | None = None

    # ---------------------------------------------------------------------- events

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """What to do about an event. `now` is seconds of any clock that never goes back."""
        match event:
            case ev.Arrived(device, update, key):
                return self._arrived(device, update, key)
            case ev.Decoded(device, update, key, norm):
                return self._decoded(device, update, key, norm, now)
            case ev.Undecodable(device, update, key, verdict, why):
                return [*self._refuse(device, update, verdict, why), ev.Drop(key)]
            case ev.Greeted(device, outbox, first):
                return [self._greeted(device, outbox, first)]
            case ev.Offered(device, update):
                return self._offered(device, update)
            case ev.StatisticsArrived(device, statistics_, key):
                return self._statistics_arrived(device, statistics_, key, now)
            case ev.FetchAsked(_, fetch):
                return [ev.Republish(fetch)] if fetch.lineage == self.lineage else []

    def tick(self, now: float) -> list[ev.Action]:
        """What the passing of time asks for."""
        if self.full is not None:
            return []
        actions: list[ev.Action] = []
        if _due(self._buffer_since, self.strategy.deadline, now):
            actions += self._make_step(now)
        if not self.frozen and _due(self._statistics_since, self._statistics_deadline, now):
            actions += self._freeze(now)
        return actions + self._maybe_release(now)

    @property
    def deadline(self) -> float | None:
        """When `tick` next has something to do; None where only an event can bring that."""
        if self.full is not None:
            return None
        times = []
        if self._buffer_since is not None and self.strategy.deadline is not None:
            times.append(self._buffer_since + self.strategy.deadline)
        if not self.frozen and self._statistics_since is not None and self._freezable:
            times.append(self._statistics_since + self._statistics_deadline)
        if self._releasable and self._released_at is not None:
            times.append(self._released_at + self.strategy.release_interval)
        return min(times, default=None)

    def start(self, now: float) -> list[ev.Action]:
        """Begin, after the journal has been replayed: the first release, or what is due since."""
        actions: list[ev.Action] = []
        if self._buffer:
            self._buffer_since = now
            if len(self._buffer) >= self.strategy.buffer_size:
                # Only another strategy can have left so much: several updates, perhaps of bases that are gone.
                actions += self._make_step(now, form="delta")
        if self._statistics:
            self._statistics_since = now
        if self.version == 0 and self.frozen:
            actions += self._release(now)
        return actions + self._maybe_release(now)

    def begin_generation(self, generation: int, version: int, now: float) -> list[ev.Action]:
        """Go on behind a version that devices know and this store does not: it had been put back."""
        newer = max(generation, self.generation) + 1
        record = rec.GenerationRecord(self._next(), newer, max(version, self.version))
        return [*self._write(record), ev.Carry(record), *self._release(now, moved=False)]

    def note_strategy(self, strategy: str) -> list[ev.Action]:
        """Write into the journal who decides from here on."""
        return self._write(rec.StrategyRecord(self._next(), strategy))

    # --------------------------------------------------------------------- updates

    def _offered(self, device: str, update: Update) -> list[ev.Action]:
        outbox = self._raise(device, update.outbox, update.first)
        if refusal := self._hold(device, update, outbox):
            return refusal
        assert outbox is not None
        if update.seq <= outbox.hi:
            return [self._repeat(device, update, outbox)]
        if update.seq <= outbox.claimed:
            return []
        if update.seq != outbox.hi + 1:
            return [self._hi(device, update.outbox, outbox)]
        if (bad := self._inadmissible(update)) is not None:
            return self._refuse(device, update, *bad)
        return [ev.Grant(device, update, outbox.hi)]

    def _arrived(self, device: str, update: Update, key: int) -> list[ev.Action]:
        outbox = self._raise(device, update.outbox, update.first)
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
        if (bad := self._inadmissible(update)) is not None:
            if outbox.claimed != outbox.hi:
                return [drop]  # one before it is undecided: the device sends it again
            return [*self._refuse(device, update, *bad), drop]
        outbox.claimed = update.seq
        return [ev.Decode(device, update, key)]

    def _decoded(self, device: str, update: Update, key: int, norm: float, now: float) -> list[ev.Action]:
        limit = self._norm_limit()
        if limit is not None and norm > limit:
            why = f"its norm {norm:.3g} is beyond {limit:.3g}, {self.strategy.norm_limit:g} times the median"
            return [*self._refuse(device, update, Verdict.NORM_TOO_LARGE, why), ev.Drop(key)]
        if norm > self.bounds.norm:
            why = f"its norm {norm:.3g} is beyond {self.bounds.norm:.3g}"
            return [*self._refuse(device, update, Verdict.NORM_TOO_LARGE, why), ev.Drop(key)]
        tau = self._staleness(update.base)
        record = rec.UpdateRecord(
            lsn=self._next(),
            device=device,
            outbox=update.outbox,
            seq=update.seq,
            verdict=Verdict.ACCEPTED.value,
            base=update.base,
            staleness=tau,
            weight=self.strategy.weights([(device, tau)])[0],
            norm=norm,
            codec=update.codec,
            tensors=update.tensors,
            examples=update.examples,
            steps=update.steps,
            size=update.size,
        )
        settled = Settled(seq=update.seq, verdict=Verdict.ACCEPTED, weight=record.weight, staleness=tau)
        actions = [*self._write(record, key), ev.Reply(device, update.outbox, update.seq, (settled,))]
        if self._buffer_since is None:
            self._buffer_since = now
        if len(self._buffer) >= self.strategy.buffer_size:
            actions += self._make_step(now)
        return [*actions, ev.Drop(key), *self._maybe_release(now)]

    def _hold(self, device: str, update: Update, outbox: Outbox | None) -> list[ev.Action]:
        """Refuse for now: the device keeps the update and comes again."""
        if outbox is None:
            why = "this aggregator knows as many devices, or as many outboxes of this device, as it can"
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=300)
        elif self.full is not None and update.seq > outbox.hi:
            settled = Settled(seq=update.seq, verdict=Verdict.BUSY, why=self.full[:400], retry_after=30)
        elif self.paused is not None and update.seq > outbox.hi:
            settled = Settled(seq=update.seq, verdict=Verdict.PAUSED, why=self.paused[:400], retry_after=30)
        else:
            return []
        self.counts[settled.verdict.value] += 1
        return [ev.Reply(device, update.outbox, 0 if outbox is None else outbox.hi, (settled,))]

    def _inadmissible(self, update: Update) -> tuple[Verdict, str] | None:
        """Why an update cannot be taken, cheapest reason first; None where it can."""
        if update.lineage != self.lineage:
            return Verdict.FOREIGN_LINEAGE, "it was trained from a model of another federation or store"
        if update.schema_hash != self.schema_hash:
            return Verdict.WRONG_SCHEMA, "its model has other tensors than the federation's"
        if update.generation > self.generation or update.base > self.version:
            return Verdict.UNKNOWN_BASE, f"version {update.generation}.{update.base} is not known here"
        if update.base not in self._steps_at:
            return Verdict.STALE, f"version {update.base} is older than {self.strategy.max_staleness} steps"
        if (tau := self._staleness(update.base)) > self.strategy.max_staleness:
            return Verdict.STALE, f"{tau} steps old; at most {self.strategy.max_staleness} are taken"
        if not self.frozen or update.base == 0:
            return Verdict.UNKNOWN_BASE, "no model has been released to train from"
        if update.size > self.bounds.update:
            return Verdict.TOO_LARGE, f"{update.size} bytes; at most {self.bounds.update} are taken"
        try:
            codecs.parse(update.codec)
        except WireError as error:
            return Verdict.UNKNOWN_CODEC, str(error)
        return None

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
        outbox = self._raise(device, number, first)
        if outbox is None:
            return ev.Reply(device, number, 0)
        verdicts = [
            (seq, outbox.verdict(seq)) for seq in range(max(first, outbox.hi - OUTBOX_LIMIT + 1), outbox.hi + 1)
        ]
        known = [Settled(seq=seq, verdict=verdict, repeat=True) for seq, verdict in verdicts if verdict is not None]
        return ev.Reply(device, number, outbox.hi, tuple(known))

    def _hi(self, device: str, number: int, outbox: Outbox | None) -> ev.Action:
        return ev.Reply(device, number, 0 if outbox is None else outbox.hi)

    def _raise(self, device: str, number: int, first: int) -> Outbox | None:
        """The outbox, with all that the device no longer holds counted as settled; None where there is no room."""
        outbox = self._outboxes.get((device, number))
        if outbox is None:
            new = device not in self._outboxes_of
            if (new and len(self._outboxes_of) >= self.bounds.devices) or self._outboxes_of[device] >= _OUTBOXES:
                return None
            outbox = self._add(device, number)
        if outbox.claimed == outbox.hi and first - 1 > outbox.hi:
            outbox.gaps += first - 1 - outbox.hi
            outbox.hi = outbox.claimed = first - 1
            outbox.codes.clear()
        return outbox

    def _add(self, device: str, number: int) -> Outbox:
        self._outboxes_of[device] += 1
        return self._outboxes.setdefault((device, number), Outbox())

    def _staleness(self, base: int) -> int:
        return self.step - self._steps_at.get(base, 0)

    def _norm_limit(self) -> float | None:
        if self.strategy.norm_limit is None or len(self._norms) < _WARM_UP:
            return None
        return self.strategy.norm_limit * statistics.median(self._norms) or None

    # ---------------------------------------------------------- steps and releases

    def _make_step(self, now: float, *, form: Form | None = None) -> list[ev.Action]:
        """Apply what is in the buffer, and what is due after it."""
        if not self._buffer:
            return []
        weights = self.strategy.weights([(item.device, item.staleness) for item in self._buffer])
        record = rec.StepRecord(
            lsn=self._next(),
            step=self.step + 1,
            updates=tuple((item.lsn, weight) for item, weight in zip(self._buffer, weights, strict=True)),
            rate=self.strategy.step_rate,
            form=form or self.strategy.form,
            normalise=self.strategy.normalise if self.strategy.buffer_size > 1 else "none",
        )
        self._buffer_since = None
        return [*self._write(record), ev.Carry(record), *self._maybe_release(now)]

    @property
    def _releasable(self) -> bool:
        return self.frozen and len(self._contributors) >= self.strategy.release_floor

    def _maybe_release(self, now: float) -> list[ev.Action]:
        early = self._released_at is not None and now < self._released_at + self.strategy.release_interval
        return [] if early or not self._releasable else self._release(now)

    def _release(self, now: float, *, moved: bool = True) -> list[ev.Action]:
        devices = len(self._contributors) if moved else 0
        record = rec.ReleaseRecord(self._next(), self.version + 1, self.step, devices)
        self._released_at = now
        return [*self._write(record), ev.Carry(record)]

    # ------------------------------------------------------------------ statistics

    def _statistics_arrived(self, device: str, sent: Statistics, key: int, now: float) -> list[ev.Action]:
        asked = tuple((moment.name, moment.channels) for moment in self.moments)
        unasked = sent.lineage != self.lineage or sent.names != asked
        if self.frozen or unasked or device in self._statistics or self.full is not None:
            return [ev.Drop(key)]
        record = rec.StatisticsRecord(self._next(), device, sent.names, sent.missing)
        actions = [*self._write(record, key), ev.Drop(key)]
        if self._statistics_since is None:
            self._statistics_since = now
        if len(self._statistics) >= self._statistics_devices:
            actions += self._freeze(now)
        return actions

    @property
    def _freezable(self) -> bool:
        """One device's statistics would be published as they are; so they wait for a second one."""
        return len(self._statistics) >= min(2, self._statistics_devices)

    def _freeze(self, now: float) -> list[ev.Action]:
        if not self._freezable:
            return []
        record = rec.FreezeRecord(self._next(), tuple(self._statistics.values()))
        return [*self._write(record), ev.Carry(record), *self._release(now)]

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
                self._steps_at[record.version] = record.step
                self._steps_at.pop(0, None)  # nobody can have trained from what was never released
                if record.devices:
                    self._contributors.clear()
                self._forget_versions()
            case rec.StatisticsRecord():
                self._statistics[record.device] = record.lsn
            case rec.FreezeRecord():
                self.frozen = True
                self._statistics.clear()
            case rec.GenerationRecord():
                self.generation = record.generation
                self.version = record.version
                self._steps_at = {}
            case rec.StrategyRecord():
                pass

    def _take_update(self, record: rec.UpdateRecord) -> None:
        outbox = self._outboxes.get((record.device, record.outbox)) or self._add(record.device, record.outbox)
        outbox.settle(record.seq, Verdict(record.verdict))
        self.counts[record.verdict] += 1
        if record.verdict == Verdict.ACCEPTED:
            self._norms.append(record.norm)
            self._buffer.append(Buffered(record.lsn, record.device, record.staleness))

    def _forget_versions(self) -> None:
        """Versions too old to train from are forgotten; the newest is always kept."""
        oldest = self.step - self.strategy.max_staleness
        for version in list(self._steps_at):  # ascending
            if self._steps_at[version] >= oldest or version == self.version:
                break
            del self._steps_at[version]

    def forget_bases(self, before: int) -> None:
        """Take no more updates of versions before this one: they cannot be rebuilt."""
        for version in [version for version in self._steps_at if version < before and version != self.version]:
            del self._steps_at[version]

    @property
    def buffered(self) -> int:
        """How many accepted updates wait for their step."""
        return len(self._buffer)

    def hi(self, device: str, outbox: int) -> int:
        """Up to which seq all is settled."""
        known = self._outboxes.get((device, outbox))
        return 0 if known is None else known.hi

    @property
    def waiting_for_company(self) -> str | None:
        """What holds everything up where too few devices take part, in words; None where nothing does."""
        if self._statistics and not self._freezable:
            return "Only one device has sent its statistics; training begins with those of a second one."
        if self._contributors and not self._releasable:
            return (
                f"Only {len(self._contributors)} of at least {self.strategy.release_floor} distinct devices have "
                f"contributed since version {self.version}; a release never carries the work of fewer "
                "(release_floor of the strategy)."
            )
        return None

    @property
    def oldest_needed(self) -> int:
        """The lowest lsn whose body a restart may still need."""
        waiting = [item.lsn for item in self._buffer] + list(self._statistics.values())
        return min(waiting, default=self.lsn + 1)

    @property
    def oldest_base(self) -> int:
        """The oldest version that an update may be based on."""
        return min(self._steps_at, default=self.version)

    def dump(self) -> dict[str, Any]:
        """Everything that the journal up to `lsn` had said, for a checkpoint."""
        return {
            "lsn": self.lsn,
            "generation": self.generation,
            "version": self.version,
            "step": self.step,
            "frozen": self.frozen,
            "counts": dict(self.counts),
            "outboxes": [[*name, box.hi, box.gaps, bytes(box.codes)] for name, box in self._outboxes.items()],
            "steps_at": list(self._steps_at.items()),
            "buffer": [[item.lsn, item.device, item.staleness] for item in self._buffer],
            "contributors": sorted(self._contributors),
            "norms": list(self._norms),
            "statistics": dict(self._statistics),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self.lsn = state["lsn"]
        self.generation = state["generation"]
        self.version = state["version"]
        self.step = state["step"]
        self.frozen = state["frozen"]
        self.counts = Counter(state["counts"])
        self._outboxes.clear()
        self._outboxes_of.clear()
        for device, number, hi, gaps, codes in state["outboxes"]:
            self._outboxes[device, number] = Outbox(hi, hi, gaps, bytearray(codes))
            self._outboxes_of[device] += 1
        self._steps_at = dict(state["steps_at"])
        self._buffer = [Buffered(*item) for item in state["buffer"]]
        self._contributors = set(state["contributors"])
        self._norms = deque(state["norms"], maxlen=_NORMS)
        self._statistics = dict(state["statistics"])


def _due(since: float | None, delay: float | None, now: float) -> bool:
    return since is not None and delay is not None and now >= since + delay
