"""Files of a store that rot: the same model, or a refusal with what is at stake; never less without a word."""

import logging
import shutil
from pathlib import Path

import pytest

from midge.aggregator.store.store import Checkpoint, StoreError
from midge.wire import lineage
from tests.aggregator.rig import Rig, rig
from tests.aggregator.test_store import grow

PLACES = (0.15, 0.35, 0.55, 0.75, 0.95)


def busy(directory: Path) -> tuple[Path, int]:
    """A copy of a store's files in mid-life, and its newest lsn: the newest records are in SQLite's log alone."""
    with rig(directory / "store") as life:
        grow(life, 10)
        life.store._open_db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        grow(life, 10, since=10)
        shutil.copytree(directory / "store", directory / "copy")
        lsn = life.core.lsn
    (directory / "copy" / "store.db-shm").unlink(missing_ok=True)
    return directory / "copy", lsn


def same_or_refused(directory: Path, lsn: int) -> bool:
    try:
        with rig(directory) as life:
            return life.core.lsn >= lsn
    except StoreError:
        return True


@pytest.mark.xfail(strict=True, reason="What SQLite's log no longer holds is lost, and the start says nothing of it.")
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_log_that_rotted_is_refused_or_whole(tmp_path: Path, how: str) -> None:
    original, lsn = busy(tmp_path)
    found = []
    for number, place in enumerate(PLACES):
        copy = tmp_path / str(number)
        shutil.copytree(original, copy)
        log = copy / "store.db-wal"
        data = bytearray(log.read_bytes())
        at = int(place * len(data))
        data[at] ^= 16
        log.write_bytes(bytes({"flipped": data, "cut": data[:at], "gone": bytearray()}[how]))
        found.append(same_or_refused(copy, lsn))
    assert all(found)


def test_a_journal_that_is_gone_beside_checkpoints_is_refused(tmp_path: Path) -> None:
    copy, _ = busy(tmp_path)
    for file in copy.glob("store.db*"):
        file.unlink()
    with pytest.raises(StoreError), rig(copy):
        pass


@pytest.mark.xfail(
    strict=True, reason="Frames have no checksum: a rotten snapshot is published, and no device can use it."
)
def test_a_rotten_snapshot_is_not_published(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        grow(life, 20)
        life.store._open_db.execute(
            "UPDATE frames SET data = CAST(substr(data, 1, length(data) - 1) || x'7f' AS BLOB) WHERE span = 0"
        )
        life.store._open_db.commit()
    with rig(tmp_path) as life:
        version, data = max(
            (each.version, life.store.frame(each.version, 0)) for each in life.store.published() if each.span == 0
        )
        assert data is not None
        state = lineage.decode_snapshot(data)
        assert version != life.core.version or state.digest() == life.model.state.digest()
        assert version == life.core.version, "a snapshot of the version that is known to be right"


def test_a_rotten_checkpoint_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with rig(tmp_path) as life:
        for since in (0, 10):
            grow(life, 10, since)
            life.engine.checkpoint(life.core)
        state = life.state
    newest = max(tmp_path.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING), rig(tmp_path) as life:
        assert life.state == state
    assert newest.name in caplog.text


def test_a_checkpoint_of_a_layout_that_is_not_known_is_told_in_a_sentence(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        grow(life, 5)
        life.engine.checkpoint(life.core)
        (newest, *_) = life.store.checkpoints()
        core = {**newest.core, "outboxes": [[*each, "more", "still more"] for each in newest.core["outboxes"]]}
        life.store.checkpoint(Checkpoint(newest.lsn, newest.arrays, newest.values, core), oldest_body=1, oldest_base=1)
    with pytest.raises(StoreError):
        Rig(tmp_path)


def test_another_body_under_a_settled_number_is_not_told_accepted(tmp_path: Path) -> None:
    """As a device sends it whose card was put back from an image, and which has trained since."""
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        first = life.send("a", 2, [1, 0, 0, 0])
        other = life.send("a", 2, [0, 1, 0, 0])
        digests = getattr(first, "body", None), getattr(other, "body", None)
        assert other.verdict != "accepted" or (digests[0] and digests[0] == digests[1])


def test_the_body_that_a_verdict_is_for_outlives_a_restart(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        first = life.send("a", 1, [1, 0, 0, 0])
        life.engine.checkpoint(life.core)
        second = life.send("a", 2, [0, 1, 0, 0])
    with rig(tmp_path) as life:
        told = [life.send("a", seq, [0, 0, 0, 1]) for seq in (1, 2)]
    assert [settled.body for settled in told] == [first.body, second.body]
    assert len({first.body, second.body, b""}) == 3
