"""`midge audit STORE --from V`: releases executed again, and what differs is found."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import Frame
from midge.aggregator.store import release_audit
from midge.aggregator.store.journal import checksum
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.release_audit import AuditedRelease, audit
from midge.wire import lineage
from tests.aggregator.rig import EVERYTHING_COUNTS, rig
from tests.aggregator.test_counterfactual import MIXING, THREES, live, registered
from tests.aggregator.test_removed_log import NO_LOG


def audited(directory: Path, first: int, last: int | None = None) -> list[AuditedRelease]:
    with ReadOnlyStore(directory) as store:
        return list(audit(store, first, last))


@pytest.mark.parametrize("strategy", [EVERYTHING_COUNTS, THREES, MIXING], ids=["single", "buffered", "mixing"])
@pytest.mark.parametrize("checkpoint", [0, 2])
def test_every_release_is_executed_to_the_bits_of_its_frames(
    tmp_path: Path, strategy: Strategy, checkpoint: int
) -> None:
    life = live(tmp_path, strategy, rounds=6, checkpoint=checkpoint)
    first = int(life.core.version) - 1
    found = audited(tmp_path, first)
    assert [one.version for one in found] == [first, first + 1]
    assert not any(one.wrong for one in found)
    assert all(f"step {one.version}" in one.same for one in found)
    assert found[-1].digest == life.model.state.digest().hex()
    assert audited(tmp_path, first, first) == found[:1]


def test_a_release_says_how_many_updates_are_in_it(tmp_path: Path) -> None:
    live(tmp_path, THREES)
    assert [(one.updates, one.devices) for one in audited(tmp_path, 2)] == [(3, 3)] * 4


def test_registered_versions_and_checkpoints_are_compared(tmp_path: Path) -> None:
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        life.send("a", 1, [1, 2, 3, 4])
        registered(life)
        lsn = life.core.lsn
    (found,) = audited(tmp_path, 2)
    assert found.same[-2:] == ["registered version 2", f"checkpoint {lsn}"] and not found.wrong


def change_body(directory: Path, kind: str) -> None:
    """Replace the snapshot of a registered version, or of a return to one, by another valid one with its checksum."""
    with ReadOnlyStore(directory) as store:
        ((lsn,),) = store.query("SELECT lsn FROM journal WHERE kind = ?", (kind,))
        state = lineage.decode_snapshot(store.body(lsn))
    other = lineage.encode_snapshot(replace(state, exponent=state.exponent + 1))
    with closing(sqlite3.connect(directory / "store.db")) as db, db:
        ((record,),) = db.execute("SELECT record FROM journal WHERE lsn = ?", (lsn,)).fetchall()
        db.execute(
            "UPDATE journal SET body = ?, crc = ?, segment = NULL, place = NULL, size = NULL WHERE lsn = ?",
            (other, checksum(record, other), lsn),
        )


@pytest.mark.parametrize("kind", ["register", "rollback"])
def test_a_promoted_version_that_was_replaced_is_found(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: a version was compared only if it was the last release, and a return to one never."""
    life = live(tmp_path, THREES)
    assert main(["replay", str(tmp_path), "--without", "c", "--promote"]) == 0
    promoted = life.core.version + 2
    for first in (2, promoted):
        (*_, found) = audited(tmp_path, first)
        assert found.version == promoted and not found.wrong
        assert found.same == [f"registered version {promoted - 1}", f"return to version {promoted - 1}"]
    change_body(tmp_path, kind)
    for first in (2, promoted):
        (*_, found) = audited(tmp_path, first)
        assert len(found.wrong) == 1 and f"version {promoted - 1}" in found.wrong[0]
    assert main(["audit", str(tmp_path), "--from", str(promoted)]) == 1


def test_a_release_of_which_nothing_is_left_is_not_confirmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: it was counted among those that are the same."""
    version = live(tmp_path, EVERYTHING_COUNTS).core.version
    with closing(sqlite3.connect(tmp_path / "store.db")) as db, db:
        db.execute("DELETE FROM frames")
        db.executescript(NO_LOG)
    assert main(["audit", str(tmp_path), "--from", str(version)]) == 0
    said = capsys.readouterr().out
    assert f"Not compared: {version}." in said and "the same" not in said
    assert main(["audit", str(tmp_path), "--from", str(version), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_compared"] == [version]


def change_frame(directory: Path, version: int) -> None:
    """Replace a published step by another valid one, with all checksums."""
    with rig(directory, EVERYTHING_COUNTS) as life:
        data = life.store.frame(version, 1)
        assert data is not None
        step, exponent = lineage.decode_step(data, 4)
        life.store.query("DELETE FROM frames WHERE version = ? AND span = 1", (version,))
        life.store.add_frames([(Frame(version, 1, lineage.encode_step(step + np.int32(1), exponent)), 1)])


def test_a_release_that_is_not_what_was_decided_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator who published something else than the journal says is found, though each checksum holds."""
    life = live(tmp_path, EVERYTHING_COUNTS)
    version = life.core.version - 1
    change_frame(tmp_path, version)
    wrong = {one.version: one.wrong for one in audited(tmp_path, 2) if one.wrong}
    assert wrong == {version: [f"step {version}"]}
    assert main(["audit", str(tmp_path), "--from", "2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["audit", str(tmp_path), "--from", "2"]) == 1
    assert f"WRONG: step {version}" in capsys.readouterr().out


def test_the_command_says_what_it_can_execute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        for number in range(1, 6):
            life.send("a", number, [1, 0, 0, 0], base=number)
            life.engine.checkpoint(life.core)
    assert main(["audit", str(tmp_path), "--from", "5"]) == 0
    assert "2 releases executed again" in capsys.readouterr().out
    assert main(["audit", str(tmp_path), "--from", "1"]) == 2
    assert "From --from 5 on it can" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), "--from", "99"]) == 2
    assert "no release from 99 on" in capsys.readouterr().err
    assert main(["audit", str(tmp_path), "--from", "6", "--to", "5"]) == 2
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_release_is_advised_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: with the newest checkpoint alone, the command advised a release that had not been made."""
    with rig(tmp_path, EVERYTHING_COUNTS) as life:
        for number in range(1, 4):
            life.send("a", number, [1, 0, 0, 0], base=number)
        life.engine.checkpoint(life.core)
    with closing(sqlite3.connect(tmp_path / "store.db")) as db, db:
        db.execute("DELETE FROM checkpoints WHERE lsn < ?", (life.core.lsn,))
    assert main(["audit", str(tmp_path), "--from", "2"]) == 2
    said = capsys.readouterr().err
    assert "No release was made since; of earlier ones" in said and "--from" not in said


def test_sums_name_no_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: the updates of a secure federation were said to be of 0 devices."""
    live(tmp_path, EVERYTHING_COUNTS)
    secure = AuditedRelease(3, 0, 2, 0.0, "00" * 16, updates=5, devices=0, same=["step 3"])
    monkeypatch.setattr(release_audit, "audit", lambda *_: iter([secure]))
    assert main(["audit", str(tmp_path), "--from", "3"]) == 0
    assert "5 updates of devices that its sums hide" in capsys.readouterr().out
