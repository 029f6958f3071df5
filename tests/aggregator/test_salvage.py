"""`midge store salvage`: what a damaged store still holds, and exact words on the rest."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.store.consistency import WITNESS
from midge.aggregator.store.device_erasure import Names
from midge.aggregator.store.errors import StoreDamaged, StoreError, StoreInUse
from midge.aggregator.store.evidence import gather
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.replaying import replay
from midge.aggregator.store.salvage import plan, salvage
from midge.aggregator.store.store import Store
from midge.wire.messages import Verdict
from tests.aggregator.rig import rig
from tests.aggregator.test_backup import listed, wide, wide_rig

UPDATES = 20


class Books:
    """What a store was at each record, and a copy of its files as a kill leaves them."""

    def __init__(self, directory: Path, checkpoints: tuple[int, ...] = (), folded: int = 0) -> None:
        self.digests: dict[int, str] = {}
        self.updates: dict[int, str] = {}
        """By lsn, the device of each update."""
        with rig(directory / "store") as life:
            for number in range(1, UPDATES + 1):
                life.send("abc"[number % 3], number, [float(np.sin(number + place)) for place in range(4)])
                self.digests[life.core.lsn] = life.model.digest().hex()
                if number in checkpoints:
                    life.engine.checkpoint(life.core)
                if number == folded:
                    life.store._open_db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            shutil.copytree(directory / "store", directory / "copy")
            self.lsn = life.core.lsn
            for (packed,) in life.store.query("SELECT record FROM journal WHERE kind = 'update'"):
                record = rec.unpack("update", packed)
                assert isinstance(record, rec.UpdateRecord)
                self.updates[record.lsn] = record.device
        self.copy = directory / "copy"
        (self.copy / "store.db-shm").unlink()

    def behind(self, end: int) -> dict[str, int]:
        """By device, the updates behind a record."""
        lost = [device for lsn, device in self.updates.items() if lsn > end]
        return {device: lost.count(device) for device in sorted(set(lost))}


def flipped(path: Path, place: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 16
    path.write_bytes(data)


def test_of_a_whole_store_nothing_is_lost(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(7,))
    before = listed(books.copy)
    found = plan(books.copy)
    assert listed(books.copy) == before
    assert (found.end, found.loss.records, found.loss.updates, found.loss.exact) == (books.lsn, 0, 0, True)
    assert found.whole == books.digests[books.lsn]


@pytest.mark.parametrize("checkpoints", [(), (4, 13)])
def test_after_a_flip_in_the_log_all_that_is_proven_comes_back_and_the_rest_is_counted(
    tmp_path: Path, checkpoints: tuple[int, ...]
) -> None:
    """SQLite believes the log up to the flip, and deletes it: up to all of these updates were lost."""
    books = Books(tmp_path, checkpoints, folded=5)
    log = books.copy / "store.db-wal"
    kept = log.read_bytes()
    for place in np.linspace(0.0, 0.99, 16):
        flipped(log, place)
        before, new = listed(books.copy), tmp_path / f"new-{place}"
        found = salvage(books.copy, new, "who")
        assert listed(books.copy) == before
        assert found.loss.exact
        assert found.loss.updates == sum(books.behind(found.end).values())
        behind = books.behind(found.end)
        assert all(count <= behind[device] for device, count in found.loss.devices.items())
        with ReadOnlyStore(new) as store:
            assert {way.whole for way in replay(store)} == {found.whole}
            assert store.newest_lsn() == found.end
        if found.end in books.digests:
            assert found.whole == books.digests[found.end]
        if place > 0.3:
            assert found.end > 12, "most of it"
        log.write_bytes(kept)


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_log_that_is_cut_or_gone_is_counted_by_the_witness(tmp_path: Path, how: str) -> None:
    books = Books(tmp_path, folded=5)
    log = books.copy / "store.db-wal"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 5] if how == "cut" else b"")
    found = plan(books.copy)
    assert found.end < books.lsn
    assert found.loss.exact
    assert (found.loss.first, found.loss.last) == (found.end + 1, books.lsn)
    assert found.loss.updates == sum(books.behind(found.end).values()) > 0
    assert not found.loss.devices
    (books.copy / WITNESS).unlink()
    again = plan(books.copy)
    assert again.loss.records == 0, "without a witness nothing tells of it"


def test_a_checkpoint_that_the_journal_does_not_reach_saves_what_is_in_it(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(18,), folded=5)
    (books.copy / "store.db-wal").write_bytes(b"")
    found = plan(books.copy)
    lost = books.behind(found.end)
    assert found.end == found.kept.lsn
    assert sum(lost.values()) == 2 and found.loss.records == books.lsn - found.end
    assert (found.loss.updates, found.loss.exact) == (2, True)
    assert found.whole == books.digests[found.end]
    assert "no entry in the database" in found.loss.said[0]


def test_a_database_that_is_gone_leaves_its_newest_checkpoint(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(11, 18))
    for name in ("store.db", "store.db-wal"):
        (books.copy / name).unlink()
    found = salvage(books.copy, tmp_path / "new", "who")
    assert (found.loss.updates, found.loss.exact) == (2, True)
    assert found.whole == books.digests[found.end]
    with ReadOnlyStore(tmp_path / "store") as before, ReadOnlyStore(tmp_path / "new") as after:
        assert (after.lineage, after.schema) == (before.lineage, before.schema)


def test_a_record_that_rots_ends_the_journal_before_it(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(3,), folded=UPDATES)
    (lsn, *_) = [lsn for lsn in books.updates if lsn > 30]
    with sqlite3.connect(books.copy / "store.db") as db:
        db.execute("UPDATE journal SET crc = crc + 1 WHERE lsn = ?", (lsn,))
    db.close()
    found = plan(books.copy)
    assert found.end == lsn - 1
    assert found.loss.devices == books.behind(found.end)
    assert (found.loss.updates, found.loss.exact) == (sum(found.loss.devices.values()), True)


def test_an_older_checkpoint_is_taken_if_the_newest_rotted(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(3, 9, 15))
    for file in sorted(books.copy.glob("checkpoint-*"))[1:]:
        flipped(file, 0.5)
    found = plan(books.copy)
    assert (found.end, found.loss.records) == (books.lsn, 0)
    assert found.whole == books.digests[books.lsn]


def test_a_body_that_rots_in_its_segment_ends_the_journal_unless_its_step_is_in_a_checkpoint(tmp_path: Path) -> None:
    with wide_rig(tmp_path / "store") as life:
        for seq in range(1, 4):
            life.send("a", seq, np.full(9000, seq, np.float32))
        early = life.core.lsn
        life.engine.checkpoint(life.core)
        for seq in range(4, 7):
            life.send("a", seq, np.full(9000, seq, np.float32))
    (segment,) = (tmp_path / "store").glob("bodies-*")
    kept = segment.read_bytes()
    flipped(segment, 0.1)
    found = salvage(tmp_path / "store", tmp_path / "early", "who")
    assert found.loss.records == 0
    assert main(["store", "backup", str(tmp_path / "early"), str(tmp_path / "backup")]) == 0
    segment.write_bytes(kept)
    flipped(segment, 0.75)
    found = salvage(tmp_path / "store", tmp_path / "late", "who")
    assert found.end > early and found.loss.devices == {"a": 2}
    with ReadOnlyStore(tmp_path / "late") as store:
        assert {way.whole for way in replay(store)} == {found.whole}


def test_pages_of_the_database_that_rot_cost_what_is_on_them(tmp_path: Path) -> None:
    books = Books(tmp_path, checkpoints=(4,), folded=UPDATES)
    path = books.copy / "store.db"
    pages = path.stat().st_size // 4096
    for page in range(pages):
        data = bytearray(path.read_bytes())
        spoilt = bytearray(data)
        spoilt[page * 4096 + 100 : page * 4096 + 1100] = bytes(1000)
        path.write_bytes(spoilt)
        try:
            found = plan(books.copy)
        except StoreDamaged:
            assert page < 5, "of the schema, or the metadata"
        else:
            assert found.loss.updates >= sum(books.behind(found.end).values())
            if found.end in books.digests:
                assert found.whole == books.digests[found.end]
        path.write_bytes(data)


def test_nothing_is_made_without_a_word_of_the_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = Books(tmp_path, folded=5)
    (books.copy / "store.db-wal").unlink()
    target = tmp_path / "new"
    with pytest.raises(StoreError, match="store salvage"), Store(books.copy):
        pass
    assert main(["store", "salvage", str(books.copy), str(target)]) == 1
    said = capsys.readouterr().out
    assert "--accept-loss" in said and "Lost: records" in said
    assert not target.exists()
    assert main(["store", "salvage", str(books.copy), str(target), "--accept-loss", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["made"] and found["lost"]["updates"] == sum(books.behind(found["end"]).values())
    assert main(["store", "salvage", str(books.copy), str(target), "--accept-loss"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["store", "salvage", str(books.copy), str(books.copy), "--accept-loss"]) == 2
    with rig(tmp_path / "store"), pytest.raises(StoreInUse):
        plan(tmp_path / "store")
    for file in books.copy.glob("checkpoint-*"):
        file.unlink()
    assert main(["store", "salvage", str(books.copy), str(tmp_path / "other"), "--json"]) == 1


def test_devices_go_on_with_a_salvaged_store_and_what_was_lost_is_not_counted(tmp_path: Path) -> None:
    from tests.aggregator.test_full_disk import Life

    books = Books(tmp_path, folded=5)
    (books.copy / "store.db-wal").unlink()
    found = salvage(books.copy, tmp_path / "new", "who")
    life = Life(Store(tmp_path / "new"))
    life.federation.begin(0.0)
    life.look()
    assert life.core.generation == found.generation + 1
    assert life.core.version > found.version
    seq = UPDATES + 1
    settled = life.send("abc"[seq % 3], seq, [1, 0, 0, 0], first=seq)
    assert settled.verdict is Verdict.ACCEPTED
    old = life.send("b", seq + 1, [1, 0, 0, 0], generation=found.generation, base=found.version)
    assert old.verdict in {Verdict.STALE, Verdict.UNKNOWN_BASE}
    life.federation.close()
    assert not gather(tmp_path / "new").unsound


def test_names_and_withdrawals_stay_known(tmp_path: Path) -> None:
    from midge.aggregator.store.device_erasure import Names

    with wide_rig(tmp_path / "store") as life:
        wide(life, 1)
        names = Names(life.store)
        names.withdraw("gone")
        names.audit("withdrawn", "gone", "who")
    salvage(tmp_path / "store", tmp_path / "new", "who")
    with Store(tmp_path / "new") as store:
        assert Names(store).withdrawn("gone")
    assert main(["audit", "verify", str(tmp_path / "new")]) == 0
    db = sqlite3.connect(tmp_path / "store" / "store.db")
    db.execute("UPDATE forgotten SET hash = x'00' || substr(hash, 2)")
    db.commit()
    db.close()
    found = salvage(tmp_path / "store", tmp_path / "rotten", "who")
    assert "withdraw these devices again" in found.loss.said[0]
    with Store(tmp_path / "rotten") as store:
        assert not Names(store).withdrawn("gone")
    (tmp_path / "store" / "names.key").unlink()
    found = salvage(tmp_path / "store", tmp_path / "newer", "who")
    assert "withdraw them again" in found.loss.said[0]
    with Store(tmp_path / "newer") as store:
        assert not Names(store).withdrawn("gone")


def test_the_stores_of_shards_are_kept(tmp_path: Path) -> None:
    """Seen to fail without: new shards would accept the devices that were forgotten."""
    store, target = tmp_path / "store", tmp_path / "new"
    with rig(store) as life:
        life.send("shard-0", 1, [1.0] * 4)
    with wide_rig(store / "shards" / "shard-0") as shard:
        for seq in range(1, 4):
            wide(shard, seq)
        Names(shard.store).withdraw("gone")
        with pytest.raises(StoreInUse, match="in use by a shard"):
            salvage(store, target, "who")
        assert not target.exists()
    kept = {name: data for name, data in listed(store / "shards").items() if not name.endswith("lock")}
    salvage(store, target, "who")
    assert listed(target / "shards") == kept
    with Store(target / "shards" / "shard-0") as made:
        assert Names(made).withdrawn("gone")
