"""SQLite's log, frame by frame, against SQLite itself: what rotted is found, and the rest is still there."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from midge.storage.wal import Log, applied, read_log


@pytest.fixture
def written(tmp_path: Path) -> tuple[bytes, bytes]:
    """A database and its log of twenty transactions, one of several pages; the log was begun once before."""
    path = tmp_path / "a.db"
    db = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "CREATE TABLE t (n INTEGER PRIMARY KEY, x)"):
        db.execute(statement)
    db.executemany("INSERT INTO t VALUES (?, ?)", [(-number, bytes(500)) for number in range(1, 100)])
    db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
    for number in range(20):
        db.execute("INSERT INTO t VALUES (?, ?)", (number, bytes(20_000 if number == 10 else 10)))
    shutil.copy(path, tmp_path / "b.db")
    shutil.copy(f"{path}-wal", tmp_path / "b.db-wal")
    db.close()
    return (tmp_path / "b.db").read_bytes(), (tmp_path / "b.db-wal").read_bytes()


def rows(image: bytes, folder: Path) -> list[int]:
    (folder / "image.db").write_bytes(image)
    db = sqlite3.connect(folder / "image.db")
    try:
        return [number for (number,) in db.execute("SELECT n FROM t WHERE n >= 0 ORDER BY n")]
    finally:
        db.close()


def believed_by_sqlite(database: bytes, log: bytes, folder: Path) -> list[int]:
    (folder / "own.db").write_bytes(database)
    (folder / "own.db-wal").write_bytes(log)
    db = sqlite3.connect(f"file:{folder}/own.db?mode=ro", uri=True)
    try:
        return [number for (number,) in db.execute("SELECT n FROM t WHERE n >= 0 ORDER BY n")]
    finally:
        db.close()
        for name in ("own.db", "own.db-wal", "own.db-shm"):
            (folder / name).unlink(missing_ok=True)


def read(database: bytes, log: bytes) -> Log:
    return read_log(log, database)


def test_a_whole_log_gives_what_sqlite_gives(written: tuple[bytes, bytes], tmp_path: Path) -> None:
    database, log = written
    found = read(database, log)
    assert (found.damaged, found.readable) == (0, found.committed)
    assert rows(applied(database, found.frames[: found.committed]), tmp_path) == list(range(20))


def test_any_flip_is_found_or_harmless_and_the_rest_is_there(written: tuple[bytes, bytes], tmp_path: Path) -> None:
    database, log = written
    known = read(database, log)
    live = 32 + len(known.frames) * (24 + 4096)
    for place in range(0, live, 997):
        rotten = bytearray(log)
        rotten[place] ^= 64
        found = read(database, bytes(rotten))
        theirs = believed_by_sqlite(database, bytes(rotten), tmp_path)
        assert theirs == rows(applied(database, found.frames[: found.readable]), tmp_path), place
        assert len(found.frames) == len(known.frames), place
        assert found.damaged <= 2
        if len(theirs) < 20:
            assert found.damaged or found.readable < found.committed or not found.readable, place
            # A page that rotted still has its other rows, and most are written again later.
            try:
                all_of_it = rows(applied(database, found.frames), tmp_path)
            except sqlite3.DatabaseError:
                continue
            assert len(all_of_it) >= len(theirs), place


@pytest.mark.parametrize("length", [0, 10, 31, 32, 100, 5000])
def test_a_log_that_was_cut_is_read_to_its_end(written: tuple[bytes, bytes], length: int, tmp_path: Path) -> None:
    database, log = written
    found = read(database, log[:length])
    assert found.readable == len(found.frames[: found.committed])
    assert rows(applied(database, found.frames[: found.readable]), tmp_path) == believed_by_sqlite(
        database, log[:length], tmp_path
    )


def test_bytes_that_are_no_log_are_no_frames(written: tuple[bytes, bytes]) -> None:
    database, _ = written
    assert read(database, bytes(10_000)).readable == 0
    assert read(b"", b"\xff" * 10_000).frames == ()
