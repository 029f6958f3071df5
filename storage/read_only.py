"""Read a database of `storage.database` without changing a byte of it: beside its owner, or on a read-only mount.

SQLite reads a database in WAL mode with an index that it writes beside it, which a read-only mount forbids. There
`immutable` reads the file without its log, which is right only if the log is empty; otherwise both are copied.
"""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_UNWRITABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
"""SQLite's codes for an index that cannot be written."""


@contextmanager
def read_only(path: Path, *, lock: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A connection that reads one consistent state of a database, whatever its owner writes meanwhile.

    No process can open the database for writing while this one reads it, unless one has it open already.

    Args:
        path: the database.
        lock: the file that its owner locks.

    Raises:
        sqlite3.Error: it cannot be read, or is no database.
        OSError: it has to be copied, and cannot be.
    """
    with kept_closed(lock) as closed:
        log, index = (path.with_name(path.name + beside) for beside in ("-wal", "-shm"))
        pending = log.exists() and log.stat().st_size > 0
        there = index.exists()
        if closed and not pending:
            with closing(_connect(path, "immutable=1")) as db:
                yield db
            return
        try:
            db = _connect(path, "mode=ro")
        except sqlite3.OperationalError as error:
            if index.exists() or error.sqlite_errorcode & 0xFF not in _UNWRITABLE:  # an open database has its index
                raise
            with _copied(path, log) as copy, closing(_connect(copy, "mode=ro")) as db:
                yield db
            return
        try:
            with closing(db):
                yield db
        finally:
            if closed and not there:
                index.unlink(missing_ok=True)


@contextmanager
def kept_closed(lock: Path | None) -> Iterator[bool]:
    """Whether no process has the database open for writing; if so, none can open it until the block ends."""
    if lock is None or not lock.exists():
        yield True
        return
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            closed = True
        except OSError:
            closed = False
        yield closed
    finally:
        os.close(descriptor)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None)
    try:
        db.execute("BEGIN")
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first statement opens the file
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _copied(path: Path, log: Path) -> Iterator[Path]:
    """Copies of the database and its log in a folder that SQLite can write."""
    with tempfile.TemporaryDirectory(prefix="midge-") as folder:
        for each in (path, log):
            shutil.copyfile(each, Path(folder, each.name))
        yield Path(folder, path.name)
