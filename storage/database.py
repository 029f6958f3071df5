"""An SQLite file in WAL mode, open in one process only, with reserved space for a full disk.

With synchronous=FULL a commit survives a power cut: the log is synced before the commit returns. With NORMAL the newest
commits may be lost, but the file stays consistent.
"""

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from midge.storage import forks
from midge.storage.files import PRIVATE, make_folder, make_private_file, narrow

log = logging.getLogger("storage")

MODES = (b"\1\1", b"\2\2")
"""Read and write versions in a database's header. SQLite takes another value for a later format, not for damage."""

_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""SQLite's codes for a full disk: no page left, a short write, no room for the log's index."""


class DatabaseError(Exception):
    """The database cannot be used. The message is SQLite's, or the operating system's."""


class Unwritable(DatabaseError):
    """Its folder or its lock file cannot be written."""


class InUse(DatabaseError):
    """Another process has it open."""


class DiskFull(Exception):
    """The disk is full. The failed write left nothing behind; everything written before it is intact."""


def no_room(error: Exception) -> bool:
    """Whether an error of SQLite or of the operating system means that the disk, or a quota of it, is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Database:
    """An SQLite file.

    Args:
        path: the file.
        lock: a file that is locked while the database is open; None locks nothing, for a file that is only
            ever beside a locked one.
        synchronous: FULL if a commit must survive a power cut, NORMAL if the newest ones may be lost.
        pragmas: more of them, such as `wal_autocheckpoint=64`.
        threads: whether threads other than the one that opened it use it; they must take turns.
    """

    def __init__(
        self,
        path: Path,
        *,
        lock: Path | None = None,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        pragmas: tuple[str, ...] = (),
        threads: bool = False,
    ) -> None:
        self.path = path
        self._lock_path = lock
        self._pragmas = ("journal_mode=WAL", f"synchronous={synchronous}", *pragmas)
        self._threads = threads
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.committed: Callable[[], None] | None = None
        """Called after each transaction, before its caller goes on."""

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection. Changes go through `transaction`."""
        assert self._connection is not None, f"{self.path} is not open"
        return self._connection

    def lock(self) -> None:
        """Make its folder and lock it without opening it, so that its content can be inspected first.

        Raises:
            Unwritable: its folder cannot be made, or its lock file cannot be written.
            InUse: another process has it open.
            DiskFull: there is no room to make it.
        """
        try:
            make_folder(self.path.parent)
            if self._lock_path is not None:
                self._lock = os.open(self._lock_path, os.O_CREAT | os.O_RDWR, PRIVATE)
                forks.own(self._lock)
                narrow(self._lock_path)
        except OSError as error:
            if no_room(error):
                raise DiskFull(str(error)) from error
            raise Unwritable(error.strerror or str(error)) from error
        try:
            self._take_lock()
        except BaseException:
            self.close()
            raise

    def open(self, tables: str) -> None:
        """Lock it if needed, open it, and make the missing tables. On failure it is closed again.

        Raises:
            Unwritable: its folder cannot be made, or its lock file cannot be written.
            InUse: another process has it open.
            DiskFull: there is no room to make it.
            DatabaseError: it cannot be opened, or is no database.
        """
        if self._lock is None:
            self.lock()
        try:
            self._keep_private()
            self._connect(tables)
        except BaseException:
            self.close()
            raise

    def adopt(self, connection: sqlite3.Connection) -> None:
        """Use a connection that only reads, without a lock."""
        self._connection = connection

    def _take_lock(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(str(error)) from error

    def _keep_private(self) -> None:
        """Make the file private. SQLite would use the umask, and gives the log and the index the mode of the file."""
        with suppress(OSError):  # SQLite reports the error when it opens the file
            make_private_file(self.path)
        for beside in ("-wal", "-shm"):
            narrow(self.path.with_name(self.path.name + beside))

    def _connect(self, tables: str) -> None:
        try:
            self._connection = sqlite3.connect(
                self.path, isolation_level="IMMEDIATE", check_same_thread=not self._threads
            )
            for pragma in self._pragmas:
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(tables)
        except sqlite3.Error as error:
            raise _translated(error) from error

    def close(self) -> None:
        """Close it, then release the lock. A closed database may be opened again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            forks.disown(self._lock)
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed when the block ends, rolled back if the block raises.

        An OSError in the block is reported as the database's own, because files written there are part of the
        transaction.

        Raises:
            DiskFull: there is no room.
            DatabaseError: it cannot be written.
        """
        try:
            with self.connection as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise _translated(error) from error
        if self.committed is not None:
            self.committed()


def _translated(error: Exception) -> DiskFull | DatabaseError:
    return DiskFull(str(error)) if no_room(error) else DatabaseError(str(error))


def free_bytes(directory: Path) -> int:
    """The bytes that this user may still write on a directory's disk."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


class ReservedSpace:
    """A file of zeros that is truncated when the disk is full: without some room SQLite refuses even to delete.

    It may share a file whose content is never read, such as a lock file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self.written = 0
        """Bytes written to reserve the space; they wear a flash card."""

    def take(self) -> bool:
        """Reserve the space if needed, and return whether it is reserved now."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, PRIVATE)
        except OSError as error:
            log.debug("No room is reserved in %s: %s", self._path, error)
            return False
        try:
            if os.fstat(descriptor).st_size != self._size:
                self._fill(descriptor)
        except OSError as error:
            log.debug("No room is reserved in %s: %s", self._path, error)
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # a partly reserved space only takes room from others
            return False
        finally:
            os.close(descriptor)
        return True

    def _fill(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        zeros, at = memoryview(bytes(self._size)), 0
        while at < self._size:  # on a nearly full disk, a write may be short
            at += os.pwrite(descriptor, zeros[at:], at)
        os.fsync(descriptor)
        self.written += self._size

    def release(self) -> None:
        """Give the space up.

        Raises:
            OSError: the file cannot be cut.
        """
        with suppress(FileNotFoundError):
            os.truncate(self._path, 0)
