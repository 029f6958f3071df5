"""A counterfactual model: the journal executed again without some devices, or with other steps.

The execution is exact for what the journal still holds: the same bodies, weights and order, with the arithmetic of
production. Two things stay. What a device contributed before the oldest checkpoint is in that checkpoint. And the other
devices trained from the models that were really published, so their updates are those that they really sent.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import names_of
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.registry import OrderRefused
from midge.aggregator.core.registry_decisions import Cause
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine, load_past_frames
from midge.aggregator.model.model import Model
from midge.aggregator.model.reducer import distances
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.store.ledger import GONE
from midge.aggregator.store.put_back import private
from midge.aggregator.store.registered import read_core
from midge.aggregator.store.salvage import LOST
from midge.aggregator.store.store import Checkpoint, Entry, Store, StoreError
from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.messages import Verdict
from midge.wire.plurals import counted

Combine = Literal["mean", "trimmed", "centred"]
_NOTED = re.compile(r"'release_floor': (\d+)")


@dataclass(frozen=True, slots=True)
class Change:
    """How the execution differs from the real one."""

    without: frozenset[str] = frozenset()
    """Devices whose updates and statistics are left out."""
    combine: Combine | None = None
    """How the updates of each step become one; None as recorded."""
    trim: float = 0.1
    """For `trimmed`: the share that is left out at either end."""
    singly: Strategy | None = None
    """A strategy of which every update is a step, in the order in which they were stepped; None as recorded. With
    `centred`, each is clipped at the median length of those in its recorded step; it goes with no other combination."""

    def words(self) -> str:
        """The change in words, for the journal."""
        parts = [f"without {', '.join(sorted(self.without))}"] if self.without else []
        parts += [f"combine {self.combine}"] if self.combine else []
        parts += [self.singly.name] if self.singly else []
        return "; ".join(parts) or "as recorded"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is certain of the model."""

    since: int
    """The record after which everything was executed again; 0 is the beginning."""
    left_out: int
    """Updates that were left out."""
    remaining: int
    """Accepted updates of these devices before that which the journal lists; they are in the checkpoint."""
    pooled: int
    """Statistics of these devices that were pooled before that."""
    unlisted: int
    """Records before that which the journal does not list any more: whose they were is not known."""
    unnamed: int
    """Updates of which the journal does not say whose work they are: under an erased name, or sums of a gateway."""
    returned: tuple[int, ...]
    """Records that went back to a registered version, which may hold the devices' work."""
    skipped: int
    """Updates whose base could not be rebuilt for another strategy."""

    @property
    def complete(self) -> bool:
        """Whether it is known that no update and no statistics of the devices are in the model."""
        return not (self.remaining or self.pooled or self.unlisted or self.unnamed or self.returned)

    def words(self) -> str:
        """The guarantee in words."""
        where = "from the beginning" if self.since == 0 else f"after record {self.since}, of the oldest checkpoint,"
        text = f"Exact: every step {where} was executed again"
        text += f", with {counted(self.left_out, 'update')} left out." if self.left_out else "."
        if self.remaining:
            text += (
                f" Not removed: at least {counted(self.remaining, 'earlier update')}, which the checkpoint of that "
                "record contains."
            )
        if self.pooled:
            text += " Not removed: statistics of the inputs that were pooled before."
        if self.unlisted:
            text += (
                f" Not known: how many updates were among {counted(self.unlisted, 'earlier record')} that the journal "
                "does not list any more; they are in the checkpoint."
            )
        if self.unnamed:
            text += (
                f" Not known: whose work is in {counted(self.unnamed, 'update')}, of erased names or of sites that "
                "send sums."
            )
        if self.returned:
            text += f" Not known: record {self.returned[0]} went back to a registered version, with what was in it."
        if self.skipped:
            text += f" {counted(self.skipped, 'update')} could not be used: the model under them is gone."
        return text + (
            " Weights are those that were given. Devices trained from the models that were really published: what they "
            "learned from work that is left out stays in their updates."
        )


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The model of another course of events."""

    model: Model
    guarantee: Guarantee
    steps: int
    """Steps that were made."""
    devices: int
    """Distinct devices whose work is in them, counted as for a release."""
    unreleased: int
    """Those of them in steps after the last release that is the real one."""


def devices_of(store: Store) -> set[str]:
    """The devices with updates that the journal still lists."""
    return {
        record.device
        for (data,) in store.query("SELECT record FROM journal WHERE kind = 'update'")
        if isinstance(record := rec.unpack("update", data), rec.UpdateRecord)
    }


def counterfactual(store: Store, change: Change) -> Counterfactual:
    """Execute the journal of an open store again, from its oldest checkpoint, with a change.

    Raises:
        StoreError: the store is damaged or empty; a device is unknown; or its updates were sums or had noise.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: nothing was ever written into it.")
    if private(store.query):
        raise StoreError(
            f"The federation of {store.directory} is private: a second model of the same noise would show the update "
            "that is left out."
        )
    if store.query("SELECT 1 FROM journal WHERE kind = 'follow' LIMIT 1"):
        raise StoreError(
            f"{store.directory} is the store of a gateway: its model comes from the federation above, whose store can "
            "answer for the gateway as a whole."
        )
    if unknown := change.without - (known := devices_of(store)):
        listed = ", ".join(sorted(known)[:20]) or "none"
        raise StoreError(f"The journal has no update of {', '.join(sorted(unknown))}; it has some of: {listed}.")
    return _Execution(store, change, list(store.checkpoints())[-1]).run()


class _Hiding:
    """Distinct devices whose work is in steps, counted as for a release: trivial work hides nothing beside other."""

    def __init__(self) -> None:
        self._working, self._idle = set[str](), set[str]()

    def add(self, update: rec.UpdateRecord) -> None:
        (self._idle if update.trivial else self._working).update(names_of(update.device, update.devices))

    @property
    def count(self) -> int:
        return len(self._working or self._idle)


class _Execution:
    def __init__(self, store: Store, change: Change, start: Checkpoint) -> None:
        assert store.schema is not None
        self._store, self._change, self._start = store, change, start
        self._core = AggregatorCore(fedasync(form="mixing"), lineage=store.lineage, schema_hash=store.schema.hash)
        self._engine = Engine.of(start, store.schema, store)
        self._core.load(start.core)
        load_past_frames(self._engine.model, store)
        self._devices = len(devices_of(store))
        self._skipped = 0
        self._returned: list[int] = []
        self._begin()

    def _begin(self) -> None:
        """Count from here on: at the start, and after a return to a registered version, which undoes what was made."""
        self._left_out = self._steps = 0
        self._hiding = _Hiding()
        self._unreleased, self._apart = _Hiding(), False
        """Devices since the last release that is the real one, and whether the model differs from that now."""
        self._released: dict[int, int] = {}
        """Steps made here before each version was released."""

    def run(self) -> Counterfactual:
        core, engine, change = self._core, self._engine, self._change
        waiting = set(core.needed)
        for device in change.without:
            engine.forget(device)
        for entry in self._store.entries(after=core.lsn):
            record = rec.clamped(entry.record, core.generation, core.version)
            core.replay(record)
            changed = self._changed(record)
            self._apart = self._apart or list(changed) != [record]
            for each in changed:
                try:
                    engine.carry(each)
                except KeyError:
                    self._skipped += 1
                    self._apart = True
            if isinstance(record, rec.ReleaseRecord):
                self._released[record.version] = self._steps
                if not self._apart:
                    self._unreleased = _Hiding()
                core.handle(ev.ReleaseCarried(record.version, engine.model.state.digest()), 0.0)
        guarantee = Guarantee(
            self._start.lsn,
            self._left_out,
            *_earlier(self._store, change.without, self._start.lsn, waiting),
            tuple(self._returned),
            self._skipped,
        )
        return Counterfactual(engine.model, guarantee, self._steps, self._hiding.count, self._unreleased.count)

    def _changed(self, record: rec.Record) -> Sequence[rec.Record]:
        """The records that take the place of one."""
        match record:
            case rec.StepRecord():
                return self._steps_of(record)
            case rec.FreezeRecord() if self._change.without:
                kept = tuple(lsn for lsn in record.statistics if self._device(lsn) not in self._change.without)
                if not kept:
                    raise StoreError("Only the devices that are left out sent statistics: there is nothing to pool.")
                return [replace(record, statistics=kept)]
            case rec.ReleaseRecord() if self._change.singly:
                return [replace(record, decay=self._change.singly.serve_decay or None)]
            case rec.RollbackRecord():
                self._begin()
                self._returned += [record.lsn] if self._change.without else []
                return [record]
            case _:
                return [record]

    def _device(self, lsn: int) -> str:
        found = self._store.record(lsn)
        return found.device if isinstance(found, rec.UpdateRecord | rec.StatisticsRecord) else ""

    def _steps_of(self, record: rec.StepRecord) -> Sequence[rec.StepRecord]:
        change = self._change
        if record.combine == "masked":
            raise StoreError(
                "The federation is secure: its journal has sums of several devices, out of which none can be taken."
            )
        kept = [place for place, (lsn, _) in enumerate(record.updates) if self._device(lsn) not in change.without]
        self._left_out += len(record.updates) - len(kept)
        if not kept:
            return []
        for place in kept:
            update = self._store.record(record.updates[place][0])
            assert isinstance(update, rec.UpdateRecord)
            self._hiding.add(update)
            self._unreleased.add(update)
        if len(kept) < len(record.updates):
            record = replace(
                record,
                updates=tuple(record.updates[place] for place in kept),
                scales=tuple(record.scales[place] for place in kept) if record.scales else (),
            )
        if change.singly is not None:
            return self._singly(record, change.singly)
        self._steps += 1
        return [self._combined(record)]

    def _combined(self, record: rec.StepRecord) -> rec.StepRecord:
        """The step with another rule for its updates, as the planner would have made it."""
        combine = self._change.combine
        if combine is None or combine == record.combine or record.form == "mixing":
            return record
        if combine != "centred":
            return replace(record, combine=combine, trim=self._change.trim if combine == "trimmed" else 0.0)
        return replace(record, combine="centred", trim=0.0, scales=self._clipped(record))

    def _clipped(self, record: rec.StepRecord) -> tuple[float, ...]:
        """The scales that clip the updates of a step at their median distance from the last combined delta."""
        contributions = [self._engine.contribution(lsn) for lsn, _ in record.updates]
        apart = distances(contributions, self._engine.model.server)
        radius = median(apart)
        return tuple(min(1.0, radius / distance) if distance else 1.0 for distance in apart)

    def _singly(self, record: rec.StepRecord, strategy: Strategy) -> list[rec.StepRecord]:
        """A step for each update; with centred clipping, none is longer than the median of those in its step."""
        live, found = self._devices, []
        scales = self._clipped(record) if self._change.combine == "centred" else (1.0,) * len(record.updates)
        for (lsn, _), scale in zip(record.updates, scales, strict=True):
            update = self._store.record(lsn)
            assert isinstance(update, rec.UpdateRecord)
            since = self._released.get(update.base)
            staleness = update.staleness if since is None else self._steps - since
            self._steps += 1
            found.append(
                rec.StepRecord(
                    record.lsn,
                    record.step,
                    ((lsn, strategy.staleness(staleness)),),
                    strategy.step_rate(staleness, live, None),
                    strategy.form,
                    "none",
                    scales=() if scale == 1 else (scale,),
                )
            )
        return found


def _listed(store: Store) -> Iterator[rec.Record]:
    """The records that the journal still lists and that can be read, also those without their bodies."""
    for kind, data in store.query("SELECT kind, record FROM journal ORDER BY lsn"):
        try:
            record = rec.unpack(kind, data)
        except WireError:
            continue
        if not (isinstance(record, rec.StrategyRecord) and record.strategy == LOST):
            yield record


def _earlier(store: Store, without: Collection[str], start: int, waiting: Collection[int]) -> tuple[int, int, int, int]:
    """The devices' work before the start, as in `Guarantee`: remaining, pooled, unlisted, unnamed.

    Args:
        store: open.
        without: the devices.
        start: the record of the checkpoint.
        waiting: updates before it that were stepped after it.
    """
    if not without:
        return 0, 0, 0, 0
    listed = remaining = sums = 0
    first: dict[str, int] = {}
    sent, frozen, erased = list[int](), set[int](), list[int]()
    for record in _listed(store):
        listed += record.lsn <= start
        match record:
            case rec.FreezeRecord() if record.lsn <= start:
                frozen.update(record.statistics)
            case rec.UpdateRecord() | rec.StatisticsRecord() if (
                record.device.startswith(GONE) and record.device not in without
            ):
                erased.append(record.lsn)
            case rec.StatisticsRecord() if record.device in without:
                first.setdefault(record.device, record.lsn)
                sent.append(record.lsn)
            case rec.UpdateRecord() if record.device in without:
                first.setdefault(record.device, record.lsn)
                stepped = record.lsn <= start and record.lsn not in waiting
                remaining += stepped and record.verdict == Verdict.ACCEPTED
            case rec.UpdateRecord() if record.accepted and record.verdict == Verdict.ACCEPTED:
                sums += 1
    # Erasing a device renames all of its records: what one sent under its name came after that.
    unnamed = sum(lsn < max(first.values()) for lsn in erased)
    return remaining, len(frozen.intersection(sent)), start - listed, sums + unnamed


def floor_of(store: Store) -> int:
    """The least number of devices in a release: what the strategy in the journal says, otherwise what it was so far."""
    records = list(_listed(store))
    for record in reversed(records):
        if isinstance(record, rec.StrategyRecord) and (noted := _NOTED.search(record.strategy)):
            return int(noted[1])
    return min((each.devices for each in records if isinstance(each, rec.ReleaseRecord) and each.devices), default=2)


def promote(store: Store, found: Counterfactual, change: Change, cause: Cause, floor: int | None = None) -> int:
    """Make the model a registered version, the champion, from which a new generation of an open store goes on.

    The aggregator's next start publishes it. Returns the version's number.

    Args:
        store: open.
        found: of this store.
        change: of which it is the result.
        cause: who wants it, and why.
        floor: least number of devices whose work is in what no release has; None is that of a release (`floor_of`).

    Raises:
        StoreError: the store cannot be written, or has changed since.
        OrderRefused: it carries the work of fewer devices, or the model waits for statistics.
    """
    floor = floor_of(store) if floor is None else floor
    if found.unreleased < floor:
        raise OrderRefused(
            f"since it differs from the releases it carries the work of {counted(found.unreleased, 'device')}, and a "
            f"release that of at least {floor}: whoever has the model before would read it"
        )
    core = read_core(store)
    state = found.model.used()
    cause = replace(cause, why=f"{change.words()}{': ' if cause.why else ''}{cause.why}")
    version = core.version + 1
    body = lineage.encode_snapshot(state)
    decisions, keep = core.registering, RegistryPolicy().keep
    register = decisions.register(version, state.digest(), cause, keep=keep, strategy=change.words())
    core.replay(register)
    back = replace(decisions.roll_back(version, cause), version=version)
    core.replay(back)
    release = rec.ReleaseRecord(core.lsn + 1, version + 1, core.step, 0, cause.at)
    store.commit([Entry(register, body), Entry(back, body), Entry(release, None)])
    return version
