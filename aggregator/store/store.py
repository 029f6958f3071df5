"""The aggregator's memory on disk: a journal of decisions, the frames that were published, checkpoints.

One SQLite file in WAL mode with synchronous=FULL, so that a commit survives a power cut; beside it the bodies of many
or large updates (`aggregator.store.segments`), and checkpoints as safetensors, written to a temporary file, synced,
renamed, and only then entered. A lock keeps a second aggregator out.

What was accepted is in the journal before its receipt leaves, and the newest checkpoint plus the journal after it is
the model, bit for bit.
"""

import hashlib
import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from midge.aggregator.core import records as rec
from midge.aggregator.model.model import Frame
from midge.aggregator.store.errors import StoreError, StoreFull, StoreInUse
from midge.aggregator.store.journal import Entry, JournalTable
from midge.storage.database import Database, DatabaseError, DiskFull, InUse, ReservedSpace, Unwritable
from midge.storage.failpoints import failpoint
from midge.storage.files import atomic_write, narrow
from midge.wire import frames
from midge.wire.schema import Schema

log = logging.getLogger("aggregator")

__all__ = ["Entry", "Store", "StoreError", "StoreFull", "StoreInUse"]

FORMAT = 1
UNFINISHED = ".unfinished"
"""A folder in a store's directory in which it is being put back."""
KEEP_CHECKPOINTS = 3
KEEP_RECORDS = 100_000
"""How many records stay, without their bodies, so that the life of an update can be told."""
BALLAST = 4 * 2**20
"""Bytes on the disk that are given up where it is full, for what must still be written."""
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
    lsn INTEGER PRIMARY KEY, kind TEXT NOT NULL, record BLOB NOT NULL, body BLOB, crc INTEGER NOT NULL,
    segment INTEGER, place INTEGER, size INTEGER
);
CREATE TABLE IF NOT EXISTS frames (
    version INTEGER NOT NULL, span INTEGER NOT NULL, data BLOB NOT NULL, parts INTEGER NOT NULL,
    offered INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (version, span)
);
CREATE TABLE IF NOT EXISTS checkpoints (
    lsn INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 BLOB NOT NULL, oldest_body INTEGER NOT NULL,
    oldest_base INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Published:
    """A frame in the store: what is offered to devices, and what is only kept to step back with."""

    version: int
    span: int
    size: int
    parts: int
    offered: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything up to `lsn`: arrays of the model, plain values of the model, state of the core."""

    lsn: int
    arrays: dict[str, npt.NDArray[Any]]
    values: dict[str, Any]
    core: dict[str, Any]


class Store:
    """A directory with one federation's lineage in it. Use it as a context manager, from one thread."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._database = Database(self.directory / "store.db", lock=self.directory / "lock")
        self._ballast = ReservedSpace(self.directory / "ballast", BALLAST)
        self._journal = JournalTable(self.directory, self._database)
        self.lineage = b""
        self.schema: Schema | None = None
        """None until `create` was called, in this process or one before."""

    def __enter__(self) -> Self:
        """Lock and open.

        Raises:
            StoreInUse: another aggregator has it open.
            StoreFull: there is no room to make it.
            StoreError: the directory cannot be written, or is of another version of Midge.
        """
        try:
            self._database.open(_TABLES)
        except Unwritable as error:
            raise StoreError(
                f"The store {self.directory} cannot be written ({error}): name a directory that can."
            ) from error
        except InUse as error:
            raise StoreInUse(
                f"The store {self.directory} is in use by another aggregator: stop it, or name another store."
            ) from error
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise self._unreadable(error) from error
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def _full(self) -> StoreFull:
        return StoreFull(f"The disk of the store {self.directory} is full.")

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._database.path} cannot be read ({error}): restore it, or begin with a new store.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._journal.close()
        self._database.close()

    def _take_up(self) -> None:
        """Read what an open store is of."""
        db, path = self._open_db, self._database.path
        try:
            if not any(name == "segment" for _, name, *_ in db.execute("PRAGMA table_info(journal)")):
                for column in ("segment", "place", "size"):  # an older store has no segments
                    db.execute(f"ALTER TABLE journal ADD COLUMN {column} INTEGER")
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error
        meta = dict(db.execute("SELECT name, value FROM meta"))
        if not meta:
            self._refuse_leftovers()
            return
        if meta["format"] != FORMAT:
            raise StoreError(f"{path} has format {meta['format']}; this version of Midge reads {FORMAT}.")
        for stray in self.directory.glob("*checkpoint-*.safetensors*.tmp"):  # of a checkpoint that a kill cut short
            stray.unlink(missing_ok=True)
        for older in self.directory.glob("checkpoint-*"):  # earlier versions left their modes to the umask
            narrow(older)
        self._journal.recover()
        self.lineage = meta["lineage"]
        self.schema = Schema.unpacked(frames.unpack(meta["schema"]))

    def _refuse_leftovers(self) -> None:
        """Refuse to begin beside what only an earlier store can have written: it would be removed with time.

        Raises:
            StoreError: there is some.
        """
        left = [*self.directory.glob("checkpoint-*.safetensors"), *self.directory.glob("bodies-*")]
        if (self.directory / UNFINISHED).exists():
            raise StoreError(
                f"A store was being put back into {self.directory}, and that did not end: give the command again."
            )
        if left:
            raise StoreError(
                f"{self.directory} has checkpoints or bodies of updates ({min(left).name}), but nothing is in "
                f"{self._database.path.name} any more: restore it from a backup, or name another directory to begin."
            )

    @property
    def _open_db(self) -> sqlite3.Connection:
        return self._database.connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is durable when the block is left, or nothing.

        Raises:
            StoreFull: there is no room.
            StoreError: it cannot be written.
        """
        try:
            with self._database.transaction() as db:
                yield db
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise StoreError(
                f"The store {self.directory} cannot be written any more ({error}): see to its disk and start again. "
                "All that was receipted is in it."
            ) from error

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction for who keeps a table of its own in the store.

        Raises:
            StoreFull: there is no room.
            StoreError: it cannot be written.
        """
        return self._writing()

    def query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """What such a table holds."""
        return self._open_db.execute(statement, values).fetchall()

    def constant(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once, and then stays as long as the store."""
        row = self._open_db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            row = (make(),)
            self.set_constant(name, row[0])
        return row[0]

    def set_constant(self, name: str, value: Any) -> None:
        """Put another value in its place."""
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # ---------------------------------------------------------------------- room

    def make_room(self) -> None:
        """Give up the ballast: on a full disk SQLite refuses even to delete."""
        self._ballast.release()

    def has_room(self) -> bool:
        """Whether the disk takes the ballast, which then keeps that room for bad times."""
        return self._ballast.take()

    @property
    def empty(self) -> bool:
        """Whether no model was ever written into it: not even where `create` was called and the power went then."""
        (count,) = self._open_db.execute(
            "SELECT (SELECT count(*) FROM checkpoints) + (SELECT count(*) FROM journal)"
        ).fetchone()
        return bool(count == 0)

    def create(self, schema: Schema) -> None:
        """Begin a lineage in an empty store."""
        assert self.schema is None
        # At random, so that a store that is made again is never taken for the one whose updates devices still hold.
        self.lineage, self.schema = secrets.token_bytes(16), schema
        rows = [("format", FORMAT), ("lineage", self.lineage), ("schema", frames.pack(schema.packed()))]
        with self._writing() as db:
            db.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    # ------------------------------------------------------------------- journal

    def commit(self, entries: Iterable[Entry]) -> None:
        """Make records durable, all or none. When this returns they survive a power cut."""
        entries = list(entries)
        if not entries:
            return
        failpoint("commit.before")
        mark = self._journal.mark
        try:
            with self._writing() as db:
                self._journal.insert(db, entries)
                failpoint("commit.within")
        except BaseException:
            self._journal.cut(mark)
            raise
        failpoint("commit.after")

    def entries(self, after: int) -> Iterator[Entry]:
        """The journal's records behind an lsn, in order.

        Raises:
            StoreError: a record is damaged or missing.
        """
        return self._journal.entries(after)

    def body(self, lsn: int) -> bytes:
        """The body kept with a record.

        Raises:
            StoreError: it is not there, or damaged.
        """
        body = self._journal.at(lsn).body
        if body is None:
            raise self._journal.damaged(lsn)
        return bytes(body)

    def record(self, lsn: int) -> rec.Record:
        """One record.

        Raises:
            StoreError: it is not there, or damaged.
        """
        return self._journal.at(lsn).record

    def newest_lsn(self) -> int:
        """The last record's lsn, or that of the newest checkpoint where the journal is empty."""
        journal, checkpoint = self._open_db.execute(
            "SELECT (SELECT max(lsn) FROM journal), (SELECT max(lsn) FROM checkpoints)"
        ).fetchone()
        return max(journal or 0, checkpoint or 0)

    def rewrite(self, db: sqlite3.Connection, record: rec.Record) -> bool:
        """Put another record in the place of one of the same lsn, without its body; whether that was still there."""
        return self._journal.rewrite(db, record)

    def vacuum(self) -> None:
        """Rewrite the database, so that nothing that was deleted is left in a free page or in the log.

        Raises:
            StoreFull: there is no room for a second copy of it.
        """
        # Deleting alone leaves the bytes in free pages of the file, and in the log until it is written over.
        with self._writing() as db:
            db.execute("VACUUM")
        self._open_db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # -------------------------------------------------------------------- frames

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        """Keep frames, each with its number of parts, before they are published. One that is there stays."""
        # A replay makes frames again that are here; the number of parts that they were announced with stays.
        with self._writing() as db:
            db.executemany(
                "INSERT OR IGNORE INTO frames (version, span, data, parts) VALUES (?, ?, ?, ?)",
                [(frame.version, frame.span, frame.data, parts) for frame, parts in new],
            )

    def published(self) -> list[Published]:
        rows = self._open_db.execute(
            "SELECT version, span, length(data), parts, offered FROM frames ORDER BY version, span"
        )
        return [Published(version, span, size, parts, bool(offered)) for version, span, size, parts, offered in rows]

    def frame(self, version: int, span: int) -> bytes | None:
        """A frame's bytes, where the store has it."""
        row = self._open_db.execute(
            "SELECT data FROM frames WHERE version = ? AND span = ?", (version, span)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def withdraw(self, gone: Iterable[tuple[int, int]], *, keep: bool) -> None:
        """No longer offer frames, by version and span: after their topics were cleared. `keep` keeps their bytes."""
        # Kept where earlier versions are stepped back to: they are needed for as long as updates may come of them.
        statement = "UPDATE frames SET offered = 0" if keep else "DELETE FROM frames"
        with self._writing() as db:
            db.executemany(f"{statement} WHERE version = ? AND span = ?", list(gone))

    # --------------------------------------------------------------- checkpoints

    def checkpoint(self, checkpoint: Checkpoint, *, oldest_body: int, oldest_base: int) -> None:
        """Write everything up to an lsn, then forget what older ones alone needed."""
        arrays = dict(checkpoint.arrays)
        plain = frames.pack({"values": checkpoint.values, "core": checkpoint.core})
        arrays["plain"] = np.frombuffer(plain, np.uint8)
        data = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        name = f"checkpoint-{checkpoint.lsn:012d}.safetensors"
        # The file before its row is durable: a row without its file would stand for a checkpoint that is none, a file
        # without its row is only a stray one.
        with self._writing() as db:
            atomic_write(self.directory / name, data)
            failpoint("checkpoint.written")
            db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)",
                (checkpoint.lsn, name, hashlib.sha256(data).digest(), oldest_body, oldest_base),
            )
        failpoint("checkpoint.entered")
        self._prune()

    def _prune(self) -> None:
        rows = self._open_db.execute(
            "SELECT lsn, file, oldest_body, oldest_base FROM checkpoints ORDER BY lsn DESC"
        ).fetchall()
        # Bodies stay for as long as any checkpoint that is kept may need them: the newest one may be damaged.
        kept, dropped = rows[:KEEP_CHECKPOINTS], rows[KEEP_CHECKPOINTS:]
        needed = min(min(lsn + 1, body) for lsn, _, body, _ in kept)
        oldest_base = min(base for *_, base in kept)
        with self._writing() as db:
            db.executemany("DELETE FROM checkpoints WHERE lsn = ?", [(lsn,) for lsn, *_ in dropped])
            self._journal.prune(db, needed, KEEP_RECORDS)
            # A step leads to its version and a snapshot stands for it: of the oldest base only the latter is needed.
            db.execute("DELETE FROM frames WHERE offered = 0 AND version < ? + (span > 0)", (oldest_base,))
        self._journal.pruned(needed)
        failpoint("checkpoint.pruned")
        # Last of all: until here, a restart may find them in the table.
        for _, file, _, _ in dropped:
            (self.directory / file).unlink(missing_ok=True)

    def keep_newest_checkpoint(self) -> int:
        """Delete all checkpoints but the newest; how many these were."""
        rows = self._open_db.execute("SELECT lsn, file FROM checkpoints ORDER BY lsn DESC").fetchall()
        with self._writing() as db:
            db.executemany("DELETE FROM checkpoints WHERE lsn = ?", [(lsn,) for lsn, _ in rows[1:]])
        newest = {file for _, file in rows[:1]}
        for path in self.directory.glob("*checkpoint-*.safetensors*"):
            if path.name not in newest:  # among them what was being written when the power went
                path.unlink(missing_ok=True)
        return max(0, len(rows) - 1)

    def checkpoints(self) -> Iterator[Checkpoint]:
        """The checkpoints whose bytes are what was written, newest first."""
        rows = self._open_db.execute("SELECT lsn, file, sha256 FROM checkpoints ORDER BY lsn DESC").fetchall()
        for lsn, file, sha256 in rows:
            try:
                data = (self.directory / file).read_bytes()
            except OSError as error:
                log.warning("The checkpoint %s cannot be read (%s): an older one is used.", file, error.strerror)
                continue
            # A damaged one is passed over, not refused: an older one and the journal give the same model.
            if hashlib.sha256(data).digest() != sha256:
                log.warning("The checkpoint %s is damaged: an older one is used. See to the disk.", file)
            else:
                arrays = load_tensors(data)
                plain = frames.unpack(arrays.pop("plain").tobytes())
                yield Checkpoint(lsn, arrays, plain["values"], plain["core"])

    def newest_checkpoint(self) -> Checkpoint:
        """The newest checkpoint whose bytes are what was written.

        Raises:
            StoreError: there is none.
        """
        for checkpoint in self.checkpoints():
            return checkpoint
        raise StoreError(f"No checkpoint in {self.directory} can be read: restore the store from a backup.")
