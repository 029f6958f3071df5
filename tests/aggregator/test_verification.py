"""`midge store verify`: each part of a store, what is damaged in it and what is at stake, without a byte changed."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.store.backup import backup
from midge.aggregator.store.consistency import WITNESS
from midge.aggregator.store.verification import PartVerdict, verify
from tests.aggregator.test_backup import full, listed, wide, wide_rig
from tests.aggregator.test_reading import read_only_mount
from tests.aggregator.test_salvage import Books, flipped

NEWEST = "(SELECT max(lsn) FROM journal WHERE kind = 'update')"


def damaged(directory: Path) -> dict[str, PartVerdict]:
    return {part.name: part for part in verify(directory) if part.damaged}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that was closed in order, with something in every part of it."""
    return full(tmp_path / "store")


def test_a_whole_store_is_read_in_all_its_parts(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(store)
    checked = {part.name: part.checked for part in verify(store)}
    assert not damaged(store)
    assert {name for name, count in checked.items() if not count} == {"log", "registered versions"}, "it was closed"
    assert main(["store", "verify", str(store)]) == 0
    assert "Everything is undamaged." in capsys.readouterr().out
    assert listed(store) == before


def test_it_reads_beside_a_running_aggregator_and_finds_no_damage_that_is_none(tmp_path: Path) -> None:
    found, enough = list[dict[str, PartVerdict]](), threading.Event()

    def look() -> None:
        try:
            found.extend(damaged(tmp_path / "store") for _ in range(10))
        finally:
            enough.set()

    with wide_rig(tmp_path / "store") as life:
        wide(life, 1)
        thread = threading.Thread(target=look)
        thread.start()
        seq = 1
        while not enough.is_set():
            seq += 1
            wide(life, seq)
        thread.join()
    assert found == [{}] * 10


def test_it_reads_a_read_only_mount(tmp_path: Path, store: Path) -> None:
    with read_only_mount(store):
        assert main(["store", "verify", str(store)]) == 0


def sql(statement: str, *values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        db = sqlite3.connect(directory / "store.db")
        db.execute(statement, values)
        db.commit()
        db.close()

    return change


@pytest.mark.parametrize(
    ("part", "spoil", "at_stake"),
    [
        ("bodies", sql("UPDATE journal SET crc = crc + 1 WHERE lsn = " + NEWEST), True),
        ("journal", sql("DELETE FROM journal WHERE lsn = " + NEWEST), True),
        ("bodies", lambda directory: max(directory.glob("bodies-*")).unlink(), True),
        ("checkpoints", lambda directory: flipped(max(directory.glob("checkpoint-*")), 0.5), False),
        ("frames", sql("UPDATE frames SET data = substr(data, 2) WHERE span = 0"), False),
        ("metadata", sql("UPDATE meta SET value = 'x' WHERE name = 'schema'"), True),
        ("witness", lambda directory: flipped(directory / WITNESS, 0.001), False),
        ("audit log", lambda directory: flipped(directory / "audit.log", 0.5), False),
    ],
)
def test_what_is_damaged_is_found_in_its_part(
    store: Path, part: str, spoil: Callable[[Path], None], at_stake: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(store)
    before = listed(store)
    assert main(["store", "verify", "--json", str(store)]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not said["ok"]
    (found,) = [each for each in said["parts"] if each["name"] == part]
    assert found["damaged"] and found["found"] and found["advice"]
    assert (found["at_stake"] > 0) is at_stake
    assert main(["store", "verify", str(store)]) == 1
    assert f"{part}: " in capsys.readouterr().out
    assert listed(store) == before


def test_any_flip_in_the_log_is_found_with_what_is_at_stake(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(4,), folded=5)
    log = books.copy / "store.db-wal"
    kept = log.read_bytes()
    for place in np.linspace(0.0, 0.95, 12):
        flipped(log, place)
        found = damaged(books.copy)
        if found:
            assert "log" in found, place
            assert (found["log"].at_stake or 0) <= len(books.updates)
        else:  # of a transaction before the log was begun once more, or of a count that SQLite does not use
            assert len(kept) * place > 32 + 20 * (24 + 4096) or len(kept) * place < 32, place
        log.write_bytes(kept)
    log.unlink()
    found = damaged(books.copy)
    assert (found["witness"].at_stake or 0) > 10
    assert not list(books.copy.glob("*-shm"))


def test_any_page_of_the_database_that_rots_is_found(store: Path) -> None:
    path = store / "store.db"
    data = path.read_bytes()
    for page in range(1, len(data) // 4096):
        at = page * 4096
        path.write_bytes(data[:at] + bytes(byte ^ 85 for byte in data[at : at + 200]) + data[at + 200 :])
        assert damaged(store), page
        path.write_bytes(data)


def test_a_backup_is_looked_at_with_its_manifest(store: Path) -> None:
    backup(store, store.parent / "backup")
    assert not damaged(store.parent / "backup")
    shutil.copy(store / "audit.log", store.parent / "backup" / "paused")
    (store.parent / "backup" / "names.key").write_bytes(bytes(40))
    assert {"manifest", "audit log"} <= damaged(store.parent / "backup").keys()


def test_a_folder_without_a_store_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(tmp_path)]) == 2
    assert "no store" in capsys.readouterr().err
