"""Files of a store that rot: the same model, or a refusal with what is at stake; never less without a word."""

import logging
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from midge.aggregator.core.presets import fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.salvage import salvage
from midge.aggregator.store.store import Checkpoint, Store, StoreError
from midge.aggregator.store.verification import verify
from midge.wire import lineage, messages
from tests.aggregator.rig import TOPICS, Rig, rig
from tests.aggregator.test_store import grow
from tests.harness.faults import of, strike


@pytest.fixture
def no_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish merged steps of the tests' models too, with a snapshot now and then."""
    monkeypatch.setattr("midge.aggregator.model.model.SMALL", 0)


BUFFERED = fedbuff(3, deadline=None, norm_limit=None, release_floor=1, bounded=False)
"""Some updates wait for their step at any time."""
SPENDING = private(Privacy(clip=0.5, noise=4.0, epsilon=50.0), 3, deadline=None)
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


@pytest.mark.usefixtures("no_small_models")
def test_a_rotten_snapshot_is_not_published(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        grow(life, 20)
        life.store._open_db.execute(
            "UPDATE frames SET data = CAST(substr(data, 1, length(data) - 1) || x'7f' AS BLOB) WHERE span = 0"
        )
        life.store._open_db.commit()
    with rig(tmp_path) as life:
        assert len(list(life.shelf.everything())) > 1
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


# ------------------------------------------------------------------------------ any file, any way


def lived(directory: Path) -> None:
    """Two states of a store in mid-life, below `old` and `now`: all kinds of files, and SQLite's log has the newest."""
    with rig(directory / "store", BUFFERED) as life:
        names = Names(life.store)
        names.withdraw("gone")
        names.audit("withdrawn", "gone", "operator")
        for since in (0, 8):
            grow(life, 8, since)
            life.engine.checkpoint(life.core)
        life.store._open_db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for name, since in (("old", 16), ("now", 20)):
            grow(life, 4, since)
            shutil.copytree(directory / "store", directory / name)
            (directory / name / "store.db-shm").unlink()


@dataclass(frozen=True)
class Found:
    """What a store comes back as."""

    state: object
    withdrawn: bool
    frames: dict[str, bytes]
    """What is published, by topic, but for the announcement."""
    announced: tuple[bytes, frozenset[tuple[int, int]]]


def look(directory: Path) -> Found:
    life = Rig(directory, BUFFERED)
    try:
        life.engine.repair(life.core)
        withdrawn = Names(life.store).withdrawn("gone")
        posts = {post.topic: post.payload for post in life.shelf.everything()}
        announced = messages.decode_announcement(posts.pop(TOPICS.announcement()))
        offered = frozenset((each.version, each.span) for each in announced.frames)
        return Found(life.state, withdrawn, posts, (announced.digest, offered))
    finally:
        life.close()


@pytest.mark.parametrize(("kind", "times"), [("flip", 16), ("cut", 6), ("gone", 1), ("old", 1), ("swap", 4)])
def test_whatever_happens_to_a_file_the_store_is_the_same_or_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, times: int
) -> None:
    """Seen to fail on a store without a witness: 12 of 35 flips in SQLite's log lost updates without a word."""
    monkeypatch.setattr("midge.aggregator.store.journal.INLINE", 8)
    monkeypatch.setattr("midge.aggregator.store.journal.INLINE_TOGETHER", 10)
    lived(tmp_path)
    shutil.copytree(tmp_path / "now", tmp_path / "whole")
    right = look(tmp_path / "whole")
    chance, wrong, refused = Random(7), [], 0
    names = sorted(path.name for path in (tmp_path / "now").iterdir() if path.is_file() and path.stat().st_size)
    for name in names:
        for _ in range(times * (3 if name == "store.db" else 1)):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(tmp_path / "now", copy)
            if kind != "old" or (tmp_path / "old" / name).exists():
                strike(of(kind, chance, copy / name), copy, tmp_path / "old")
            caplog.clear()
            try:
                found = look(copy)
            except StoreError as error:
                refused += 1
                if name not in str(error) and "At stake: " not in str(error) and "names.key" not in str(error):
                    wrong.append(f"{name}: {error}")
                continue
            whole = all(right.frames.get(topic, data) == data for topic, data in found.frames.items())
            if replace(found, frames=right.frames, announced=right.announced) != right or not whole:
                wrong.append(f"{name}: another state, and {caplog.text or 'no word'}")
            elif found.announced != right.announced and not caplog.text:
                wrong.append(f"{name}: other frames on offer, and no word")
            elif found.announced[0] != right.announced[0] or not found.announced[1]:
                wrong.append(f"{name}: another announcement")
    assert not wrong
    assert refused


def test_the_count_at_stake_is_that_of_the_updates_that_are_gone(tmp_path: Path) -> None:
    """At whatever frame of SQLite's log a bit rots: all behind it is gone, and the witness knows how many that were."""
    lived(tmp_path)
    log = (tmp_path / "now" / "store.db-wal").read_bytes()
    with closing(sqlite3.connect(f"{(tmp_path / 'now' / 'store.db').as_uri()}?mode=ro", uri=True)) as db:
        ((newest,),) = db.execute("SELECT max(lsn) FROM journal")
    counts = set()
    for at in range(40, len(log), 4096):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "now", copy)
        (copy / "store.db-wal").write_bytes(log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :])
        with closing(sqlite3.connect(f"{(copy / 'store.db').as_uri()}?mode=ro", uri=True)) as db:
            ((left, last),) = db.execute("SELECT sum(kind = 'update'), max(lsn) FROM journal")
        if last == newest:  # only frames of the newest release are gone, which are made again
            with Store(copy):
                continue
        shutil.copy(tmp_path / "now" / "store.db-wal", tmp_path / "log")
        with pytest.raises(StoreError, match="At stake: ") as told, Store(copy):
            pass
        counts.add((left, int(str(told.value).partition("At stake: ")[2].split()[0])))
    assert len(counts) > 4
    assert len({left + at_stake for left, at_stake in counts}) == 1


def test_all_flips_of_a_checkpoint_are_told_and_it_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail without the row's digest: another model; without `repair`: reported at every start."""
    lived(tmp_path)
    newest = max(path.name for path in (tmp_path / "now").glob("checkpoint-*"))
    data = (tmp_path / "now" / newest).read_bytes()
    right = look(shutil.copytree(tmp_path / "now", tmp_path / "whole"))
    for at in range(0, len(data), len(data) // 40):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "now", copy)
        (copy / newest).write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        caplog.clear()
        assert look(copy) == right
        assert newest in caplog.text
        assert "replaces the damaged one" in caplog.text
        caplog.clear()
        assert look(copy) == right
        assert not caplog.text


def test_a_private_budget_that_is_rolled_back_is_refused(tmp_path: Path) -> None:
    """It is in the journal: seen to fail without the witness, and the budget was spent twice."""
    with rig(tmp_path / "store", SPENDING) as life:
        for device in "abc":
            life.send(device, 1, [1, 0, 0, 0])
        life.store._open_db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        shutil.copy(tmp_path / "store" / "store.db", tmp_path)
        for device in "abc":
            life.send(device, 2, [1, 0, 0, 0])
    shutil.copy(tmp_path / "store.db", tmp_path / "store")
    with pytest.raises(StoreError, match="At stake: 3 updates"), rig(tmp_path / "store", SPENDING):
        pass


def test_a_withdrawal_whose_entry_rots_is_refused(tmp_path: Path) -> None:
    """Seen to fail without a checksum in it: the device was let in again, and nothing said so."""
    with rig(tmp_path) as life:
        Names(life.store).withdraw("gone")
        with life.store.transaction() as db:
            ((entry,),) = db.execute("SELECT hash FROM forgotten").fetchall()
            db.execute("UPDATE forgotten SET hash = ?", (bytes([entry[0] ^ 1]) + entry[1:],))
        with pytest.raises(StoreError, match="would be let in again"):
            Names(life.store)
        assert any("withdrawn device" in said for part in verify(tmp_path) for said in part.found)
        with life.store.transaction() as db:
            db.execute("UPDATE forgotten SET hash = ?", (entry[:32],))  # as earlier versions wrote it
        names = Names(life.store)
        assert names.withdrawn("gone")
        assert names.readmit("gone")
        assert not Names(life.store).withdrawn("gone")
        Names(life.store).withdraw("another")
        with life.store.transaction() as db:
            db.execute("UPDATE forgotten SET hash = substr(hash, 1, 35) || x'00'")
    made = salvage(tmp_path, tmp_path / "new", "operator")
    assert any("withdraw these devices again" in said for said in made.loss.said)
    with rig(tmp_path / "new") as life:
        assert not Names(life.store).withdrawn("another")


@pytest.mark.usefixtures("no_small_models")
def test_a_snapshot_that_rots_in_a_running_store_is_made_again_when_it_is_asked_for(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        grow(life, 5)
        assert len(list(life.shelf.everything())) > 1
        life.store._open_db.execute("UPDATE frames SET data = CAST(data || x'00' AS BLOB) WHERE span = 0")
        life.store._open_db.commit()
        life.shelf._cached.clear()
        version = next(each.version for each in life.store.published() if each.span == 0)
        posts = list(life.shelf.again(version, 0, [0]))
        announced = next(
            messages.decode_announcement(each.payload) for each in posts if each.topic == TOPICS.announcement()
        )
        assert (life.core.version, 0) in {(each.version, each.span) for each in announced.frames}
        assert (version, 0) not in {(each.version, each.span) for each in announced.frames}
        assert life.store.frame(life.core.version, 0) is not None
        assert life.store.frame(version, 0) is None
