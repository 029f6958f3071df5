"""A copy by changes is the same files, whatever was written, wherever the copying was killed."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from midge.storage.changes import FileChange, FolderChanges, FolderSnapshot, TooMuchChanged, manifest
from midge.storage.database import Database
from midge.storage.redo_log import LOG, RedoLog, changes_of, pieces_of
from midge.wire.errors import WireError

TABLES = "CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, data BLOB)"
BESIDE = re.compile(r"bodies-\d+|notes|forget/[a-z]+")
ALL = re.compile(rf"store\.db|{BESIDE.pattern}")
MOST = 2**24


@contextmanager
def opened(folder: Path, *pragmas: str) -> Iterator[Database]:
    database = Database(folder / "store.db", pragmas=pragmas)
    database.open(TABLES)
    with database.transaction() as db:
        db.execute("INSERT OR REPLACE INTO t VALUES (0, x'00')")
    try:
        yield database
    finally:
        database.close()


def rows(folder: Path) -> list[tuple[int, bytes]]:
    """Of a copy: read from a copy of it, so that it stays as it is."""
    place = folder.with_name(f"{folder.name}.read.db")
    shutil.copyfile(folder / "store.db", place)
    db = sqlite3.connect(place)
    try:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT n, data FROM t ORDER BY n").fetchall()
    finally:
        db.close()


def files(folder: Path) -> dict[str, bytes]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in names if BESIDE.fullmatch(name)}


def send(log: RedoLog, changes: Iterator[FileChange], most: int = 5000) -> None:
    for piece, last in pieces_of(changes, most):
        log.append(piece, last=last)
    log.sync()
    log.apply()


def write(random: Random, database: Database, folder: Path) -> None:
    """Something that a store does."""
    with database.transaction() as db:
        match random.randrange(5):
            case 0:
                db.execute("DELETE FROM t WHERE n % 3 = ?", (random.randrange(3),))
            case 1:
                db.execute("UPDATE t SET data = randomblob(200) WHERE n % 2 = 1")
            case _:
                db.executemany(
                    "INSERT OR REPLACE INTO t VALUES (?, ?)",
                    [(random.randrange(500), random.randbytes(random.randrange(6000))) for _ in range(10)],
                )
    match random.randrange(8):
        case 0:
            database.connection.execute("VACUUM")
            database.connection.commit()
        case 1:
            (folder / "notes").write_bytes(random.randbytes(random.randrange(3000)))
        case 2:
            (folder / "notes").unlink(missing_ok=True)
        case 3:
            (folder / "forget").mkdir(exist_ok=True)
            (folder / "forget" / "me").write_bytes(b"")
        case _:
            with (folder / f"bodies-{random.randrange(3)}").open("ab") as file:
                file.write(random.randbytes(random.randrange(200_000)))


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_is_the_same(tmp_path: Path, seed: int) -> None:
    random, folder, copy = Random(seed), tmp_path / "store", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    with opened(folder, "wal_autocheckpoint=20") as database:
        for _ in range(5):
            write(random, database, folder)
        (folder / "bodies-9").write_bytes(b"is removed while no one follows")
        for _ in range(3):  # each time it follows from where it is
            known = manifest(copy, "store.db", BESIDE)
            changes, snapshot = (
                FolderChanges(folder, "store.db", BESIDE, MOST),
                FolderSnapshot(folder, "store.db", BESIDE),
            )
            log, looks = RedoLog(copy, ALL), []
            for _ in range(5):  # while it is copied
                write(random, database, folder)
                looks.append(changes.look())
            send(log, snapshot.changes(known))
            snapshot.close()
            for look in looks:
                send(log, iter(look))
            for _ in range(20):
                write(random, database, folder)
                send(log, iter(changes.look()))
                if random.random() < 0.2:
                    log.settle()
                if random.random() < 0.2:
                    log.close()
                    log = RedoLog(copy, ALL)
            changes.close()
            log.close()
            assert rows(copy) == database.connection.execute("SELECT n, data FROM t ORDER BY n").fetchall()
            assert files(copy) == files(folder)
            for _ in range(5):  # while no one follows
                write(random, database, folder)
            (folder / "bodies-9").unlink(missing_ok=True)


def test_a_log_that_is_cut_anywhere_gives_the_last_whole_transaction(tmp_path: Path) -> None:
    folder, copy = tmp_path / "store", tmp_path / "copy"
    folder.mkdir()
    copy.mkdir()
    with opened(folder) as database:
        changes, snapshot = FolderChanges(folder, "store.db", BESIDE, MOST), FolderSnapshot(folder, "store.db", BESIDE)
        log = RedoLog(copy, ALL)
        send(log, snapshot.changes({}))
        states, ends = [rows(copy)], [(copy / LOG).stat().st_size]
        for number in range(1, 4):
            with database.transaction() as db:
                db.execute("INSERT INTO t VALUES (?, randomblob(9000))", (number,))
            send(log, iter(changes.look()))
            states.append(rows(copy))
            ends.append((copy / LOG).stat().st_size)
        changes.close()
        snapshot.close()
        log.close()
    whole = (copy / LOG).read_bytes()
    for cut in {*range(ends[0], len(whole), 371), *ends}:
        place = tmp_path / f"cut-{cut}"
        place.mkdir()
        (place / LOG).write_bytes(whole[:cut])
        RedoLog(place, ALL).close()
        assert rows(place) == states[sum(end <= cut for end in ends) - 1]


def test_a_rolled_back_transaction_is_not_copied(tmp_path: Path) -> None:
    with opened(tmp_path, "cache_spill=1", "cache_size=2") as database:
        changes = FolderChanges(tmp_path, "store.db", BESIDE, MOST)
        database.connection.executemany("INSERT INTO t VALUES (?, randomblob(4000))", [(n,) for n in range(1, 200)])
        assert (tmp_path / "store.db-wal").stat().st_size > 400_000, "pages have spilled into the log"
        assert changes.look() == []
        database.connection.rollback()
        assert changes.look() == []
        with database.transaction() as db:
            db.execute("INSERT INTO t VALUES (1, x'01')")
        assert 0 < len(changes.look()) < 10
        changes.close()


def test_too_much_is_said_and_a_strange_file_is_not_written(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        changes = FolderChanges(tmp_path, "store.db", BESIDE, 50_000)
        with database.transaction() as db:
            db.execute("INSERT INTO t VALUES (1, randomblob(200000))")
        with pytest.raises(TooMuchChanged):
            changes.look()
        changes.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    log = RedoLog(copy, ALL)
    with pytest.raises(WireError, match="no file of a store"):
        send(log, iter([FileChange("../strange", 0, b"x", 1)]))
    log.close()
    assert not (tmp_path / "strange").exists()
    with pytest.raises(WireError):
        changes_of(b"\0")
