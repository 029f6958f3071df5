"""Audit of releases: a range of the journal executed again, and compared bit for bit with what was published.

The auditor needs the store, or a backup of it, and no device. Updates of a secure federation stay sealed: its journal
has their sums, from which its steps are executed.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.engine import Engine, execute, load_past_frames
from midge.aggregator.model.model import REGISTERED, Frame, Model
from midge.aggregator.store.store import Checkpoint, Store, StoreError
from midge.wire import lineage, merkle
from midge.wire.errors import WireError
from midge.wire.ledger import Head, LoggedRelease
from midge.wire.plurals import counted

_SPANS: Final = {-2: "registered", -1: "served", 0: "snapshot", 1: "step"}


@dataclass(slots=True)
class AuditedRelease:
    """One release, executed again."""

    version: int
    generation: int
    step: int
    at: float
    """Seconds since 1970."""
    digest: str
    """Of the executed state; devices compute the same of theirs."""
    updates: int
    """In its steps."""
    devices: int
    """Distinct ones of these updates; of a secure federation 0, since its sums name none."""
    same: list[str] = field(default_factory=list)
    """What the store has of it and is the same: frames, a registered version, a checkpoint."""
    gone: int = 0
    """Frames that the store no longer has."""
    wrong: list[str] = field(default_factory=list)
    """What differs."""
    log: str = ""
    """The head of the ledger with this release, as its size and root; empty if the log does not have it."""


def audit(store: Store, first: int, last: int | None = None) -> Iterator[AuditedRelease]:
    """Execute the releases `first` to `last` of an open store again, and compare.

    Raises:
        StoreError: the journal no longer reaches back to them, there are none, or the store is damaged.
    """
    if store.schema is None or store.empty:
        raise StoreError(f"The store {store.directory} is empty: nothing was ever written into it.")
    checkpoints = {each.lsn: each for each in store.checkpoints()}
    before = [each for each in checkpoints.values() if int(each.values["version"]) < first]
    if not before:
        oldest = min(int(each.values["version"]) for each in checkpoints.values()) + 1
        since = (
            f"From --from {oldest} on it can; of earlier ones"
            if any(oldest <= record.version for record in _releases(store))
            else "No release was made since; of earlier ones"
        )
        raise StoreError(
            f"Release {first} cannot be executed again: the journal's oldest checkpoint is after it. {since}, a backup "
            "of their time can be audited."
        )
    start = max(before, key=lambda each: each.lsn)
    core = AggregatorCore(fedasync(form="mixing"), lineage=store.lineage, schema_hash=store.schema.hash)
    engine = Engine.of(start, store.schema, store)
    core.load(start.core)
    load_past_frames(engine.model, store)
    yield from _Audit(store, core, engine, checkpoints).releases(first, last)


def _releases(store: Store) -> Iterator[rec.ReleaseRecord]:
    for (data,) in store.query("SELECT record FROM journal WHERE kind = 'release' ORDER BY lsn DESC"):
        if isinstance(record := rec.unpack("release", data), rec.ReleaseRecord):
            yield record


class _Audit:
    def __init__(self, store: Store, core: AggregatorCore, engine: Engine, checkpoints: dict[int, Checkpoint]) -> None:
        self._store, self._core, self._engine, self._checkpoints = store, core, engine, checkpoints
        self._updates, self._devices = 0, set[str]()
        self._waiting: list[tuple[str, bool]] = []
        """What was compared of versions from which the next release goes on; of the last release, if there is none."""
        self._sums: dict[tuple[int, int], bytes] = {}
        """Hashes of subtrees of the log, computed again."""

    def releases(self, first: int, last: int | None) -> Iterator[AuditedRelease]:
        current: AuditedRelease | None = None
        for record, frames in execute(self._core, self._engine):
            if isinstance(record, rec.StepRecord):
                self._stepped(record)
            if isinstance(record, rec.ReleaseRecord):
                if current is not None:
                    yield current
                current = self._released(record) if first <= record.version <= (last or record.version) else None
                if current is not None:
                    self._note_waiting(current)
                self._waiting.clear()
                self._updates, self._devices = 0, set()
                if last is not None and record.version > last:
                    return
            if isinstance(record, rec.RegisterRecord | rec.RollbackRecord):
                self._compare_registered(record, current)
            elif current is not None:
                self._compare(record, frames, current)
            if current is not None:
                self._compare_checkpoint(record, current)
        behind = self._behind()
        if current is not None:
            self._note_waiting(current)
            current.wrong += behind
            yield current
        elif behind:
            raise StoreError(
                f"The journal in {self._store.directory} ends with record {self._core.lsn} and version "
                f"{self._core.version}, but the store has more: {', '.join(behind)}. The newest records were removed: "
                "`midge store verify` and a backup say more."
            )

    def _behind(self) -> list[str]:
        """What the store has of releases behind the journal's last record, which made all of it."""
        checkpoint, logged = max(self._checkpoints), self._store.ledger.newest_lsn()
        # Registered versions are kept longer, also by a salvage; a gateway has frames before it follows to them.
        gateway = self._store.query("SELECT 1 FROM journal WHERE kind = 'follow' LIMIT 1")
        frames = [each.version for each in self._store.published() if each.span != REGISTERED and not gateway]
        version, lsn = max(frames, default=0), self._core.lsn
        found = [f"checkpoint {checkpoint} behind the journal's end"] if checkpoint > lsn else []
        found += [f"frames of version {version} behind the journal's end"] if version > self._core.version else []
        found += [f"log of record {logged} behind the journal's end"] if logged > lsn else []
        return found

    def _note_waiting(self, found: AuditedRelease) -> None:
        for what, same in self._waiting:
            _note(found, what, same)
        self._waiting.clear()

    def _stepped(self, record: rec.StepRecord) -> None:
        self._updates += len(record.updates)
        if record.combine != "masked":
            found = (self._store.record(lsn) for lsn, _ in record.updates)
            self._devices |= {one.device for one in found if isinstance(one, rec.UpdateRecord)}

    def _released(self, record: rec.ReleaseRecord) -> AuditedRelease:
        state = self._engine.model.state
        return AuditedRelease(
            record.version,
            self._core.generation,
            record.step,
            record.at,
            state.digest().hex(),
            self._updates,
            len(self._devices),
        )

    def _compare(self, record: rec.Record, frames: list[Frame], found: AuditedRelease) -> None:
        if isinstance(record, rec.ReleaseRecord):
            self._compare_ledger(record, found)
        for frame in frames:
            self._compare_frame(frame, found)

    def _compare_checkpoint(self, record: rec.Record, found: AuditedRelease) -> None:
        checkpoint = self._checkpoints.get(record.lsn)
        if checkpoint is not None:
            assert self._store.schema is not None
            model = Model.load(self._store.schema, checkpoint.arrays, checkpoint.values)
            _note(found, f"checkpoint {record.lsn}", model.digest() == self._engine.model.digest())

    def _compare_registered(
        self, record: rec.RegisterRecord | rec.RollbackRecord, found: AuditedRelease | None
    ) -> None:
        """The snapshot of a registered version, also one that training went back to, with the registered digest."""
        body = self._store.body(record.lsn)
        version = record.version if isinstance(record, rec.RegisterRecord) else record.to
        known = self._core.registry.versions.get(version)
        if known is None:
            return
        same = _digest(body) == known.record.digest
        what = f"return to version {version}"
        if isinstance(record, rec.RegisterRecord):
            what, served = f"registered version {version}", self._store.frame(version, REGISTERED)
            same = same and served in (None, body)
            if version == self._engine.model.version:  # otherwise it is no release: a counterfactual was promoted
                same = same and record.digest == self._engine.model.used().digest()
                if found is not None:
                    _note(found, what, same)
                return
        self._waiting.append((what, same))

    def _compare_ledger(self, record: rec.ReleaseRecord, found: AuditedRelease) -> None:
        """The entries of the release, from the journal and the executed state, and the root, with the log's."""
        ledger = self._store.ledger
        logged = ledger.logged(record.lsn)
        if logged is None:
            if ledger.lost(record.lsn):  # otherwise from before the log, or not in it yet
                _note(found, "log of releases, which had this one", same=False)
            return
        if record.devices and not ledger.keyed:
            _note(found, "log of releases, whose key is gone", same=False)
            return
        last, root = logged
        release = LoggedRelease(found.generation, record.version, record.step, bytes.fromhex(found.digest), 0)
        entries = ledger.entries(record, release)
        first = last - len(entries) + 1
        found.log = str(Head(last + 1, root))
        try:
            leaves = [ledger.node(0, place) for place in range(max(first, 0), last + 1)]
            kept = zip(ledger.where(first, last), leaves, entries, strict=True)
            same = all(
                (lsn, weight) == (one.lsn, one.weight)
                and (one.erased or (leaf == merkle.leaf_hash(one.entry) and tag == one.tag))
                for (lsn, tag, weight), leaf, one in kept
            )
            again = merkle.root(self._hashed, last + 1)
        except (LookupError, ValueError):  # something is missing
            same, again = False, b""
        _note(found, f"log of {counted(last + 1, 'entry', 'entries')}", same and again == root)

    def _hashed(self, level: int, place: int) -> bytes:
        """The hash of a complete subtree of the log; empty if it does not follow from the ones below it.

        Raises:
            LookupError: it is not kept.
        """
        if (level, place) not in self._sums:
            found = self._store.ledger.node(level, place)
            with suppress(LookupError):  # below are no nodes any more, or it is a leaf
                if level and merkle.node_hash(*(self._hashed(level - 1, 2 * place + each) for each in (0, 1))) != found:
                    found = b""
            self._sums[level, place] = found
        return self._sums[level, place]

    def _compare_frame(self, frame: Frame, found: AuditedRelease) -> None:
        data = self._store.frame(frame.version, frame.span)
        if data is None:
            found.gone += 1
            return
        name = _SPANS.get(frame.span, f"steps over {frame.span}")
        _note(found, f"{name} {frame.version}", data == frame.data)


def _digest(snapshot: bytes) -> bytes:
    """The digest of the state in a snapshot; empty if it is none."""
    try:
        return lineage.decode_snapshot(snapshot).digest()
    except WireError:
        return b""


def _note(found: AuditedRelease, what: str, same: bool) -> None:
    (found.same if same else found.wrong).append(what)
