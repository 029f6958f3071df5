"""Consistency of a store's files: the journal, its witness, checkpoints and segments.

The witness records the newest commit, and is synced before anything is sent. A journal that ends before it has lost
updates whose devices have receipts; their number is known, because both count updates from the beginning.
"""

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.aggregator.store import meta_table
from midge.aggregator.store.checkpoint_table import entered
from midge.aggregator.store.errors import StoreDamaged, StoreError, what_to_do
from midge.aggregator.store.journal import decided_before
from midge.aggregator.store.migrations import FORMAT, refuse_newer
from midge.storage.read_only import read_only as database_read_only
from midge.storage.witness import CommitWitness, Noted
from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.plurals import counted

log = logging.getLogger("aggregator")

DATABASE, WITNESS = "store.db", "store.db.witness"
UNFINISHED = ".unfinished"
"""A folder in a store's directory during a restore."""
FOLLOWS = "follows"
"""A file in the directory of a store that follows another one (`aggregator.standby`)."""
CHANGES, WITNESSED = "changes", "witness"
"""Names in the metadata: the number of changes beside the journal, and whether the store has a witness."""
_COLUMNS = {
    "sums": "name, crc",
    "journal": "lsn, kind, record, body, crc, segment, place, size",
    "checkpoints": "lsn, file, sha256, oldest_body, oldest_base, updates, crc",
    "frames": "version, span, data, parts, offered, digest, crc",
    "forgotten": "hash",
    "seen": "device, at, version",
    "history": "began, seconds, lsn, data, crc",
}
_AHEAD = 4096
"""Records that the journal may be ahead of the witness: more than one commit has."""


@dataclass(frozen=True, slots=True)
class Note:
    """The witness's record of a store's newest commit."""

    lineage: bytes
    lsn: int
    """The newest record, and the CRC of its row."""
    crc: int
    updates: int
    """Updates decided on since the store began, up to there."""
    changes: int
    """Changes beside the journal, such as withdrawn devices."""

    def packed(self) -> bytes:
        return frames.pack([self.lineage, self.lsn, self.crc, self.updates, self.changes])

    @classmethod
    def unpacked(cls, data: bytes) -> "Note | None":
        """None if it is no such record."""
        try:
            return cls(*frames.unpack(data))
        except (WireError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Standing:
    """State of the database and the files beside it."""

    lineage: bytes
    lsn: int
    """The newest record."""
    oldest: int
    """The oldest record in the journal; one above `lsn` if it has none."""
    crc: int | None
    """CRC of the row that the witness names; None if there is none."""
    updates: int
    changes: int
    checkpoint: int
    """The newest checkpoint in the database, and the number of updates decided on there."""
    checkpointed: int
    file: int
    """The newest checkpoint with a file."""
    witnessed: bool
    """Whether it ever had a witness."""
    rotten: tuple[str, ...] = ()
    """Damaged metadata."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison."""

    refusal: str = ""
    """Why the store must not be opened; empty if it may."""
    at_stake: int | None = 0
    """Lost updates whose devices have receipts; None if their number is unknown …"""
    most: bool = False
    """… or an upper bound, if they cannot be counted."""
    proven: bool = True
    """Whether bodies after the journal's last one were never committed, and may be cut off."""
    warnings: tuple[str, ...] = ()
    """Messages for the log that need no decision."""


def judge(standing: Standing, note: Note | None, *, damaged: bool = False) -> Comparison:
    """Compare a database with its witness.

    Args:
        standing: state of the database and the files.
        note: the witness's record; None if there is none.
        damaged: whether one of the witness's two pages is damaged.
    """
    if standing.rotten:
        return _refused(f"its metadata are damaged: {', '.join(standing.rotten)}", 0)
    if standing.file > standing.lsn:
        lost = note.updates - standing.updates if note is not None else standing.file - standing.lsn
        return _refused(
            f"there is a checkpoint of record {standing.file}, and the journal ends at record {standing.lsn}", lost
        )
    if note is None:
        if not standing.witnessed:
            return Comparison(proven=True)
        if standing.lsn == standing.checkpoint == 0:  # a power cut before the first record
            return Comparison()
        why = f"The witness {WITNESS} is missing or damaged; it is made again from the journal. See to the disk."
        return Comparison(proven=False, warnings=(why,))
    if note.lineage != standing.lineage:
        return _refused("the witness beside it belongs to another store", note.updates)
    if note.lsn > standing.lsn:
        return _refused(
            f"the journal ends at record {standing.lsn}, and record {note.lsn} was committed",
            note.updates - standing.updates,
        )
    if standing.crc is None:
        if note.lsn >= standing.oldest and note.lsn > standing.checkpoint:
            return _refused(f"record {note.lsn} was committed and is not in the journal", 1)
    elif standing.crc != note.crc:
        return _refused(
            f"record {note.lsn} is not the one that was committed under this number", note.updates - standing.updates
        )
    if note.updates > standing.updates:
        return _refused("the journal lacks updates that were committed", note.updates - standing.updates)
    if note.changes > standing.changes:
        return _refused(
            f"{note.changes - standing.changes} changes beside the journal are gone, such as a device that was "
            "withdrawn or an epoch that was raised",
            0,
        )
    old = note.lsn < standing.checkpoint or standing.changes > note.changes + 1 or standing.lsn > note.lsn + _AHEAD
    if old:
        why = f"The witness {WITNESS} is older than the journal, an old copy. It is made again."
        return Comparison(proven=False, warnings=(why,))
    if damaged:
        why = f"A page of the witness {WITNESS} is incomplete after a power cut, or damaged."
        return Comparison(warnings=(why,))
    return Comparison()


def _refused(why: str, at_stake: int | None, *, most: bool = False) -> Comparison:
    return Comparison(why, None if at_stake is None else max(at_stake, 0), most=most, proven=False)


def check_consistency(directory: Path) -> bool:
    """Check whether a store may be opened or begun, and log findings.

    Returns whether bodies without a record were never committed.

    Raises:
        StoreError: its files do not belong together, or it is of a later Midge.
    """
    if (directory / FOLLOWS).exists():
        raise StoreError(
            f"The store {directory} is the copy of a standby: start it with --standby. If the aggregator that it "
            f"follows will not come back: midge store promote {directory}"
        )
    found = examine(directory)
    if found is None:
        _refuse_leftovers(directory)
        return True
    for line in found.warnings:
        log.warning("%s", line)
    if not found.refusal:
        return found.proven
    raise StoreDamaged(
        f"The files of the store {directory} do not belong together: {found.refusal}. "
        f"{what_to_do(directory, found.at_stake, most=found.most)}"
    )


def _refuse_leftovers(directory: Path) -> None:
    """Refuse to begin a store beside files of an earlier one: they would be removed with time.

    Raises:
        StoreError: there are some.
    """
    if (directory / UNFINISHED).exists():
        raise StoreError(f"A restore into {directory} was interrupted: repeat the command.")
    left = [*directory.glob("checkpoint-*.safetensors"), *directory.glob("bodies-*")]
    note = noted(directory)[0]
    if note is not None and note.lsn:
        left.append(directory / WITNESS)
    if left:
        many = "" if note is None else f" At stake: {counted(note.updates, 'update')}, receipted."
        raise StoreError(
            f"{directory} has checkpoints or bodies of updates ({min(left).name}), but nothing is in {DATABASE} any "
            f"more.{many} Restore it from a backup, or name another directory to begin."
        )


def noted(directory: Path) -> tuple[Note | None, Noted]:
    """The witness's record, and the state of its file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        found = CommitWitness(directory / WITNESS).read()
    except OSError as error:
        raise StoreError(f"{directory / WITNESS} cannot be read ({error.strerror}).") from error
    return (None if found.note is None else Note.unpacked(found.note)), found


def examine(directory: Path) -> Comparison | None:
    """Compare the files of a store without changing any; None if there is no store, or it was not begun.

    Raises:
        StoreError: it is of a later Midge, or cannot be read at all.
    """
    path = directory / DATABASE
    if not path.is_file() or path.stat().st_size == 0:
        return None
    note, witness = noted(directory)
    if witness.foreign:
        return _refused(f"in the place of the witness {WITNESS} lies another file", None)
    try:
        with read_only(path) as db:
            (structure,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            standing = standing_of(db, directory, note)
    except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError) as error:
        return _refused(f"{DATABASE} cannot be read ({error})", 0 if note is None else note.updates, most=True)
    if standing is None:
        return None
    if structure != "ok":
        at_stake = 0 if note is None else note.updates - standing.checkpointed
        return _refused(f"{DATABASE} is not whole ({' '.join(structure.split())})", at_stake, most=True)
    return judge(standing, note, damaged=witness.damaged)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only database: closing it neither writes SQLite's log back nor deletes it, as a writer's would."""
    with database_read_only(path, lock=path.parent / "lock") as db:
        yield db


def standing_of(db: sqlite3.Connection, directory: Path, note: Note | None) -> Standing | None:
    """State of a database and the files beside it; None if it has no lineage yet.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {"meta", "journal", "checkpoints"} <= tables:
        return None
    meta = dict(db.execute("SELECT name, value FROM meta"))
    if "lineage" not in meta:
        return None
    refuse_newer(directory, meta.get("format"), meta.get("midge"))
    for table, columns in _COLUMNS.items():  # column names can be damaged as well
        if table in tables and meta["format"] == FORMAT:
            db.execute(f"SELECT {columns} FROM {table} LIMIT 1").fetchall()  # noqa: S608 - constants

    def query(statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return db.execute(statement, values).fetchall()

    newest, oldest = db.execute("SELECT max(lsn), min(lsn) FROM journal").fetchone()
    checkpoints = entered(query)
    lsn = max(newest or 0, *(row.lsn for row in checkpoints), 0)
    crc = None
    if note is not None:
        row = db.execute("SELECT crc FROM journal WHERE lsn = ?", (note.lsn,)).fetchone()
        crc = None if row is None else row[0]
    return Standing(
        lineage=bytes(meta["lineage"]),
        lsn=lsn,
        oldest=lsn + 1 if oldest is None else oldest,
        crc=crc,
        updates=decided_before(query, lsn + 1),
        changes=int(meta.get(CHANGES, 0)),
        checkpoint=checkpoints[0].lsn if checkpoints else 0,
        checkpointed=checkpoints[0].updates if checkpoints else 0,
        file=max((_lsn(file) for file in directory.glob("checkpoint-*.safetensors")), default=0),
        witnessed=WITNESSED in meta,
        rotten=tuple(meta_table.rotten(query, meta)),
    )


def _lsn(file: Path) -> int:
    number = file.name.removeprefix("checkpoint-").removesuffix(".safetensors")
    return int(number) if number.isdecimal() else 0
