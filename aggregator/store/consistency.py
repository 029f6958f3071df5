"""Whether the files of a store belong together: the journal, its witness, checkpoints and segments.

The witness holds a note of the newest commit, synced before anything is told. A journal that ends before it has lost
what devices have receipts for; how many updates that are is known, for both count them from the beginning.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midge.aggregator.store.errors import StoreError
from midge.storage.read_only import read_only as database_read_only
from midge.storage.witness import CommitWitness
from midge.wire import frames
from midge.wire.errors import WireError

DATABASE, WITNESS = "store.db", "store.db.witness"
UNFINISHED = ".unfinished"
"""A folder in a store's directory in which it is being put back."""
CHANGES, WITNESSED = "changes", "witness"
"""In the metadata: how many changes were made beside the journal, and whether the store has a witness."""
_AHEAD = 4096
"""Records that the journal may be ahead of its note without a word: more than one commit has."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the witness holds of a store's newest commit."""

    lineage: bytes
    lsn: int
    """The newest record, and the CRC of its row."""
    crc: int
    updates: int
    """Updates that were decided on since the store began, up to there."""
    changes: int
    """Changes beside the journal, such as a device that was withdrawn."""

    def packed(self) -> bytes:
        return frames.pack([self.lineage, self.lsn, self.crc, self.updates, self.changes])

    @classmethod
    def unpacked(cls, data: bytes) -> "Note | None":
        """None if it is no note."""
        try:
            return cls(*frames.unpack(data))
        except (WireError, TypeError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the database and the files beside it have come."""

    lineage: bytes
    lsn: int
    """The newest record."""
    oldest: int
    """The oldest record that the journal still has; one above `lsn` if it has none."""
    crc: int | None
    """Of the row that the note names; None if there is none."""
    updates: int
    changes: int
    checkpoint: int
    """The newest checkpoint that the database knows."""
    file: int
    """The newest one whose file is there."""
    witnessed: bool
    """Whether it ever had a witness."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison comes to."""

    refusal: str = ""
    """Why the store must not be opened; empty if it may."""
    at_stake: int = 0
    """Updates that the devices have receipts for, and that would be lost."""
    proven: bool = True
    """Whether what lies behind the journal's last body was never committed, and may be cut off."""
    said: tuple[str, ...] = ()
    """What is to be told and needs no one to decide."""


def judge(standing: Standing, note: Note | None, *, damaged: bool = False) -> Comparison:
    """Compare a database with its witness.

    Args:
        standing: what the database and the files say.
        note: what the witness says; None if it says nothing.
        damaged: whether one of the witness's two pages is not whole.
    """
    if standing.file > standing.lsn:
        lost = note.updates - standing.updates if note is not None else standing.file - standing.lsn
        return _refused(
            f"there is a checkpoint of record {standing.file}, and the journal ends at record {standing.lsn}", lost
        )
    if note is None:
        if not standing.witnessed:
            return Comparison(proven=True)
        if standing.lsn == standing.checkpoint == 0:  # the power went before the first note
            return Comparison()
        why = f"The witness {WITNESS} is gone or has rotted; it is made again from the journal. See to the disk."
        return Comparison(proven=False, said=(why,))
    if note.lineage != standing.lineage:
        return _refused("the witness beside it belongs to another store", note.updates)
    if note.lsn > standing.lsn:
        return _refused(
            f"the journal ends at record {standing.lsn}, and record {note.lsn} was committed",
            note.updates - standing.updates,
        )
    if standing.crc is None:
        if note.lsn >= standing.oldest:
            return _refused(f"record {note.lsn} was committed and is not in the journal", 1)
    elif standing.crc != note.crc:
        return _refused(
            f"record {note.lsn} is not the one that was committed under this number", note.updates - standing.updates
        )
    if note.changes > standing.changes:
        return _refused(
            f"{note.changes - standing.changes} changes beside the journal are gone, such as a device that was "
            "withdrawn or an epoch that was raised",
            0,
        )
    old = note.lsn < standing.checkpoint or standing.changes > note.changes + 1 or standing.lsn > note.lsn + _AHEAD
    if old:
        why = f"The witness {WITNESS} is older than the journal: an old copy of it was put back. It is made again."
        return Comparison(proven=False, said=(why,))
    if damaged:
        why = f"A page of the witness {WITNESS} is not whole: the power went while it was written, or it has rotted."
        return Comparison(said=(why,))
    return Comparison()


def _refused(why: str, at_stake: int) -> Comparison:
    return Comparison(why, max(at_stake, 0), proven=False)


def belonging(directory: Path) -> Comparison:
    """What is to be known of a store that may be opened, or begun.

    Raises:
        StoreError: its files do not belong together, or the database cannot be read.
    """
    found = examine(directory)
    if found is None:
        _refuse_leftovers(directory)
        return Comparison()
    if not found.refusal:
        return found
    many = "1 update that was" if found.at_stake == 1 else f"{found.at_stake} updates that were"
    raise StoreError(
        f"The files of the store {directory} do not belong together: {found.refusal}. At stake: {many} receipted. "
        "Nothing was changed. Put back the file that is missing or wrong, or restore a backup; to go on without: "
        f"midge store salvage {directory} {directory}.new --accept-loss"
    )


def _refuse_leftovers(directory: Path) -> None:
    """Refuse to begin beside what only an earlier store can have written: it would be removed with time.

    Raises:
        StoreError: there is some.
    """
    if (directory / UNFINISHED).exists():
        raise StoreError(f"A store was being put back into {directory}, and that did not end: give the command again.")
    left = [*directory.glob("checkpoint-*.safetensors"), *directory.glob("bodies-*")]
    note = noted(directory)[0]
    if note is not None and note.lsn:
        left.append(directory / WITNESS)
    if left:
        many = "" if note is None else f" At stake: {note.updates} updates that were receipted."
        raise StoreError(
            f"{directory} has checkpoints or bodies of updates ({min(left).name}), but nothing is in {DATABASE} any "
            f"more.{many} Restore it from a backup, or name another directory to begin."
        )


def noted(directory: Path) -> tuple[Note | None, bool]:
    """What the witness says, and whether one of its pages is damaged.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        noted = CommitWitness(directory / WITNESS).read()
    except OSError as error:
        raise StoreError(f"{directory / WITNESS} cannot be read ({error.strerror}).") from error
    return (None if noted.note is None else Note.unpacked(noted.note)), noted.damaged


def examine(directory: Path) -> Comparison | None:
    """Compare the files of a store without changing any; None where there is no store, or it was not yet begun.

    Raises:
        StoreError: the database cannot be read.
    """
    path = directory / DATABASE
    if not path.is_file() or path.stat().st_size == 0:
        return None
    note, damaged = noted(directory)
    with read_only(path) as db:
        standing = standing_of(db, directory, note)
    return None if standing is None else judge(standing, note, damaged=damaged)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A database, to be read only: unlike the last writer's, its end neither writes SQLite's log back nor deletes it.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with database_read_only(path, lock=path.parent / "lock") as db:
            yield db
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}): restore it from a backup.") from error


def standing_of(db: sqlite3.Connection, directory: Path, note: Note | None) -> Standing | None:
    """What a database and the files beside it say; None if it has no lineage yet.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {"meta", "journal", "checkpoints"} <= tables:
        return None
    meta = dict(db.execute("SELECT name, value FROM meta"))
    if "lineage" not in meta:
        return None
    newest, oldest = db.execute("SELECT max(lsn), min(lsn) FROM journal").fetchone()
    (checkpoint,) = db.execute("SELECT max(lsn) FROM checkpoints").fetchone()
    lsn = max(newest or 0, checkpoint or 0)
    crc = None
    if note is not None:
        row = db.execute("SELECT crc FROM journal WHERE lsn = ?", (note.lsn,)).fetchone()
        crc = None if row is None else row[0]
    return Standing(
        lineage=bytes(meta["lineage"]),
        lsn=lsn,
        oldest=lsn + 1 if oldest is None else oldest,
        crc=crc,
        updates=updates_of(db),
        changes=int(meta.get(CHANGES, 0)),
        checkpoint=checkpoint or 0,
        file=max((_lsn(file) for file in directory.glob("checkpoint-*.safetensors")), default=0),
        witnessed=WITNESSED in meta,
    )


def updates_of(db: sqlite3.Connection) -> int:
    """How many updates were decided on since the store began: up to the newest checkpoint, and behind it.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    columns = {name for _, name, *_ in db.execute("PRAGMA table_info(checkpoints)")}
    known = "lsn, updates" if "updates" in columns else "lsn, 0"
    row = db.execute(f"SELECT {known} FROM checkpoints ORDER BY lsn DESC LIMIT 1").fetchone()  # noqa: S608
    lsn, before = row or (0, 0)
    (behind,) = db.execute("SELECT count(*) FROM journal WHERE lsn > ? AND kind = 'update'", (lsn,)).fetchone()
    return int(before) + int(behind)


def _lsn(file: Path) -> int:
    number = file.name.removeprefix("checkpoint-").removesuffix(".safetensors")
    return int(number) if number.isdecimal() else 0
