"""A SQLite file in WAL mode that one process has to itself, with reserved space for the time when the disk is full.

With synchronous=FULL a commit survives a power cut: the log is synced before the commit returns. With NORMAL the newest
commits may be lost, and the file stays whole.
"""

import errno
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from midge.storage import forks
from midge.storage.files import PRIVATE, make_folder, make_private_file, narrow

log = logging.getLogger("storage")

_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
"""How SQLite says that the disk is full: no page left, a write that came back short, no room for the log's index."""


class DatabaseError(Exception):
    """The database cannot be used. The message is SQLite's, or the operating system's."""


class Unwritable(DatabaseError):
    """Its folder or its lock file cannot be written."""


class InUse(DatabaseError):
    """Another process has it open."""


class DiskFull(Exception):
    """There is no room on the disk. What was to be written is not; everything before it is."""


def no_room(error: Exception) -> bool:
    """Whether an error of SQLite or of the operating system says that the disk, or a quota of it, is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Database:
    """A SQLite file.

    Args:
        path: the file.
        lock: a file that is locked for as long as the database is open; None locks nothing, for a file that is only
            ever beside a locked one.
        synchronous: FULL if a commit must survive a power cut, NORMAL if the newest ones may be lost.
        pragmas: more of them, such as `wal_autocheckpoint=64`.
        threads: whether other threads than that which opened it use it; they must take turns.
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

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection. What changes something goes through `transaction`."""
        assert self._connection is not None, f"{self.path} is not open"
        return self._connection

    def lock(self) -> None:
        """Make its folder and lock it, without opening it: what is in it can be looked at first.

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
        """Lock it if it is not, open it, and make the tables that it does not have. If that fails, it is closed.

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
        """Be open by a connection that only reads, without a lock."""
        self._connection = connection

    def _take_lock(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(str(error)) from error

    def _keep_private(self) -> None:
        """SQLite makes the file by the umask, and those beside it with the file's mode."""
        with suppress(OSError):  # then SQLite says what is wrong with it
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
            raise _told(error) from error

    def close(self) -> None:
        """Close it, then give up the lock. A closed one may be opened again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            forks.disown(self._lock)
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is committed when the block is left, or nothing.

        An OSError of the block counts as the database's own: what is written beside it belongs to the transaction.

        Raises:
            DiskFull: there is no room.
            DatabaseError: it cannot be written.
        """
        try:
            with self.connection as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise _told(error) from error


def _told(error: Exception) -> DiskFull | DatabaseError:
    return DiskFull(str(error)) if no_room(error) else DatabaseError(str(error))


class ReservedSpace:
    """A file of zeros that is given up on a full disk: without some room SQLite refuses even to delete.

    The file may be one that is there for something else and whose content nothing reads, such as a lock file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self.written = 0
        """Bytes that went to the disk for it: what wears a flash card."""

    def take(self) -> bool:
        """Reserve the space if it is not; whether it is reserved now."""
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
                os.ftruncate(descriptor, 0)  # a part of it would be in the way of others
            return False
        finally:
            os.close(descriptor)
        return True

    def _fill(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        zeros, at = memoryview(bytes(self._size)), 0
        while at < self._size:  # on a disk that is nearly full, a write may come back short
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
