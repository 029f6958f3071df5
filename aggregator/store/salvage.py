"""Salvage: the best store that the parts of a damaged one allow, and an exact list of losses.

It continues from the checkpoint that leads furthest with the journal after it, up to the first record that is missing
or damaged: decisions after that would give another model. The damaged store is only read.
"""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.presets import fedasync
from midge.aggregator.engine import recover
from midge.aggregator.store import audit_log, meta_table
from midge.aggregator.store.backup import beside
from midge.aggregator.store.consistency import CHANGES, WITNESSED, Note, noted
from midge.aggregator.store.device_erasure import FORGOTTEN, SEEN
from midge.aggregator.store.errors import StoreDamaged, StoreError, StoreInUse, making
from midge.aggregator.store.evidence import COLUMNS, Evidence, Kept, Row, gather
from midge.aggregator.store.history import Period
from midge.aggregator.store.journal import checksum
from midge.aggregator.store.ledger import KEY as LEDGER_KEY
from midge.aggregator.store.meta_table import row_checksum
from midge.aggregator.store.migrations import FORMAT, FORMAT_NAME
from midge.aggregator.store.put_back import private
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.registered import snapshot_of
from midge.aggregator.store.restoring import begin_behind, new_store
from midge.aggregator.store.segments import segment_file
from midge.aggregator.store.shard_stores import shard_stores
from midge.aggregator.store.store import Store
from midge.storage.files import atomic_write, copy_file, make_folder, sync_folder
from midge.storage.read_only import kept_closed

LOST = "This record is lost: the store was salvaged from a damaged one."
"""The text in the place of a record that could not be read."""
_KEY = ("name_key_check", "audit_end")
"""Metadata that depend on the key of the audit log."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Committed data that a salvaged store lacks."""

    first: int
    """The first lost record …"""
    last: int
    """… and the last; one less than `first` if none is lost."""
    updates: int
    """Lost updates whose devices have receipts; an upper bound unless `exact` is set."""
    exact: bool
    devices: dict[str, int]
    """Number of these updates by device, as far as their records can be read."""
    changes: int
    """Changes beside the journal, such as withdrawn devices."""
    said: tuple[str, ...] = ()
    """Other damage, as text."""

    @property
    def records(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Remains:
    """The checkpoint that a store can be made from, and the end of its journal."""

    kept: Kept
    end: int
    """The last record that it has."""
    generation: int
    version: int
    step: int
    digest: str
    """Of the released state, as devices compute it."""
    whole: str
    """Of the resulting model with what is not released yet."""
    loss: Loss


def plan(directory: Path) -> Remains:
    """What `salvage` would make of a store that no aggregator has open. Writes nothing.

    Raises:
        StoreInUse: one has.
        StoreDamaged: nothing can be made of it.
    """
    evidence = _evidence(directory)
    for kept, end in _ways(evidence):
        with TemporaryDirectory(prefix="midge-") as folder:
            found = _tried(evidence, kept, end, directory, Path(folder, "trial"), linked=True)
            if found is not None:
                return found
    raise _nothing_salvageable(directory)


def salvage(directory: Path, target: Path, by: str) -> Remains:
    """Make a new store from the rest of a damaged one; it begins a new generation at its next start.

    Args:
        directory: the damaged store, which stays unchanged.
        target: the store to make; it must not exist, or be empty.
        by: the operator, for the audit log.

    Raises:
        StoreInUse: an aggregator has the damaged store open.
        StoreDamaged: nothing can be made of it.
        StoreFull: there is no room; nothing is left of the attempt.
        StoreError: there is a store already.
    """
    if target.resolve() == directory.resolve():
        raise StoreError(f"{target} is the damaged store itself, which is kept: name another folder.")
    evidence = _evidence(directory)
    with making(f"The store {target}"), new_store(target) as unfinished:
        for kept, end in _ways(evidence):
            found = _tried(evidence, kept, end, directory, unfinished / "trial", linked=False)
            if found is not None:
                break
        else:
            raise _nothing_salvageable(directory)
        for path in (unfinished / "trial").iterdir():
            path.rename(unfinished / path.name)
        (unfinished / "trial").rmdir()
        _copy_shards(directory, unfinished)
        loss = found.loss
        begin_behind(
            unfinished, found.generation, "salvaged", by, first_lost=loss.first, lost=loss.records, updates=loss.updates
        )
    return found


def _copy_shards(directory: Path, unfinished: Path) -> None:
    """Copy the stores of shards as they are: a damaged one can be salvaged by itself.

    Raises:
        StoreInUse: a shard has one open.
    """
    for store in shard_stores(directory):
        with kept_closed(store / "lock") as closed:
            if not closed:
                raise StoreInUse(f"The store {store} is in use by a shard: stop it first.")
            for path in sorted(path for path in store.rglob("*") if path.is_file() and path.name != "lock"):
                copy = unfinished / path.relative_to(directory)
                make_folder(copy.parent)
                _copy_or_link(path, copy, linked=False)
                sync_folder(copy.parent)


def _nothing_salvageable(directory: Path) -> StoreDamaged:
    return StoreDamaged(
        f"Nothing can be made of the store {directory}: no checkpoint in it is whole, or the model's description "
        "cannot be read. Restore a backup."
    )


def _evidence(directory: Path) -> Evidence:
    if not directory.is_dir():
        raise StoreError(f"{directory} is no store of an aggregator: there is no such folder.")
    evidence = gather(directory)
    if evidence.running:
        raise StoreInUse(f"The store {directory} is in use by an aggregator: stop it first.")
    return evidence


# ------------------------------------------------------------------------------- plans


def _ways(evidence: Evidence) -> list[tuple[Kept, int]]:
    """Checkpoints to continue from, each with the last record of its journal; the furthest first."""
    if evidence.schema is None or not isinstance(evidence.meta.get("lineage"), bytes):
        return []
    rows, found = evidence.rows, []
    for kept in evidence.checkpoints:
        if all(lsn in rows and rows[lsn].whole for lsn in kept.bodies):
            end = kept.lsn
            while end + 1 in rows and rows[end + 1].whole:
                end += 1
            found.append((kept, end))
    return sorted(found, key=lambda way: (way[1], way[0].proven, way[0].lsn), reverse=True)


def loss_of(evidence: Evidence, note: Note | None) -> Loss:
    """The loss if the store is salvaged from this evidence."""
    for kept, end in _ways(evidence):
        return loss_behind(evidence, kept, end, note)
    lost = loss_behind(evidence, None, 0, note)
    return lost if note is None else replace(lost, updates=max(lost.updates, note.updates))


def loss_behind(evidence: Evidence, kept: Kept | None, end: int, note: Note | None) -> Loss:
    """The loss if the journal ends here."""
    last = max(evidence.newest, end, 0 if note is None else note.lsn)
    behind = {lsn: row for lsn, row in evidence.rows.items() if end < lsn <= last}
    updates = Counter(row.record.device for row in behind.values() if isinstance(row.record, rec.UpdateRecord))
    unread = last - end - len(behind)
    known, exact = updates.total(), unread == 0
    if unread and note is not None and kept is not None and kept.updates is not None:
        before = kept.updates + _updates(evidence.rows, kept.lsn + 1, end)
        after = _updates(evidence.rows, note.lsn + 1, last)
        known = max(note.updates - before + after, known)
        exact = all(lsn in behind for lsn in range(max(note.lsn, end) + 1, last + 1))
    elif unread:
        known += unread
    changes = 0 if note is None else max(0, note.changes - _number(evidence.meta.get(CHANGES)))
    return Loss(end + 1, last, known, exact, dict(updates), changes)


def _updates(rows: dict[int, Row], first: int, last: int) -> int:
    return sum(lsn in rows and isinstance(rows[lsn].record, rec.UpdateRecord) for lsn in range(first, last + 1))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def note_of(directory: Path, evidence: Evidence) -> Note | None:
    """The witness's record for this store; None if it has none, or belongs to another."""
    note, _ = noted(directory)
    return note if note is not None and note.lineage == evidence.meta.get("lineage", note.lineage) else None


# ------------------------------------------------------------------------------ making


def _tried(evidence: Evidence, kept: Kept, end: int, directory: Path, folder: Path, *, linked: bool) -> Remains | None:
    """Make a store, and check that its model can be rebuilt; None if it cannot, and nothing is left of it.

    A mere trial links to the files.
    """
    make_folder(folder)
    said = _make(evidence, kept, end, directory, folder, linked=linked)
    try:
        with ReadOnlyStore(folder) as store:
            assert store.schema is not None
            core = AggregatorCore(fedasync(), lineage=store.lineage, schema_hash=store.schema.hash)
            engine = recover(core, store, store.schema)
            spent = private(store.query)
            missing = [each.version for each in core.registry.versions.values() if snapshot_of(store, each) is None]
    except (StoreError, ValueError, TypeError, KeyError, IndexError, AssertionError):
        shutil.rmtree(folder)
        return None
    if not kept.proven:
        said.append(f"{kept.file} has no entry in the database that proves it; it can be read, and its journal fits")
    said += [f"the values of the registered version {version} are lost" for version in missing]
    loss = loss_behind(evidence, kept, end, note_of(directory, evidence))
    if spent and loss.records:
        said.append("what devices spent of their budget of privacy in the lost records is not known: lower `epsilon`")
    digest, whole = engine.model.state.digest().hex(), engine.model.digest().hex()
    return Remains(kept, end, core.generation, core.version, core.step, digest, whole, replace(loss, said=tuple(said)))


def _make(evidence: Evidence, kept: Kept, end: int, directory: Path, folder: Path, *, linked: bool) -> list[str]:
    """Write a store's files; return what is damaged in it."""
    with Store(folder):  # creates its tables
        pass
    meta = {name: value for name, value in evidence.meta.items() if name not in {WITNESSED, CHANGES, LEDGER_KEY}}
    lost_key = _drop_lost_key(directory, meta, evidence)
    rows = list(_rows(evidence, kept, end))
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as db:
        db.execute("BEGIN")
        for name, value in {**meta, FORMAT_NAME: FORMAT}.items():
            meta_table.enter(db, name, value)
        db.executemany(f"INSERT INTO journal ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
        entered = (kept.lsn, kept.file, kept.sha256, kept.oldest_body, kept.oldest_base, kept.updates or 0)
        db.execute(
            "INSERT INTO checkpoints (lsn, file, sha256, oldest_body, oldest_base, updates, crc) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*entered, row_checksum(entered)),
        )
        db.executemany(
            "INSERT INTO frames (version, span, data, parts, digest, crc) VALUES (?, ?, ?, ?, ?, ?)",
            evidence.registered.values(),
        )
        for table, statement in (("forgotten", FORGOTTEN), ("seen", SEEN)):
            db.execute(statement)
            for row in evidence.beside.get(table, ()):
                db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
        history = [period for row in evidence.beside.get("history", ()) if (period := Period.of(row)) is not None]
        for period in history:
            period.lsn = min(period.lsn, end)  # otherwise the next records would count as known
        db.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", [period.row() for period in history])
        db.execute("COMMIT")
    segments = {segment_file(row[5]) for row in rows if row[5] is not None}
    for name in [kept.file, *sorted(segments)]:
        _copy_or_link(directory / name, folder / name, linked=linked)
    if not linked:
        for name, data in beside(directory):
            if lost_key and name in {audit_log.KEY, audit_log.AUDIT}:
                name = f"{name}.unproven"  # noqa: PLW2901 - kept for people
            make_folder((folder / name).parent)
            atomic_write(folder / name, data)
    sync_folder(folder)
    if evidence.damaged_names and not lost_key:
        return [f"entries of withdrawn devices are damaged ({evidence.damaged_names}): withdraw these devices again"]
    return [lost_key] if lost_key else []


def _copy_or_link(source: Path, target: Path, *, linked: bool) -> None:
    if linked:
        target.symlink_to(source.resolve())
        return
    with source.open("rb") as file:
        copy_file(file, target)


def _rows(evidence: Evidence, kept: Kept, end: int) -> Iterator[tuple[Any, ...]]:
    """The journal's remaining rows.

    Up to the checkpoint nothing is replayed: references to lost bodies are removed, and a lost record is replaced by
    one that says so, because there may be no gap after the oldest needed body.
    """
    first = min(kept.oldest_body, *evidence.rows, kept.lsn + 1) if evidence.rows else kept.oldest_body
    for lsn in range(first, end + 1):
        row = evidence.rows.get(lsn)
        if row is not None and row.whole:
            yield row.columns
        elif row is not None:
            packed = rec.pack(row.record)
            yield (lsn, rec.kind(row.record), packed, None, checksum(packed, None), None, None, None)
        elif lsn >= kept.oldest_body:
            gone = rec.StrategyRecord(lsn, LOST)
            packed = rec.pack(gone)
            yield (lsn, rec.kind(gone), packed, None, checksum(packed, None), None, None, None)


def _drop_lost_key(directory: Path, meta: dict[str, Any], evidence: Evidence) -> str:
    """Drop the metadata that depend on a lost or damaged names' key, so that the store opens; return a note."""
    if "name_key_check" not in meta or audit_log.is_key(directory / audit_log.KEY, meta["name_key_check"]):
        return ""
    for name in _KEY:
        meta.pop(name, None)
    many = len(evidence.beside.pop("forgotten", ()))
    return (
        f"{audit_log.KEY} is missing or damaged: {many} withdrawn devices are not known any more: withdraw them again"
    )
