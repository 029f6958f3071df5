"""The device's outbox: what was trained and not yet settled, on disk.

One SQLite file in WAL mode with synchronous=FULL: an update that is stored survives a power cut, and only a receipt of
the aggregator removes it. The identity is 64 random bits made with the file; a copy of the file is the same outbox.

What an update leaves to say lies in a file beside it: inside, SQLite would write it twice. The file is whole before the
transaction that stores the update, and that transaction says which file counts. So the two change together.
"""

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import randbits
from types import TracebackType
from typing import Self

from midge.iot_client.state import outbox_files as files
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
"""Pages that a transaction changes beside those of the update: the table's and the counters'."""
BALLAST = 256 * 1024
"""Bytes on the disk, in the lock file, that are given up when it is full: SQLite then refuses even to delete."""


class OutboxFull(OutboxError, DiskFull):
    """There is no room on the disk. What was to be written is not; everything before it is."""


class Outbox:
    """A file. From one thread; a context manager. For simulations there is `iot_client.state.memory_outbox`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lock = self.path.with_name(self.path.name + ".lock")
        self._database = Database(self.path, lock=lock)
        self._ballast = ReservedSpace(lock, BALLAST)
        self._witness = witness_of(self.path)
        self.state = OutboxState(0)
        """As it is on the disk."""
        self.rotted = ""
        """What was wrong with its files when it was opened, and what that cost, in words; empty if nothing was."""
        self.pending: dict[str, bytes] = {}
        """What is to be remembered, by name. Written with the next update: a transaction of its own wears flash."""
        self._written = 0

    @property
    def identity(self) -> int:
        """64 random bits: whose numbers these are."""
        return self.state.identity

    @property
    def next_seq(self) -> int:
        """What the next update will be numbered."""
        return self.state.next

    @property
    def sent(self) -> int:
        """The highest seq that was ever sent."""
        return self.state.sent

    @property
    def lost(self) -> int:
        """Updates that rotted in it before they were settled, since it was made."""
        return self.state.lost

    @property
    def written(self) -> int:
        """Bytes that went to the disk since it was opened, counted as whole pages: what wears a flash card."""
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
            raise self._unusable(error) from error
        try:
            self._take_up()
        except BaseException:
            self.close()
            raise
        files.clear_strays(self.path, self.state.residual)
        self._ballast.take()
        return self

    def _repair(self) -> None:
        """Before SQLite opens the file, believes its log and cuts from it what does not fit."""
        try:
            self.rotted = repair(self.path)
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise self._full if no_room(error) else self._unusable(error) from error
        except BaseException:
            self.close()
            raise

    def _take_up(self) -> None:
        """Read the state; the files are as they must be."""
        try:
            found = self._db.execute("SELECT value FROM meta WHERE name = ?", (STATE,)).fetchone()
            noted = self._witness.read()
            witness = OutboxState.unpack(noted.note)
            if found is None:
                # Random rather than counted: a file that is made again must never be taken for the one that was lost.
                state = OutboxState(randbits(63))
                with self._writing():
                    self._db.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
                    self._keep(state)
                self.state = state
            else:
                files_ = OutboxFiles(self.path, database=OutboxState.unpack(found[0]), witness=witness)
                files_.doubtful = noted.damaged
                known = files_.agreed
                assert known is not None
                self.state = known.state
                self._db.execute("DELETE FROM updates WHERE seq < ?", (self.state.first,))
                self._db.commit()
            if noted.note is None and found is not None:
                log.warning("The witness of the outbox %s is missing or rotten: it is made again.", self.path)
            if witness != self.state or noted.damaged:
                self._note()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
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

    def _unusable(self, error: object) -> OutboxError:
        return files.unusable(self.path, error)

    def close(self) -> None:
        self._database.close()
        self._witness.close()

    @property
    def _db(self) -> sqlite3.Connection:
        return self._database.connection

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it survives a power cut when the block is left, or nothing.

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

    def _keep(self, state: OutboxState) -> None:
        """Within a transaction; `state` follows once that is committed."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (STATE, state.pack()))

    def _note(self) -> None:
        """Tell the witness how far the outbox is."""
        failpoint("outbox.noting")
        self._witness.write(self.state.pack())
        self._written += _PAGE

    def _note_at_last(self) -> None:
        """The same behind a commit, which stands if the witness cannot be written: the next note has it."""
        try:
            self._note()
        except OSError as error:
            log.warning("The witness of the outbox %s cannot be written (%s).", self.path, error.strerror)

    def held(self) -> list[Update]:
        """The headers of what waits, in order."""
        try:
            rows = self._db.execute("SELECT header FROM updates WHERE header != x'' ORDER BY seq").fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return [frames.validate(Update, frames.unpack(header)) for (header,) in rows]

    def body(self, seq: int) -> bytes:
        """The encoded delta of an update that waits.

        Raises:
            OutboxError: it rotted since the outbox was opened.
        """
        try:
            row = self._db.execute("SELECT header, body, checked FROM updates WHERE seq = ?", (seq,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if row is None or checksum(row[0], row[1]) != row[2]:
            raise OutboxError(f"Update {seq} in the outbox {self.path} is damaged: start the device again.")
        return bytes(row[1])

    def piece(self, seq: int, start: int, size: int) -> bytes:
        """Some bytes of the encoded delta of an update that waits: a large one is never read as a whole."""
        with self._db.blobopen("updates", "body", seq, readonly=True) as body:
            body.seek(min(start, len(body)))
            return body.read(size)

    def store(self, update: Update, body: bytes, residual: bytes | None = None, *, sent: int = 0) -> None:
        """Keep an update under its seq, which must be the next, and what it leaves to say, in place of what was left.

        When this returns both survive a power cut; if it does not, neither does.

        Args:
            update: its header.
            body: the encoded delta.
            residual: what is left to say; None if nothing is.
            sent: the highest seq that is sent now: with the same note, which wears the flash less than one of its own.

        Raises:
            OutboxFull: there is no room for it; the seq stays free, and what was left is as it was.
        """
        assert update.seq == self.next_seq
        header, before = _pack(update), self.state.residual
        # Under a new name each time: whichever file the transaction names is whole, whenever the power goes.
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
        )
        with self._writing():
            self._db.execute(INSERT, (update.seq, header, body, checksum(header, body)))
            self._keep(state)
            self._remember()
            failpoint("outbox.storing")
        failpoint("outbox.stored")
        # Only now: an exception above must leave this object as the disk is.
        self.state = state
        self.pending.clear()
        self._count(len(header) + len(body))
        self._note_at_last()
        if before and before != left:  # after the note: until then the old one may be what counts
            residual_path(self.path, before).unlink(missing_ok=True)
        self._ballast.take()

    def note_sent(self, through: int) -> None:
        """Have it on the disk that updates up to a seq were sent, before they are.

        Raises:
            OutboxError: it cannot be written.
        """
        if through > self.state.sent:
            self.state = replace(self.state, sent=through)
            try:
                self._note()
            except OSError as error:
                raise self._unwritable(error) from error

    # ------------------------------------------------------------ what was verified

    def remembered(self, name: str) -> bytes | None:
        """What was `pending` under this name when something was last written."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is not None and (value := files.unwrapped(row[0])) is not None:
            return value
        if row is not None:
            log.warning("What the outbox %s remembers as %s is damaged: it is as none.", self.path, name)
        return None

    def write_pending(self) -> None:
        """Write what is pending now, and not only with the next update.

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

    # ---------------------------------------------------------- what is left to say

    def residual(self) -> bytes | None:
        """What the last update that was stored left to say; None where that is nothing, or its file is gone or rotten.

        It only makes the next update a little worse; the updates themselves are whole.
        """
        if not self.state.residual:
            return None
        path = residual_path(self.path, self.state.residual)
        try:
            residual = path.read_bytes()
        except OSError as error:
            log.warning("What was left to say cannot be read from %s (%s): it is as none.", path, error.strerror)
            return None
        if zlib.crc32(residual) != self.state.residual_crc:
            log.warning("What was left to say in %s is damaged: it is as none.", path)
            return None
        return residual

    def _count(self, size: int) -> None:
        """Count a transaction: its pages go into the log, and those that others do not change too, into the file."""
        self._written += (2 * _pages(size) + _TOUCHED) * _PAGE

    # ------------------------------------------------------------------- forgetting

    def forget(self, through: int) -> None:
        """Remove every update up to a seq: a receipt settled them. On a full disk the ballast makes room for it.

        Raises:
            OutboxFull: even so there is none; what stays is sent again after a restart, and settled as a repeat.
        """
        try:
            self._delete(through)
        except OutboxFull:
            # SQLite needs room even to delete, and deleting is what makes room.
            self._ballast.release()
            self._delete(through)

    def _delete(self, through: int) -> None:
        # Noted first: what is missing in the database then is known to be settled, and not lost.
        settled = replace(self.state, first=max(self.state.first, min(through + 1, self.state.next)))
        if settled != self.state:
            self.state = settled
            self._note_at_last()
        with self._writing():
            self._db.execute("DELETE FROM updates WHERE seq <= ?", (through,))
        self._count(0)

    def renew(self, keep: Iterable[int]) -> None:
        """Take a new identity; only these updates move over, numbered from 1."""
        # Those that may have been sent stay behind: under the new identity they would count a second time.
        kept = {update.seq: update for update in self.held()}
        moved = [(kept[seq], self.body(seq)) for seq in sorted(keep)]
        identity = randbits(63)
        state = replace(self.state, identity=identity, before=self.identity, next=len(moved) + 1, first=1, sent=0)
        with self._writing():
            self._db.execute("DELETE FROM updates")
            for number, (update, body) in enumerate(moved, start=1):
                header = _pack(update.model_copy(update={"outbox": identity, "seq": number, "first": 1}))
                self._db.execute(INSERT, (number, header, body, checksum(header, body)))
            self._keep(state)
            failpoint("outbox.renewing")
        self.state = state
        self._note_at_last()


def _pages(size: int) -> int:
    return -(-size // _PAGE)


def _pack(update: Update) -> bytes:
    return frames.pack(update.model_dump())
