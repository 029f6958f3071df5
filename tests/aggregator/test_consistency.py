"""Which files of a store belong together: compared as numbers, and as files that rot, go or come back."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from midge.aggregator.store.consistency import WITNESS, Note, Standing, examine, judge
from midge.aggregator.store.store import Store, StoreError
from tests.aggregator.rig import Rig, journaled, rig
from tests.aggregator.test_store import grow

LINEAGE = bytes(16)
STANDING = Standing(
    LINEAGE, lsn=40, oldest=1, crc=7, updates=30, changes=2, checkpoint=20, checkpointed=15, file=20, witnessed=True
)
NOTE = Note(LINEAGE, lsn=40, crc=7, updates=30, changes=2)


def test_what_agrees_is_opened_without_a_word() -> None:
    found = judge(STANDING, NOTE)
    assert not found.refusal
    assert found.proven
    assert not found.warnings
    assert not judge(replace(STANDING, lsn=41), NOTE).warnings, "the power went between a commit and its note"


@pytest.mark.parametrize(
    ("standing", "note", "at_stake"),
    [
        (replace(STANDING, lsn=38, crc=None, updates=28), NOTE, 2),
        (replace(STANDING, lsn=0, crc=None, updates=0, checkpoint=0), NOTE, 30),
        (replace(STANDING, crc=8, updates=29), NOTE, 1),
        (replace(STANDING, crc=None), NOTE, 1),
        (STANDING, replace(NOTE, lineage=bytes(15) + b"a"), 30),
        (STANDING, replace(NOTE, changes=3), 0),
        (replace(STANDING, file=50), replace(NOTE, lsn=50, updates=35), 5),
        (replace(STANDING, file=50), None, 10),
    ],
    ids=["behind", "empty", "another row", "no row", "another store", "changes", "checkpoint", "checkpoint alone"],
)
def test_what_is_behind_is_refused_with_what_is_at_stake(standing: Standing, note: Note | None, at_stake: int) -> None:
    found = judge(standing, note)
    assert found.refusal
    assert found.at_stake == at_stake
    assert not found.proven


@pytest.mark.parametrize(
    "note",
    [None, replace(NOTE, lsn=10, crc=7, changes=2), replace(NOTE, changes=0)],
    ids=["gone", "before the checkpoint", "before the changes"],
)
def test_a_witness_that_is_gone_or_old_is_told_and_proves_nothing(note: Note | None) -> None:
    found = judge(STANDING, note)
    assert not found.refusal
    assert len(found.warnings) == 1
    assert not found.proven


def decided(life: Rig) -> int:
    """Updates with a verdict in the journal."""
    return sum(journaled(life.core)["counts"].values())


def grown(directory: Path) -> Path:
    with rig(directory / "store") as life:
        grow(life, 12)
        life.engine.checkpoint(life.core)
        grow(life, 8, since=12)
    return directory / "store"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[30] ^= 4
    data[4096 + 30] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("how", [Path.unlink, flip, lambda path: path.write_bytes(b"")], ids=["gone", "flipped", "cut"])
def test_a_witness_that_rots_is_made_again_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Callable[[Path], None]
) -> None:
    store = grown(tmp_path)
    how(store / WITNESS)
    with caplog.at_level(logging.WARNING), rig(store):
        pass
    assert WITNESS in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), rig(store):
        pass
    assert not caplog.text


def test_a_database_that_is_put_back_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    with rig(tmp_path / "store") as life:
        grow(life, 5)
    for file in (tmp_path / "store").glob("store.db*"):
        if file.name != WITNESS:
            shutil.copy(file, tmp_path)
    with rig(tmp_path / "store") as life:
        before = decided(life)
        grow(life, 7, since=5)
        at_stake = decided(life) - before
    shutil.copy(tmp_path / "store.db", tmp_path / "store")
    files = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir() if path.suffix != ".db-shm"}
    said = rf"At stake: {at_stake} updates .* midge store salvage .*--accept-loss"
    with pytest.raises(StoreError, match=said), Store(tmp_path / "store"):
        pass
    assert {name: (tmp_path / "store" / name).read_bytes() for name in files} == files


def test_a_withdrawal_that_is_rolled_back_is_refused(tmp_path: Path) -> None:
    with rig(tmp_path / "store") as life:
        grow(life, 5)
    shutil.copy(tmp_path / "store" / "store.db", tmp_path)
    with Store(tmp_path / "store") as store, store.transaction() as db:
        db.execute("CREATE TABLE withdrawn (device TEXT)")
    shutil.copy(tmp_path / "store.db", tmp_path / "store")
    with pytest.raises(StoreError, match="such as a device that was withdrawn"), Store(tmp_path / "store"):
        pass


def test_a_store_without_a_witness_gets_one(tmp_path: Path) -> None:
    """As earlier versions left it."""
    store = grown(tmp_path)
    (store / WITNESS).unlink()
    with Store(store) as opened:
        opened._open_db.execute("DELETE FROM meta WHERE name IN ('witness', 'changes')")
        opened._open_db.commit()
    (store / WITNESS).unlink()
    assert not getattr(examine(store), "said", None)
    with Store(store):
        pass
    assert (store / WITNESS).exists()
