"""The device's outbox: updates that were trained and not yet settled, on disk.

One SQLite file in WAL mode with synchronous=FULL: a stored update survives a power cut, and only a receipt of the
aggregator removes it. The identity is 64 random bits made with the file; a copy of the file is the same outbox.

The residual of error feedback is in a file beside it, because SQLite would write it twice. That file is complete before
the transaction that stores the update, and the transaction records which file is valid. So the two change together.
"""

import logging
import math
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import randbits
from types import TracebackType
from typing import Self

from midge.iot_client.state import outbox_files as files
from midge.iot_client.state.given import settle
from midge.iot_client.state.outbox_files import (
    INSERT,
    STATE,
    OutboxError,
    OutboxFiles,
    checksum,
    residual_path,
    witness_of,
)
from midge.iot_client.state.outbox_repair import repair
from midge.iot_client.state.outbox_state import FORMAT, OutboxState
from midge.storage.database import Database, DatabaseError, DiskFull, InUse, ReservedSpace, Unwritable, no_room
from midge.storage.failpoints import failpoint
from midge.storage.files import atomic_write
from midge.wire import frames
from midge.wire.messages import Update

__all__ = ["FORMAT", "Outbox", "OutboxError", "OutboxFull"]

log = logging.getLogger("iot_client")

_PAGE = 4096
_TOUCHED = 2
"""Pages that a transaction changes in addition to those of the update: the table's and the counters'."""
RESERVED = 256 * 1024
"""Bytes reserved in the lock file and released when the disk is full: SQLite then refuses even to delete."""


class OutboxFull(OutboxError, DiskFull):
    """The disk is full. The failed write left nothing behind; everything written before it is intact."""


class Outbox:
    """An outbox file. From one thread; a context manager. Simulations use `iot_client.state.memory_outbox`."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._written = Path(path), 0
        lock = self.path.with_name(self.path.name + ".lock")
        self._database = Database(self.path, lock=lock)
        self._ballast = ReservedSpace(lock, RESERVED)
        self._witness = witness_of(self.path)
        self.state = OutboxState(0)
        """The state on the disk."""
        self.rotted = ""
        """Damage found in its files when it was opened, and the resulting loss, as text; empty if none."""
        self.pending: dict[str, bytes] = {}
        """Values to store, by name. Written with the next update: a transaction of its own would wear the flash."""
        self.verdicts: dict[int, str] = {}  # of receipts, by seq, to be remembered with the updates that are removed

    @property
    def identity(self) -> int:
        """64 random bits that identify this outbox and its sequence numbers."""
        return self.state.identity

    @property
    def next_seq(self) -> int:
        """The number of the next update."""
        return self.state.next

    @property
    def sent(self) -> int:
        """The highest seq that was ever sent."""
        return self.state.sent

    @property
    def lost(self) -> int:
        """Number of updates that were lost to damage before they were settled, since it was made."""
        return self.state.lost

    @property
    def spent(self) -> float:
        """ρ of all updates with noise that were ever stored; infinite if it is not known."""
        return self.state.spent

    @property
    def written(self) -> int:
        """Bytes written to the disk since it was opened, in whole pages: they wear a flash card."""
        return self._written + self._ballast.written

    def __enter__(self) -> Self:
        """Open or make it.

        Raises:
            OutboxFull: there is no room to make it.
            OutboxError: it cannot be written, is in use by another device, or is no outbox.
        """
        try:
            self._database.lock()
            self._repair()
            self._database.open(files.TABLES)
        except Unwritable as error:
            raise OutboxError(f"The outbox {self.path} cannot be written ({error}): name a place that can.") from error
        except InUse as error:
            raise OutboxError(
                f"The outbox {self.path} is in use by another device: give each its own name, and with it "
                "its own outbox (midge device --name)."
            ) from error
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise files.unusable(self.path, error) from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        files.clear_strays(self.path, self.state.residual)
        self._ballast.take()
        return self

    def _repair(self) -> None:
        """Repair the files before SQLite opens them, which would discard frames of the log."""
        try:
            self.rotted = repair(self.path)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise self._full if no_room(error) else files.unusable(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        """Read the state of the repaired files."""
        try:
            found = self._db.execute("SELECT value FROM meta WHERE name = ?", (STATE,)).fetchone()
            noted = self._witness.read()
            witness = OutboxState.unpack(noted.note)
            if found is None:
                # Random rather than counted: a new file must never be taken for the lost one.
                state = OutboxState(randbits(63))
                with self._writing():
                    self._db.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
                    files.enter(self._db, state)
                self.state = state
            else:
                files_ = OutboxFiles(self.path, database=OutboxState.unpack(found[0]), witness=witness)
                files_.doubtful = noted.damaged
                known = files_.agreed
                assert known is not None
                self.state = known.state
                settled = (self.state.first,)  # the power may have failed before they were deleted
                self._db.execute("DELETE FROM updates WHERE seq < ?", settled)
                self._db.commit()
            if noted.note is None and found is not None:
                log.warning("The witness of the outbox %s is missing or damaged: it is made again.", self.path)
            if witness != self.state or noted.damaged:
                self._record()
        except sqlite3.Error as error:
            raise files.unusable(self.path, error) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _full(self) -> OutboxFull:
        return OutboxFull(f"The disk of the outbox {self.path} is full.")

    def _unwritable(self, error: Exception) -> OutboxError:
        return OutboxError(f"The outbox {self.path} cannot be written any more ({error}).")

    def close(self) -> None:
        self._database.close()
        self._witness.close()

    @property
    def _db(self) -> sqlite3.Connection:
        return self._database.connection

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: when the block ends, all of it survives a power cut; if it raises, nothing is written.

        Raises:
            OutboxFull: there is no room.
            OutboxError: the file cannot be written any more.
        """
        try:
            with self._database.transaction():
                yield
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise self._unwritable(error) from error

    def _record(self) -> None:
        """Record the state in the witness."""
        failpoint("outbox.noting")
        self._witness.write(self.state.pack())
        self._written += _PAGE

    def _record_after_commit(self) -> None:
        """Record it after a commit, which stands if the witness cannot be written: the next record has it."""
        try:
            self._record()
        except OSError as error:
            log.warning("The witness of the outbox %s cannot be written (%s).", self.path, error.strerror)

    def held(self) -> list[Update]:
        """The headers of the waiting updates, in order."""
        try:
            rows = self._db.execute("SELECT header FROM updates WHERE header != x'' ORDER BY seq").fetchall()
        except sqlite3.Error as error:
            raise files.unusable(self.path, error) from error
        return [frames.validate(Update, frames.unpack(header)) for (header,) in rows]

    def body(self, seq: int) -> bytes:
        """The encoded delta of a waiting update.

        Raises:
            OutboxError: it was damaged after the outbox was opened.
        """
        try:
            row = self._db.execute("SELECT header, body, checked FROM updates WHERE seq = ?", (seq,)).fetchone()
        except sqlite3.Error as error:
            raise files.unusable(self.path, error) from error
        if row is None or checksum(row[0], row[1]) != row[2]:
            raise OutboxError(f"Update {seq} in the outbox {self.path} is damaged: start the device again.")
        return bytes(row[1])

    def piece(self, seq: int, start: int, size: int) -> bytes:
        """A slice of the encoded delta of a waiting update: a large one is never read as a whole."""
        with self._db.blobopen("updates", "body", seq, readonly=True) as body:
            body.seek(min(start, len(body)))
            return body.read(size)

    def store(
        self, update: Update, body: bytes, residual: bytes | None = None, *, sent: int = 0, rho: float = 0.0
    ) -> None:
        """Store an update under its seq, which must be the next, and replace the residual.

        When this returns both survive a power cut; if it raises, neither was written.

        Args:
            update: its header.
            body: the encoded delta.
            residual: error feedback for the next update; None if there is none.
            sent: the highest seq that is sent now: recorded in the same transaction, to spare the flash.
            rho: the privacy that it costs, which is counted in the same transaction.

        Raises:
            OutboxFull: there is no room for it; the seq stays free, and the residual is unchanged.
        """
        assert update.seq == self.next_seq
        header, before = files.packed(update), self.state.residual
        # A new name each time: the file that the transaction names is complete whenever the power fails.
        left = 0 if residual is None else before + 1
        if residual is not None:
            try:
                atomic_write(residual_path(self.path, left), residual)
            except OSError as error:
                raise self._full if no_room(error) else self._unwritable(error) from error
            self._written += _pages(len(residual)) * _PAGE
            failpoint("residual.written")
        state = replace(
            self.state,
            next=update.seq + 1,
            sent=max(self.state.sent, sent),
            residual=left,
            residual_crc=zlib.crc32(residual or b""),
            unsealed=self.state.unsealed or update.awaits_seal,
            spent=self.state.spent + rho,
        )
        with self._writing():
            self._db.execute(INSERT, (update.seq, header, body, checksum(header, body)))
            files.enter(self._db, state)
            self._remember()
            failpoint("outbox.storing")
        failpoint("outbox.stored")
        self.state = state  # only now: after an exception above, this object must match the disk
        self.pending.clear()
        self._count(len(header) + len(body))
        self._record_after_commit()
        if before and before != left:  # after the witness: until then the old file may be the valid one
            residual_path(self.path, before).unlink(missing_ok=True)
        self._ballast.take()

    def replace(self, update: Update, body: bytes) -> None:
        """Replace a waiting update by its sealed form.

        Raises:
            OutboxFull: there is no room for it; the update is unchanged.
        """
        with self._writing():
            files.rewrite(self._db, update.seq, header := files.packed(update), body)
        self._count(len(header) + len(body))

    def note_sent(self, through: int) -> None:
        """Record on the disk that updates up to a seq were sent, before they are.

        Raises:
            OutboxError: it cannot be written.
        """
        if through > self.state.sent:
            self.state = replace(self.state, sent=through)
            try:
                self._record()
            except OSError as error:
                raise self._unwritable(error) from error

    # ------------------------------------------------------------ verified state

    def remembered(self, name: str) -> bytes | None:
        """The value of `pending` under this name at the last write."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is not None and (value := files.unwrapped(row[0])) is not None:
            return value
        if row is not None:
            log.warning("The value %s in the outbox %s is damaged and ignored.", name, self.path)
        return None

    def write_pending(self) -> None:
        """Write what is pending now, without waiting for the next update.

        Raises:
            OutboxFull: there is no room for it; it is still pending.
        """
        with self._writing():
            self._remember()
        self._count(sum(map(len, self.pending.values())))
        self.pending.clear()

    def _remember(self) -> None:
        rows = [(name, files.wrapped(value)) for name, value in self.pending.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    # ------------------------------------------------------------------ residual

    def residual(self) -> bytes | None:
        """The residual of the last stored update; None if there is none, or if it was lost."""
        return files.read_residual(self.path, self.state)

    def _count(self, size: int) -> None:
        """Count the bytes of a transaction: its pages go into the log, and most of them also into the file."""
        self._written += (2 * _pages(size) + _TOUCHED) * _PAGE

    # ---------------------------------------------------------------- removing

    def forget(self, through: int) -> None:
        """Remove every update up to a seq: a receipt settled them. On a full disk the reserved space is used.

        Raises:
            OutboxFull: there is no room even so; the updates are sent again after a restart, and settled as duplicates.
        """
        try:
            self._delete(through)
        except OutboxFull:  # SQLite needs room even to delete, and deleting is what makes room
            self._ballast.release()
            self._delete(through)

    def _delete(self, through: int) -> None:
        # Recorded first: what is then missing in the database is known to be settled, not lost.
        before, first = self.state, max(self.state.first, min(through + 1, self.state.next))
        settled = replace(before, first=first, unsealed=before.unsealed and first < before.next)
        if settled != before:
            self.state = settled
            self._record_after_commit()
        with self._writing():
            known = settle(self._db, through, self.verdicts, time.time())
            if settled.unsealed != before.unsealed:
                files.enter(self._db, settled)
        self._count(known and _PAGE)

    def renew(self, keep: Iterable[int], *, unknown: bool = False) -> None:
        """Adopt a new identity for these updates only, from number 1; `unknown`: as a copy, it has not counted all."""
        # Those that may have been sent stay behind: under the new identity they would count a second time.
        kept = {update.seq: update for update in self.held()}
        moved = [(kept[seq], self.body(seq)) for seq in sorted(keep)]
        identity, spent = randbits(63), math.inf if unknown else self.spent
        state = replace(self.state, identity=identity, before=self.identity, next=len(moved) + 1, first=1, sent=0)
        state = replace(state, spent=spent)
        with self._writing():
            files.renumber(self._db, moved, identity)
            files.enter(self._db, state)
            failpoint("outbox.renewing")
        self.state = state
        self._record_after_commit()


def _pages(size: int) -> int:
    return -(-size // _PAGE)
