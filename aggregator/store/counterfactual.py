"""A counterfactual model: the journal executed again without some devices, or with other steps.

The execution is exact for what the journal still holds: the same bodies, weights and order, with the arithmetic of
production. Two things stay. What a device contributed before the oldest checkpoint is in that checkpoint. And the other
devices trained from the models that were really published, so their updates are those that they really sent.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.buffered import names_of
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.registry import OrderRefused
from midge.aggregator.core.registry_decisions import Cause
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.engine import Engine, load_past_frames
from midge.aggregator.model.reducer import distances
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.store.ledger import GONE, LedgerTable, forgotten
from midge.aggregator.store.put_back import private
from midge.aggregator.store.registered import read_core
from midge.aggregator.store.salvage import LOST
from midge.aggregator.store.store import Entry, Store, StoreError
from midge.aggregator.store.what_if import Change, Counterfactual, Guarantee
from midge.wire import lineage
from midge.wire.errors import WireError
from midge.wire.messages import Verdict
from midge.wire.plurals import counted

_NOTED = re.compile(r"'release_floor': (\d+)")


def devices_of(store: Store, *kinds: str) -> set[str]:
    """The devices with records of these kinds that the journal still lists; without kinds, those with updates."""
    return {
        record.device
        for kind in kinds or ("update",)
        for (data,) in store.query("SELECT record FROM journal WHERE kind = ?", (kind,))
        if isinstance(record := rec.unpack(kind, data), rec.UpdateRecord | rec.StatisticsRecord)
    }


def counterfactual(store: Store, change: Change) -> tuple[Counterfactual, Counterfactual]:
    """Execute the journal of an open store again, from its oldest checkpoint: as recorded, and with a change.

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
    if unknown := change.without - (known := devices_of(store, "update", "statistics")):
        listed = ", ".join(sorted(known)[:20]) or "none"
        raise StoreError(f"The journal has nothing of {', '.join(sorted(unknown))}; it has something of: {listed}.")
    published = _Published()
    real = _Execution(store, Change(), published).run()
    return real, _Execution(store, change, published).run()


class _Hiding:
    """Distinct devices whose work is in steps, counted as for a release: trivial work hides nothing beside other."""

    def __init__(self) -> None:
        self._working, self._idle = set[str](), set[str]()

    def add(self, update: rec.UpdateRecord) -> None:
        (self._idle if update.trivial else self._working).update(names_of(update.device, update.devices, update.who))

    @property
    def count(self) -> int:
        return len(self._working or self._idle)


@dataclass
class _Published:
    """What observers of the releases know, and which earlier counterfactuals can be executed again."""

    digests: defaultdict[int, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """Of the models at each release, of those that were published and of those that led to a promoted one."""
    remade: dict[int, bool] = field(default_factory=dict)
    """By the record of a promoted version: whether its bits come out again."""

    def add(self, path: Mapping[int, bytes]) -> None:
        for lsn, digest in path.items():
            self.digests[lsn].add(digest)


class _Execution:
    """One execution of the journal.

    Args:
        store: open.
        change: from what was recorded.
        published: shared by the executions that one question needs.
        until: the record before which it ends; None is the end of the journal.
        asked: devices that the guarantee is about; None are those of the change.
    """

    def __init__(
        self,
        store: Store,
        change: Change,
        published: _Published,
        until: int | None = None,
        *,
        asked: frozenset[str] | None = None,
    ) -> None:
        assert store.schema is not None
        self._store, self._change = store, change
        self._asked = change.without if asked is None else asked
        self._start = start = list(store.checkpoints())[-1]
        self._since = start.lsn
        self._until = store.newest_lsn() + 1 if until is None else until
        ((self._last,),) = store.query(
            "SELECT max(lsn) FROM journal WHERE kind = 'rollback' AND lsn < ?", (self._until,)
        )
        """The last return to a registered version, which undoes what was before."""
        self._published = published
        self._core = AggregatorCore(fedasync(form="mixing"), lineage=store.lineage, schema_hash=store.schema.hash)
        self._engine = Engine.of(start, store.schema, store)
        self._core.load(start.core)
        load_past_frames(self._engine.model, store)
        self._devices = len(devices_of(store))
        self._registered: rec.RegisterRecord | None = None
        self._returned, self._remade, self._contained = tuple[int, ...](), tuple[int, ...](), 0
        self._contributors = set(self._core.heard)
        self._begin()

    def _begin(self) -> None:
        """Count from here on: at the start, and after a return to a registered version, which undoes what was made."""
        self._left_out = self._unpooled = self._fewer = self._steps = self._skipped = 0
        self._estimated = False
        self._hiding, self._unreleased = _Hiding(), _Hiding()
        self._path: dict[int, bytes] = {}
        self._released: dict[int, int] = {}
        """Steps made here before each version was released."""

    def run(self) -> Counterfactual:
        core, engine, change = self._core, self._engine, self._change
        waiting = set(core.needed)
        for device in change.without:
            engine.forget(device)
        for entry in self._store.entries(after=core.lsn):
            record = rec.clamped(entry.record, core.generation, core.version)
            if record.lsn >= self._until:
                break
            core.replay(record)
            for changed in self._changed(record):
                try:
                    engine.carry(changed)
                except KeyError:
                    self._skipped += 1
            match record:
                case rec.RegisterRecord():
                    self._registered = record
                case rec.RollbackRecord():
                    self._go_back(record)
                case rec.ReleaseRecord():
                    self._release(record)
                case _:
                    pass
        guarantee = Guarantee(
            self._since,
            self._left_out,
            self._unpooled,
            *_earlier(self._store, self._asked, self._start.lsn, waiting),
            self._returned,
            self._contained,
            self._remade,
            self._skipped,
            self._estimated,
        )
        return Counterfactual(
            engine.model,
            guarantee,
            self._steps,
            self._hiding.count,
            self._unreleased.count,
            frozenset(self._contributors),
            core.applied - self._fewer,
        )

    def _release(self, record: rec.ReleaseRecord) -> None:
        self._released[record.version] = self._steps
        self._core.handle(ev.ReleaseCarried(record.version, self._engine.model.state.digest()), 0.0)
        self._path[record.lsn] = digest = self._engine.model.digest()
        if self._change == Change():
            self._published.add(self._path)
        if digest in self._published.digests[record.lsn]:
            self._unreleased = _Hiding()

    def _go_back(self, record: rec.RollbackRecord) -> None:
        """Count from a registered version on. That of an earlier counterfactual is made again, with both changes."""
        contained = self._contained + self._left_out
        self._begin()
        register, self._remade, self._contained = self._registered, (), contained
        self._since, self._contributors = record.lsn, set(self._core.heard)
        self._returned = (record.lsn,) if self._asked else ()
        if record.lsn == self._last and register is not None and register.version == record.to:
            earlier = self._remakes(register)
            if earlier is not None:
                self._remake(record, register, self._change.after(earlier))

    def _remakes(self, register: rec.RegisterRecord) -> Change | None:
        """The change that led to a promoted version; None if its bits do not come out again."""
        change, published = Change.read(register.strategy), self._published
        if change is None:
            return None
        if register.lsn not in published.remade:
            execution = _Execution(self._store, change, published, register.lsn)
            found = execution.run()
            same = found.model.used().digest() == register.digest
            published.remade[register.lsn] = same
            if same:
                published.add(execution._path)
        return change if published.remade[register.lsn] else None

    def _remake(self, record: rec.RollbackRecord, register: rec.RegisterRecord, both: Change) -> None:
        execution = _Execution(self._store, both, self._published, register.lsn, asked=self._asked)
        found = execution.run()
        state = found.model.used()
        self._engine.model.roll_back(lineage.encode_snapshot(state))
        self._left_out, self._steps, self._skipped = execution._left_out, found.steps, found.guarantee.skipped
        self._fewer, self._unpooled = self._core.applied - found.updates, execution._unpooled
        self._contributors, self._path = set(found.contributors), execution._path
        self._hiding = execution._hiding
        if state.digest() != register.digest:  # otherwise observers know it
            self._unreleased = execution._unreleased
        self._returned, self._contained = found.guarantee.returned, found.guarantee.contained
        self._since = found.guarantee.since
        self._remade = (*found.guarantee.remade, record.lsn)
        rules = self._change.combine or self._change.singly  # otherwise those of an earlier one, which was released
        self._estimated = execution._estimated and rules is not None

    def _changed(self, record: rec.Record) -> Sequence[rec.Record]:
        """The records that take the place of one."""
        match record:
            case rec.StepRecord():
                return self._steps_of(record)
            case rec.FreezeRecord() if self._change.without:
                kept = tuple(lsn for lsn in record.statistics if self._device(lsn) not in self._change.without)
                self._unpooled += len(record.statistics) - len(kept)
                if not kept:
                    raise StoreError("Only the devices that are left out sent statistics: there is nothing to pool.")
                return [replace(record, statistics=kept)]
            case rec.ReleaseRecord() if self._change.singly:
                return [replace(record, decay=self._change.singly.serve_decay or None)]
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
        for lsn, _ in record.updates:
            self._leave_out(lsn)
        if not kept:
            return []
        for place in kept:
            update = self._store.record(record.updates[place][0])
            assert isinstance(update, rec.UpdateRecord)
            self._hiding.add(update)
            self._unreleased.add(update)
            self._contributors.add(update.device)
        if len(kept) < len(record.updates):
            record = replace(
                record,
                updates=tuple(record.updates[place] for place in kept),
                scales=tuple(record.scales[place] for place in kept) if record.scales else (),
            )
        if change.singly is not None:
            self._estimated = True
            return self._singly(record, change.singly)
        self._steps += 1
        combined = self._combined(record)
        self._estimated = self._estimated or combined != record
        return [combined]

    def _leave_out(self, lsn: int) -> None:
        """Count an update of a step, if it is of a device that is left out."""
        update = self._store.record(lsn)
        if isinstance(update, rec.UpdateRecord) and update.device in self._change.without:
            self._left_out += update.device in self._asked
            self._fewer += max(1, update.accepted)

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
    listed = remaining = unnamed = 0
    first: dict[str, int] = {}
    sent, frozen, erased = list[int](), set[int](), list[int]()
    aliases, tags = forgotten(store.query), store.ledger.tags()
    for record in _listed(store):
        listed += record.lsn <= start
        match record:
            case rec.FreezeRecord() if record.lsn <= start:
                frozen.update(record.statistics)
            case rec.UpdateRecord() | rec.StatisticsRecord() if record.device not in without and not _names(
                store.ledger, record, tags.get(record.lsn)
            ):
                # A device is erased with a checkpoint behind all of its records, of which older ones then go.
                if record.lsn <= start and record.lsn < aliases.get(record.device, 0):
                    erased.append(record.lsn)
                else:
                    unnamed += 1
            case rec.StatisticsRecord() if record.device in without:
                first.setdefault(record.device, record.lsn)
                sent.append(record.lsn)
            case rec.UpdateRecord() if record.device in without:
                first.setdefault(record.device, record.lsn)
                stepped = record.lsn <= start and record.lsn not in waiting
                remaining += stepped and record.verdict == Verdict.ACCEPTED
            case rec.UpdateRecord() if record.accepted and record.verdict == Verdict.ACCEPTED:
                unnamed += 1
    # Erasing a device renames all of its records: what one sent under its name came after that.
    unnamed += sum(lsn < max(first.values()) for lsn in erased)
    return remaining, len(frozen.intersection(sent)), start - listed, unnamed


def _names(ledger: LedgerTable, record: rec.UpdateRecord | rec.StatisticsRecord, tag: bytes | None) -> bool:
    """Whether a record names the device that sent it, as far as the log of releases or the name itself says."""
    if tag is not None and isinstance(record, rec.UpdateRecord):
        return ledger.names(record, tag)
    return not record.device.startswith(GONE)


def floor_of(store: Store) -> int:
    """The least number of devices in a release: what the strategy in the journal says, otherwise what it was so far."""
    records = list(_listed(store))
    for record in reversed(records):
        if isinstance(record, rec.StrategyRecord) and (noted := _NOTED.search(record.strategy)):
            return int(noted[1])
    return min((each.devices for each in records if isinstance(each, rec.ReleaseRecord) and each.devices), default=2)


def promote(
    store: Store, found: Counterfactual, change: Change, cause: Cause, floor: int | None = None
) -> rec.RollbackRecord:
    """Make the model a registered version, the champion, from which a new generation of an open store goes on.

    The aggregator's next start publishes it. Returns the record of the return to it, with the version and the accepted
    updates that waited for their step, which are dropped.

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
    register = replace(register, devices=len(found.contributors), updates=found.updates)
    core.replay(register)
    back = replace(decisions.roll_back(version, cause), version=version)
    core.replay(back)
    release = rec.ReleaseRecord(core.lsn + 1, version + 1, core.step, 0, cause.at)
    store.commit([Entry(register, body), Entry(back, body), Entry(release, None)])
    return back
