"""The device's outbox: what was trained and not yet settled, on disk.

One SQLite file in WAL mode with synchronous=FULL: an update that is stored survives a power cut, and only a receipt of
the aggregator removes it. The identity is 64 random bits made with the file; a copy of the file is the same outbox.

What an update leaves to say lies in a file beside it: inside, SQLite would write it twice. The file is whole before the
transaction that stores the update, and that transaction says which file counts. So the two change together.
"""

import glob
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from midge.storage.database import Database, DatabaseError, DiskFull, InUse, ReservedSpace, Unwritable, no_room
from midge.storage.failpoints import failpoint
from midge.storage.files import atomic_write
from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import Update

FORMAT = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS updates (seq INTEGER PRIMARY KEY, header BLOB NOT NULL, body BLOB NOT NULL);
"""


_PAGE = 4096
_TOUCHED = 2
"""Pages that a transaction changes beside those of the update: the table's and the counters'."""
BALLAST = 256 * 1024
"""Bytes on the disk, in the lock file, that are given up when it is full: SQLite then refuses even to delete."""


class OutboxError(Exception):
    """The outbox cannot be used; the message says why and what to do."""


class OutboxFull(OutboxError, DiskFull):
    """There is no room on the disk. What was to be written is not; everything before it is."""


class Outbox:
    """A file. From one thread; a context manager. For simulations there is `iot_client.state.memory_outbox`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lock = self.path.with_name(self.path.name + ".lock")
        self._database = Database(self.path, lock=lock)
        self._ballast = ReservedSpace(lock, BALLAST)
        self.identity = 0
        self.next_seq = 1
        self._left = 0
        """Which file of what is left to say counts; 0 is none."""
        self.pending: dict[str, bytes] = {}
        """What is to be remembered, by name. Written with the next update: a transaction of its own wears flash."""
        self._written = 0

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
            self._database.open(_TABLES)
        except Unwritable as error:
            raise OutboxError(f"The outbox {self.path} cannot be written ({error}): name a place that can.") from error
        except InUse as error:
            raise OutboxError(
                f"The outbox {self.path} is in use by another device: give each device its own."
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
        self._clear_strays()
        self._ballast.take()
        return self

    def _take_up(self) -> None:
        try:
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if meta.get("format", FORMAT) != FORMAT:
            raise OutboxError(f"The outbox {self.path} has format {meta['format']}; this Midge reads {FORMAT}.")
        if not meta:
            with self._writing():
                # Random rather than counted: a file that is made again must never be taken for the one that was lost.
                self._begin(secrets.randbits(63))
        else:
            self.identity, self.next_seq = meta["identity"], meta["next"]
            self._left = meta.get("residual", 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _full(self) -> OutboxFull:
        return OutboxFull(f"The disk of the outbox {self.path} is full.")

    def _unusable(self, error: Exception) -> OutboxError:
        return OutboxError(
            f"The outbox {self.path} cannot be used ({error}). Move the file away to begin a new one; updates that "
            "it holds and that were not yet sent are lost with it."
        )

    def close(self) -> None:
        self._database.close()

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
            raise OutboxError(f"The outbox {self.path} cannot be written any more ({error}).") from error

    def _begin(self, identity: int) -> None:
        self.identity, self.next_seq = identity, 1
        rows = [("format", FORMAT), ("identity", identity), ("next", 1)]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def held(self) -> list[Update]:
        """The headers of what waits, in order.

        Raises:
            OutboxError: one of them cannot be read.
        """
        try:
            rows = self._db.execute("SELECT header FROM updates ORDER BY seq").fetchall()
            return [frames.validate(Update, frames.unpack(header)) for (header,) in rows]
        except (sqlite3.Error, WireError) as error:
            raise self._unusable(error) from error

    def body(self, seq: int) -> bytes:
        """The encoded delta of an update that waits."""
        (body,) = self._db.execute("SELECT body FROM updates WHERE seq = ?", (seq,)).fetchone()
        return bytes(body)

    def piece(self, seq: int, start: int, size: int) -> bytes:
        """Some bytes of the encoded delta of an update that waits: a large one is never read as a whole."""
        with self._db.blobopen("updates", "body", seq, readonly=True) as body:
            body.seek(min(start, len(body)))
            return body.read(size)

    def store(self, update: Update, body: bytes, residual: bytes | None = None) -> None:
        """Keep an update under its seq, which must be the next, and what it leaves to say, in place of what was left.

        When this returns both survive a power cut; if it does not, neither does.

        Raises:
            OutboxFull: there is no room for it; the seq stays free, and what was left is as it was.
        """
        assert update.seq == self.next_seq
        header, before = _pack(update), self._left
        # Under a new name each time: whichever file the transaction names is whole, whenever the power goes.
        left = 0 if residual is None else before + 1
        if residual is not None:
            self._write_residual(self._residual_path(left), residual)
            failpoint("residual.written")
        with self._writing():
            self._db.execute("INSERT INTO updates VALUES (?, ?, ?)", (update.seq, header, body))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'next'", (update.seq + 1,))
            if left != before:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('residual', ?)", (left,))
            self._remember()
            failpoint("outbox.storing")
        failpoint("outbox.stored")
        # Only now: an exception above must leave this object as the disk is.
        self.pending.clear()
        self.next_seq = update.seq + 1
        self._left = left
        self._count(len(header) + len(body))
        if before and before != left:  # after the commit: until then the old one is what counts
            self._residual_path(before).unlink(missing_ok=True)
        self._ballast.take()

    # ------------------------------------------------------------ what was verified

    def remembered(self, name: str) -> bytes | None:
        """What was `pending` under this name when something was last written."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

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
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(self.pending.items()))

    # ---------------------------------------------------------- what is left to say

    def residual(self) -> bytes | None:
        """What the last update that was stored left to say; None where that is nothing, or its file is gone."""
        if not self._left:
            return None
        try:
            return self._residual_path(self._left).read_bytes()
        except OSError:
            return None  # it only makes the next update a little worse; the updates themselves are whole

    def _residual_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.residual-{number}")

    def _write_residual(self, path: Path, residual: bytes) -> None:
        """Have it on the disk under its name, where nothing refers to it yet."""
        try:
            atomic_write(path, residual)
        except OSError as error:
            if no_room(error):
                raise self._full from error
            raise OutboxError(f"The outbox {self.path} cannot be written any more ({error.strerror}).") from error
        self._written += _pages(len(residual)) * _PAGE

    def _clear_strays(self) -> None:
        """Remove what a kill left behind: files that were written, or no longer count."""
        name = glob.escape(self.path.name)
        for pattern in (f"{name}.residual-*", f".{name}.residual-*.tmp"):
            for stray in self.path.parent.glob(pattern):
                if stray != self._residual_path(self._left):
                    stray.unlink(missing_ok=True)

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
        with self._writing():
            self._db.execute("DELETE FROM updates WHERE seq <= ?", (through,))
        self._count(0)

    def renew(self, keep: Iterable[int]) -> None:
        """Take a new identity; only these updates move over, numbered from 1."""
        # Those that may have been sent stay behind: under the new identity they would count a second time.
        kept = {update.seq: update for update in self.held()}
        moved = [(kept[seq], self.body(seq)) for seq in sorted(keep)]
        identity = secrets.randbits(63)
        with self._writing():
            self._db.execute("DELETE FROM updates")
            self._begin(identity)
            for number, (update, body) in enumerate(moved, start=1):
                again = update.model_copy(update={"outbox": identity, "seq": number, "first": 1})
                self._db.execute("INSERT INTO updates VALUES (?, ?, ?)", (number, _pack(again), body))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'next'", (len(moved) + 1,))
            failpoint("outbox.renewing")
        self.next_seq = len(moved) + 1


def _pages(size: int) -> int:
    return -(-size // _PAGE)


def _pack(update: Update) -> bytes:
    return frames.pack(update.model_dump())
