"""Stores of earlier formats, as the Midge of then wrote them: opened, migrated, and nothing of them is lost."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.store import migrations
from midge.aggregator.store.audit_log import verify
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.store import Store, StoreError
from tests.aggregator.rig import Rig, journaled

GOLDEN = sorted((Path(__file__).parent / "golden").glob("store-*"))
PARAMETERS = {"x": np.zeros(400, np.float32)}


def copied(golden: Path, directory: Path) -> tuple[Path, dict[str, Any]]:
    store = directory / "store"
    shutil.copytree(golden, store)
    expected = json.loads((store / "expected.json").read_text())
    (store / "expected.json").unlink()
    return store, expected


def shape(path: Path) -> tuple[int, dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        meta = dict(db.execute("SELECT name, value FROM meta"))
        columns = {name: len(db.execute(f"PRAGMA table_info({name})").fetchall()) for name in ("frames", "checkpoints")}
    return meta["format"], columns


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_a_store_of_an_earlier_format_is_migrated(golden: Path, tmp_path: Path) -> None:
    """The same model and receipts, twice; seen to fail as `ValueError` on stores of before segments."""
    store, expected = copied(golden, tmp_path)
    form, columns = shape(store / "store.db")
    for _ in range(2):
        life = Rig(store, parameters=PARAMETERS)
        life.engine.repair(life.core)
        try:
            digest, state = life.state
            assert digest.hex() == expected["digest"]
            assert life.core.lineage.hex() == expected["lineage"]
            assert (life.core.version, life.core.step) == (expected["version"], expected["step"])
            assert journaled(life.core)["counts"] == expected["counts"] == state["counts"]
            for device, seq, verdict in expected["receipts"]:
                assert life.send(device, seq, np.ones(400, np.float32)).verdict == verdict
            assert list(life.store._frames.rotten()) == []
            assert Names(life.store).withdrawn("gone")
        finally:
            life.close()
        assert not verify(store).wrong
    assert shape(store / "store.db")[0] == migrations.FORMAT
    assert shape(store / f"store.db.format-{form}.bak") == (form, columns), "the Midge that wrote it can go on from it"


def test_a_migration_that_is_cut_short_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, expected = copied(GOLDEN[0], tmp_path)
    before = shape(store / "store.db")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "row_checksum", broken)
        with pytest.raises(StoreError, match="Input/output error"), Store(store):
            pass
    assert shape(store / "store.db") == before
    with Store(store) as opened:
        assert opened.lineage.hex() == expected["lineage"]


def test_an_older_store_without_segments_is_migrated(tmp_path: Path) -> None:
    store, _ = copied(GOLDEN[0], tmp_path)
    with closing(sqlite3.connect(store / "store.db")) as db:
        for column in ("segment", "place", "size"):
            db.execute("UPDATE journal SET body = NULL")
            db.execute(f"ALTER TABLE journal DROP COLUMN {column}")
        db.commit()
    with Store(store) as opened:
        assert opened.newest_lsn() > 0
