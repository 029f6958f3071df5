"""The aggregator's durable state: a journal of decisions, the published frames, checkpoints.

One SQLite file in WAL mode with synchronous=FULL, so that a commit survives a power cut; beside it the bodies of many
or large updates (`aggregator.store.segments`), and checkpoints as safetensors, written to a temporary file, synced,
renamed, and only then entered. A lock keeps a second aggregator out.

An accepted update is in the journal before its receipt is sent, and the newest checkpoint plus the journal after it is
the model, bit for bit.
"""

import logging
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from midge.aggregator.core import records as rec
from midge.aggregator.model.model import Frame
from midge.aggregator.store import meta_table
from midge.aggregator.store.checkpoint_table import TABLE as CHECKPOINTS
from midge.aggregator.store.checkpoint_table import Checkpoint, CheckpointTable, entered
from midge.aggregator.store.consistency import (
    CHANGES,
    WITNESS,
    WITNESSED,
    Note,
)
from midge.aggregator.store.errors import StoreDamaged, StoreError, StoreFull, StoreInUse
from midge.aggregator.store.frame_table import TABLE as FRAMES
from midge.aggregator.store.frame_table import FrameTable, Published
from midge.aggregator.store.history import TABLE as HISTORY
from midge.aggregator.store.history import HistoryTable
from midge.aggregator.store.journal import Entry, JournalTable, decided_before
from midge.aggregator.store.ledger import TABLE as LEDGER
from midge.aggregator.store.ledger import LedgerTable
from midge.aggregator.store.migrations import FORMAT, FORMAT_NAME, MIDGE_NAME, migrate, version
from midge.aggregator.store.site_table import SITE, SiteTable
from midge.aggregator.store.store_database import StoreDatabase
from midge.storage.database import ReservedSpace, free_bytes, no_room
from midge.storage.failpoints import failpoint
from midge.storage.witness import CommitWitness
from midge.wire import frames
from midge.wire.schema import Schema

log = logging.getLogger("aggregator")

__all__ = ["Checkpoint", "Entry", "Published", "Store", "StoreError", "StoreFull", "StoreInUse"]

KEEP_RECORDS = 100_000
"""Records that are kept, without their bodies, to explain the life of an update."""
_ROOM = 2**20
"""Bytes that must be free beside the reserved space on a disk that was full, before anything is accepted."""
_SHORT_LOG = 64
"""Pages (of 4 KiB) at which SQLite empties its log on a disk that was full; it is 1,000 otherwise."""
RESERVED = 4 * 2**20
"""Bytes reserved on the disk and released when it is full, for what must still be written."""
TABLES = f"""
{meta_table.TABLES}
CREATE TABLE IF NOT EXISTS journal (
    lsn INTEGER PRIMARY KEY, kind TEXT NOT NULL, record BLOB NOT NULL, body BLOB, crc INTEGER NOT NULL,
    segment INTEGER, place INTEGER, size INTEGER
);
{CHECKPOINTS}
{FRAMES}
{HISTORY}
{LEDGER}
{SITE}
"""


class Store(StoreDatabase):
    """A directory with one federation's lineage in it. Use it as a context manager, from one thread."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        self._ballast = ReservedSpace(self.directory / "ballast", RESERVED)
        self._journal = JournalTable(self.directory, self.query)
        self._frames = FrameTable(self.query)
        self._checkpoints = CheckpointTable(self.directory, self.query)
        self.history = HistoryTable(self.query)
        self.ledger = LedgerTable(self.query, self.constant)
        self.site = SiteTable(self.query)
        self._witness = CommitWitness(self.directory / WITNESS)
        self._noted = Note(b"", 0, 0, 0, 0)
        """The newest commit; recorded in the witness before anything is sent."""
        self.lineage = b""
        self.schema: Schema | None = None
        """None until `create` was called, in this process or an earlier one."""

    def __enter__(self) -> Self:
        """Lock, compare the files, and open.

        Raises:
            StoreInUse: another aggregator has it open.
            StoreFull: there is no room to make it.
            StoreError: the directory cannot be written, or is of another version of Midge.
        """
        proven = self._open(TABLES)
        try:
            self._write_log_back()  # one that filled the disk is still there after the last process ended
            self._load(proven=proven)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._witness.close()
        self._journal.close()
        self._database.close()

    def _load(self, *, proven: bool) -> None:
        """Read the state of an open store."""
        try:
            migrate(self._open_db, self._database.path)
        except (sqlite3.Error, OSError) as error:
            raise self._full if no_room(error) else self._unreadable(error) from error
        meta = meta_table.values(self.query)
        if not meta:
            return
        # Files of interrupted writes, and bodies that were not committed.
        self._checkpoints.tidy()
        self._journal.recover(proven=proven)
        self.lineage = meta["lineage"]
        self.schema = Schema.unpacked(frames.unpack(meta["schema"]))
        # Stores of earlier versions have no witness and no checksums of their metadata.
        lacking = {**({} if WITNESSED in meta else {WITNESSED: 1}), **meta_table.unproven(self.query)}
        if lacking:
            with self._writing() as db:
                for name, value in lacking.items():
                    meta_table.enter(db, name, value)
        lsn = self.newest_lsn()
        crc = self.query("SELECT crc FROM journal WHERE lsn = ?", (lsn,))
        updates = decided_before(self.query, lsn + 1)
        self._note(Note(self.lineage, lsn, crc[0][0] if crc else 0, updates, int(meta.get(CHANGES, 0))))
        self.history.load()
        self.ledger.load()

    def _note(self, note: Note) -> None:
        """Record a commit in the witness, before anything of it is sent.

        Raises:
            StoreFull: there is no room.
            StoreError: it cannot be written.
        """
        # Also if the write below fails: the commit is durable, and the next note must include it.
        self._noted, self._journal.decided = note, note.updates
        try:
            self._witness.write(note.packed())
        except OSError as error:
            if no_room(error):
                raise self._full from error
            raise self._broken(error) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction for an owner of another table in the store. Like a record's, its loss is detected.

        Raises:
            StoreFull: there is no room.
            StoreError: it cannot be written.
        """
        # Counted in the same transaction: a database without it is recognised as older than the witness.
        changes = self._noted.changes + 1
        with self._writing() as db:
            yield db
            meta_table.enter(db, CHANGES, changes)
        self._note(replace(self._noted, changes=changes))

    @property
    def decided(self) -> int:
        """Updates decided on since the store began."""
        return self._noted.updates

    def on_commit(self, call: Callable[[], None] | None) -> None:
        """Have this called after each transaction of the database; None calls nothing."""
        self._database.committed = call

    def constant(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once, and then stays as long as the store."""
        rows = self.query("SELECT value FROM meta WHERE name = ?", (name,))
        if not rows:
            rows = [(make(),)]
            self.set_constant(name, rows[0][0])
        return rows[0][0]

    def set_constant(self, name: str, value: Any) -> None:
        """Replace the value."""
        with self.transaction() as db:
            meta_table.enter(db, name, value)

    def remove_constant(self, name: str) -> None:
        """Remove the value."""
        with self.transaction() as db:
            meta_table.remove(db, name)

    # ---------------------------------------------------------------------- room

    def make_room(self) -> None:
        """Release the reserved space: on a full disk SQLite refuses even to delete."""
        self._ballast.release()
        self._note(self._noted)  # releasing it may itself have failed for lack of room
        self._write_log_back()
        self.query(f"PRAGMA wal_autocheckpoint({_SHORT_LOG})")

    def _write_log_back(self) -> None:
        """Empty SQLite's log, which it does by itself at 1,000 pages only: until then the log may fill the disk."""
        with suppress(StoreError):
            self.query("PRAGMA wal_checkpoint(TRUNCATE)")

    def reserve(self) -> bool:
        """Reserve space for a full disk; return whether it is reserved."""
        return self._ballast.take()

    def has_room(self) -> bool:
        """Whether a disk that was full has room again; then the space is reserved again."""
        # What was reserved before is no room: with that alone, the disk would be full again at once.
        return free_bytes(self.directory) >= RESERVED + _ROOM and self.reserve()

    @property
    def empty(self) -> bool:
        """Whether no model was ever written into it: also if a power cut followed `create`."""
        ((count,),) = self.query("SELECT (SELECT count(*) FROM checkpoints) + (SELECT count(*) FROM journal)")
        return bool(count == 0)

    def create(self, schema: Schema, lineage: bytes = b"") -> None:
        """Begin a lineage in an empty store, or continue that of the federation above, at a gateway."""
        assert self.schema is None
        # Random, so that a new store is never taken for the one whose updates devices still hold.
        self.lineage, self.schema = lineage or secrets.token_bytes(16), schema
        meta = {
            FORMAT_NAME: FORMAT,
            MIDGE_NAME: version(),
            "lineage": self.lineage,
            "schema": frames.pack(schema.packed()),
            WITNESSED: 1,
        }
        with self._writing() as db:
            for name, value in meta.items():
                meta_table.enter(db, name, value)
        self._note(Note(self.lineage, 0, 0, 0, 0))

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
                crc = self._journal.insert(db, entries)
                for entry in entries:
                    if entry.site is not None and isinstance(entry.record, rec.UpdateRecord):
                        self.site.write(db, entry.record.device, entry.site)
                failpoint("commit.within")
        except BaseException:
            self._journal.cut(mark)
            raise
        self.history.pending += (entry.record for entry in entries)
        updates = self._noted.updates + sum(isinstance(entry.record, rec.UpdateRecord) for entry in entries)
        # Not within the block above: a failing witness must not cut off bodies of committed records.
        self._note(replace(self._noted, lsn=entries[-1].record.lsn, crc=crc, updates=updates))
        failpoint("commit.after")

    def entries(self, after: int) -> Iterator[Entry]:
        """The journal's records after an lsn, in order.

        Raises:
            StoreError: a record is damaged or missing.
        """
        return self._journal.entries(after)

    def damaged(self, lsn: int) -> StoreDamaged:
        """The error for something missing or damaged that a record needs."""
        return self._journal.damaged(lsn)

    def body(self, lsn: int) -> bytes:
        """The body of a record.

        Raises:
            StoreError: it is missing or damaged.
        """
        body = self._journal.at(lsn).body
        if body is None:
            raise self._journal.damaged(lsn)
        return bytes(body)

    def record(self, lsn: int) -> rec.Record:
        """One record.

        Raises:
            StoreError: it is missing or damaged.
        """
        return self._journal.at(lsn).record

    def newest_lsn(self) -> int:
        """The last record's lsn, or that of the newest checkpoint if the journal is empty."""
        ((newest,),) = self.query("SELECT max(lsn) FROM journal")
        return max(newest or 0, *(row.lsn for row in entered(self.query)), 0)

    def rewrite(self, db: sqlite3.Connection, record: rec.Record) -> bool:
        """Replace a record by one of the same lsn, without its body; return whether it still existed."""
        return self._journal.rewrite(db, record)

    def vacuum(self) -> None:
        """Rewrite the database, so that no deleted data is left in a free page or in the log.

        Raises:
            StoreFull: there is no room for a second copy of it.
        """
        # Deleting alone leaves the bytes in free pages of the file, and in the log until it is overwritten.
        with self._writing() as db:
            db.execute("VACUUM")
        self.query("PRAGMA wal_checkpoint(TRUNCATE)")

    # -------------------------------------------------------------------- frames

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        """Store frames, each with its number of parts, before they are published. An existing one keeps its bytes."""
        # Not counted as a change: a lost frame can be rebuilt by a replay, or replaced by a snapshot.
        with self._writing() as db:
            self._frames.add(db, new)
            self.ledger.write(db)
        self.ledger.written()

    def note_release(self, record: rec.ReleaseRecord, generation: int, digest: bytes) -> None:
        """Enter a release into the ledger, with its frames."""
        self.ledger.release(record, generation, digest)

    def published(self) -> list[Published]:
        """All frames, without their bytes."""
        return self._frames.published()

    def frame(self, version: int, span: int) -> bytes | None:
        """A frame's bytes, if the store has it."""
        return self._frames.data(version, span)

    def withdraw(self, gone: Iterable[tuple[int, int]], *, keep: bool) -> None:
        """Stop offering frames, by version and span, after their topics were cleared. `keep` keeps their bytes."""
        with self._writing() as db:
            self._frames.withdraw(db, gone, keep=keep)

    # --------------------------------------------------------------- checkpoints

    def checkpoint(self, checkpoint: Checkpoint, *, oldest_body: int, oldest_base: int) -> None:
        """Write everything up to an lsn, then remove what only older ones needed."""
        with self._writing() as db:
            self._checkpoints.write(
                db, checkpoint, oldest_body=oldest_body, oldest_base=oldest_base, updates=self._noted.updates
            )
            self.history.write(db)
            self.ledger.write(db)
        self.history.written()
        self.ledger.written()
        failpoint("checkpoint.entered")
        self._prune(checkpoint.registered)

    def _prune(self, registered: frozenset[int] | None) -> None:
        pruning = self._checkpoints.pruning()
        with self._writing() as db:
            self._checkpoints.forget(db, pruning)
            self._journal.prune(db, pruning.needed, KEEP_RECORDS)
            self._frames.prune(db, pruning.oldest_base, registered)
            self.ledger.prune(db, pruning.needed - KEEP_RECORDS)
        # Files after the transaction: a row must never refer to a deleted one.
        self._journal.pruned(pruning.needed)
        failpoint("checkpoint.pruned")
        self._checkpoints.removed(pruning)

    def write_history(self) -> None:
        """Make the history durable, also between checkpoints. Its loss costs no update, so no witness has to know."""
        with self._writing() as db:
            self.history.write(db)
            failpoint("history.within")
        self.history.written()

    def keep_newest_checkpoint(self) -> int:
        """Delete all checkpoints but the newest; return their number."""
        with self._writing() as db:
            gone = self._checkpoints.keep_newest(db)
        self._checkpoints.remove_others()
        return gone

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Undamaged checkpoints, newest first."""
        return self._checkpoints.all()

    @property
    def checkpoint_damaged(self) -> bool:
        """Whether a damaged one was skipped since it was opened."""
        return self._checkpoints.damaged

    def newest_checkpoint(self) -> Checkpoint:
        """The newest undamaged checkpoint.

        Raises:
            StoreError: there is none.
        """
        for checkpoint in self.checkpoints():
            return checkpoint
        raise StoreError(f"No checkpoint in {self.directory} can be read: restore the store from a backup.")
