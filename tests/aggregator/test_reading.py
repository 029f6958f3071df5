"""`midge explain` and `midge replay`, over stores that a rig has written."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.core.staleness import constant
from midge.aggregator.store.inspection import explain
from midge.aggregator.store.replaying import replay
from midge.aggregator.store.store import Store, StoreError
from tests import needs
from tests.aggregator.rig import Rig, rig

PAIRS = fedbuff(2, deadline=None, norm_limit=None, release_floor=2, staleness=constant(), bounded=False)


def write(directory: Path) -> Rig:
    with rig(directory, PAIRS) as life:
        life.send("a", 1, [2, 0, 0, 0])
        life.send("b", 1, [0, 2, 0, 0])
        life.engine.checkpoint(life.core)
        life.send("a", 2, [0, 0, 2, 0], base=99)
        life.send("a", 3, [0, 0, 0, 2])
        return life


def test_the_life_of_an_update_that_was_released_refused_or_waits(tmp_path: Path) -> None:
    write(tmp_path)
    (released,) = explain(tmp_path, "a", 1)
    assert released.update.verdict == "accepted"
    assert released.step is not None and released.step.step == 1 and released.weight == 1.0
    assert released.release is not None and released.release.version == 2
    (refused,) = explain(tmp_path, "a", 2)
    assert refused.update.verdict == "unknown_base" and refused.step is None
    (waiting,) = explain(tmp_path, "a", 3)
    assert waiting.update.verdict == "accepted" and waiting.step is None
    with pytest.raises(StoreError, match="it has 1 to 3 of a"):
        explain(tmp_path, "a", 4)
    with pytest.raises(StoreError, match="nothing of c"):
        explain(tmp_path, "c", 1)


def test_explain_reads_beside_a_running_aggregator(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        assert explain(tmp_path, "a", 1)[0].step is not None


def test_every_checkpoint_leads_to_the_same_bits(tmp_path: Path) -> None:
    life = write(tmp_path)
    with Store(tmp_path) as store:
        ways = list(replay(store))
    assert len(ways) == 2
    assert {way.whole for way in ways} == {life.model.digest().hex()}
    assert min(way.records for way in ways) > 0


def test_the_commands_tell_it_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(["explain", str(tmp_path), "a/1"]) == 0
    assert "applied in step 1 with weight 1" in capsys.readouterr().out
    assert main(["explain", str(tmp_path), "a/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "unknown_base"
    assert main(["replay", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True
    assert main(["replay", str(tmp_path / "none")]) == 2
    assert "no store of an aggregator" in capsys.readouterr().err


def test_replay_says_so_where_the_bits_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rig(tmp_path, PAIRS) as life:
        life.send("a", 1, [2, 0, 0, 0])
        life.send("b", 1, [0, 2, 0, 0])
        life.model.x[0] = np.nextafter(life.model.x[0], np.float32(9))  # what a processor of other bits would write
        life.engine.checkpoint(life.core)
    assert main(["replay", str(tmp_path)]) == 1
    assert "They differ" in capsys.readouterr().out


@contextmanager
def read_only_mount(directory: Path) -> Iterator[None]:
    """Have a folder on a mount that cannot be written, as root neither."""
    if os.geteuid() != 0:
        pytest.skip(needs.MOUNTS)
    if subprocess.run(["mount", "--bind", directory, directory], check=False, capture_output=True).returncode:
        pytest.skip(needs.MOUNTS)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.parametrize("state", ["closed", "killed", "killed, without SQLite's index"])
def test_a_store_on_a_read_only_mount_is_read(tmp_path: Path, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    """SQLite says `unable to open database file`: it wants to write an index beside the file."""
    life = Rig(tmp_path / "store", PAIRS).start()
    life.send("a", 1, [2, 0, 0, 0])
    life.send("b", 1, [0, 2, 0, 0])
    if state == "closed":
        life.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    life.close()
    if "index" in state:
        (tmp_path / "copy" / "store.db-shm").unlink()
    with read_only_mount(tmp_path / "copy"):
        assert main(["replay", str(tmp_path / "copy"), "--json"]) == 0
        (way,) = json.loads(capsys.readouterr().out)["ways"]
        assert way["whole"] == life.model.digest().hex(), "with what only SQLite's log has"
        assert main(["explain", str(tmp_path / "copy"), "b/1"]) == 0
        assert "applied in step 1" in capsys.readouterr().out
        assert main(["audit", "verify", str(tmp_path / "copy")]) == 0
        assert main(["store", "backup", str(tmp_path / "copy"), str(tmp_path / "backup")]) == 0


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_reading_changes_no_byte_and_leaves_no_file(tmp_path: Path, state: str) -> None:
    life = Rig(tmp_path / "store", PAIRS).start()
    life.send("a", 1, [2, 0, 0, 0])
    if state == "closed":
        life.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    life.close()
    (tmp_path / "copy" / "store.db-shm").unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert explain(tmp_path / "copy", "a", 1)
    assert main(["replay", str(tmp_path / "copy")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before


def test_replay_reads_beside_a_running_aggregator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        assert main(["replay", str(tmp_path), "--json"]) == 0
        (way,) = json.loads(capsys.readouterr().out)["ways"]
        assert way["whole"] == life.model.digest().hex()
        assert life.send("a", 2, [1, 0, 0, 0]).verdict == "accepted"


def test_a_store_of_an_earlier_format_is_read_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    shutil.copytree(Path(__file__).parent / "golden" / "store-1", store)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    assert main(["replay", str(store), "--json"]) == 0
    digests = {way["digest"] for way in json.loads(capsys.readouterr().out)["ways"]}
    assert main(["store", "verify", str(store)]) == 0
    assert main(["store", "backup", str(store), str(tmp_path / "backup")]) == 0
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
    assert main(["store", "restore", str(tmp_path / "backup"), str(tmp_path / "restored")]) == 0
    assert main(["store", "salvage", str(store), str(tmp_path / "salvaged"), "--accept-loss"]) == 0
    capsys.readouterr()
    for made in ("backup", "restored", "salvaged"):
        assert main(["replay", str(tmp_path / made), "--json"]) == 0
        assert {way["digest"] for way in json.loads(capsys.readouterr().out)["ways"]} <= digests, made
