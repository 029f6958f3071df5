"""A database has one process, a full disk has one name, and what is reserved is given back whole."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from midge.storage.database import Database, DatabaseError, DiskFull, InUse, ReservedSpace, Unwritable
from tests.aggregator.test_full_disk import small_disk

TABLES = "CREATE TABLE IF NOT EXISTS t (x BLOB)"


def database(directory: Path) -> Database:
    return Database(directory / "d", lock=directory / "d.lock")


def rows(base: Database) -> int:
    (count,) = base.connection.execute("SELECT count(*) FROM t").fetchone()
    return int(count)


CHILD = """
import sys
from pathlib import Path
from midge.storage.database import Database
base = Database(Path(sys.argv[1]) / "d", lock=Path(sys.argv[1]) / "d.lock")
base.open("CREATE TABLE IF NOT EXISTS t (x BLOB)")
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", CHILD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        base = database(tmp_path)
        with pytest.raises(InUse):
            base.open(TABLES)
        child.kill()
        child.wait()
        base.open(TABLES)
        base.close()


def test_what_cannot_be_opened_is_closed_and_unlocked(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"no database" * 100)
    base = database(tmp_path)
    with pytest.raises(DatabaseError, match="not a database"):
        base.open(TABLES)
    (tmp_path / "d").unlink()
    second = database(tmp_path)
    second.open(TABLES)  # the lock is free
    second.close()
    second.open(TABLES)
    second.close()


def test_a_folder_that_cannot_be_made_is_told_in_the_systems_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unwritable, match=r"Not a directory|File exists"):
        database(tmp_path / "file").open(TABLES)


def test_a_commit_is_synced_unless_told_otherwise(tmp_path: Path) -> None:
    levels = {}
    for name, base in {
        "full": Database(tmp_path / "a"),
        "normal": Database(tmp_path / "b", synchronous="NORMAL", pragmas=("wal_autocheckpoint=64",)),
    }.items():
        base.open(TABLES)
        pragmas = ("journal_mode", "synchronous", "wal_autocheckpoint")
        levels[name] = [base.connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas]
        base.close()
    assert levels == {"full": ["wal", 2, 1000], "normal": ["wal", 1, 64]}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFull),
        (OSError(errno.EIO, "Input/output error"), DatabaseError),
    ],
)
def test_an_error_of_a_file_beside_it_takes_the_transaction_back(
    tmp_path: Path, error: OSError, told: type[Exception]
) -> None:
    base = database(tmp_path)
    base.open(TABLES)
    with pytest.raises(told, match=str(error.strerror)), base.transaction() as db:  # noqa: PT012
        db.execute("INSERT INTO t VALUES (1)")
        raise error
    assert rows(base) == 0
    base.close()


def test_a_full_database_takes_nothing_and_goes_on(tmp_path: Path) -> None:
    base = database(tmp_path)
    base.open(TABLES)
    base.connection.execute("PRAGMA max_page_count=1")
    with pytest.raises(DiskFull, match="is full"), base.transaction() as db:  # noqa: PT012
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert rows(base) == 0
    base.connection.execute(f"PRAGMA max_page_count={2**31}")
    with base.transaction() as db:
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert rows(base) == 1
    base.close()


def test_a_disk_that_is_full_from_the_start_is_told_as_such(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3 * 4096) as disk, pytest.raises(DiskFull):
        database(disk).open(TABLES)


def test_space_is_reserved_and_given_back(tmp_path: Path) -> None:
    space = ReservedSpace(tmp_path / "s", 10_000)
    space.release()  # nothing is there yet
    assert space.take() and space.take()
    assert ((tmp_path / "s").read_bytes(), space.written) == (bytes(10_000), 10_000)
    space.release()
    assert (tmp_path / "s").stat().st_size == 0
    (tmp_path / "s").write_bytes(bytes(20_000))  # of a version that reserved more
    assert space.take()
    assert (tmp_path / "s").stat().st_size == 10_000


def test_space_that_is_not_there_is_not_half_reserved(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**16) as disk:
        space = ReservedSpace(disk / "s", 2**20)
        assert not space.take()
        assert ((disk / "s").stat().st_size, space.written) == (0, 0)
        (disk / "other").write_bytes(bytes(2**14))


def test_space_in_a_lock_file_does_not_free_the_lock(tmp_path: Path) -> None:
    base = database(tmp_path)
    base.open(TABLES)
    space = ReservedSpace(tmp_path / "d.lock", 4096)
    assert space.take()
    space.release()
    with pytest.raises(InUse):
        database(tmp_path).open(TABLES)
    base.close()
