"""The ledger of releases: what a device can prove with it, and what it detects."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core import records as rec
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.store.journal import checksum
from midge.aggregator.store.reading import ReadOnlyStore
from midge.aggregator.store.release_audit import audit
from midge.aggregator.store.store import Store
from midge.wire import frames, merkle, messages
from midge.wire.ledger import Head, TakenUpdate, Unproven, check
from midge.wire.messages import Announcement
from midge.wire.messages.proofs import Proof, Prove
from tests.aggregator.rig import EVERYTHING_COUNTS, TOPICS, Rig, rig
from tests.aggregator.test_counterfactual import MIXING, THREES, live
from tests.aggregator.test_removed_log import NO_LOG


def announced(life: Rig) -> Announcement:
    """The newest announcement."""
    payload = next(post.payload for post in reversed(life.posts) if post.topic == TOPICS.announcement())
    return messages.decode_announcement(payload)


def head_of(life: Rig) -> Head:
    head = Head.unpacked(announced(life).ledger)
    assert head is not None
    return head


def accepted(store: Store) -> list[rec.UpdateRecord]:
    """The accepted updates in the journal."""
    rows = store.query("SELECT record FROM journal WHERE kind = 'update' ORDER BY lsn")
    found = [rec.unpack("update", packed) for (packed,) in rows]
    return [one for one in found if isinstance(one, rec.UpdateRecord) and one.verdict == "accepted"]


def proved(life: Rig, update: rec.UpdateRecord, earlier: Head | None = None) -> Proof:
    """What the log answers to the device of an update."""
    entries = life.store.ledger.head.size
    asked = Prove(outbox=update.outbox, seq=update.seq, entries=entries, earlier=earlier.size if earlier else 0)
    return life.store.ledger.prove(update.device, asked)


def taken(update: rec.UpdateRecord, proof: Proof) -> TakenUpdate:
    """The update as its device knows it, and as the proof says that it counted."""
    return TakenUpdate(
        update.outbox, update.seq, update.body, proof.generation, proof.base, proof.version, proof.weight
    )


@pytest.mark.parametrize("strategy", [EVERYTHING_COUNTS, THREES, MIXING], ids=["single", "buffered", "mixing"])
def test_every_update_of_a_release_is_proved_by_the_announced_root(tmp_path: Path, strategy: Strategy) -> None:
    with rig(tmp_path, strategy) as life:
        heads = [head_of(life)]
        for number in range(1, 5):
            for name in "abc":
                life.send(name, number, [number, 0, 0, 1], base=life.core.version)
            heads.append(head_of(life))
        head = heads[-1]
        assert head.size == len(accepted(life.store)) + life.core.version
        for update in accepted(life.store):
            for earlier in (each for each in heads if each.size):
                proof = proved(life, update, earlier)
                assert not proof.why
                released = check(proof, head, taken(update, proof), earlier)
                assert released.version == proof.version
        digest = announced(life).digest
        last = accepted(life.store)[-1]
        assert proved(life, last).digest == digest


def test_a_proof_fails_for_another_update_and_for_a_changed_history(tmp_path: Path) -> None:
    """A log that left out the body, or the weight, or the first entries would prove what did not happen."""
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        earlier = head_of(life)
        life.send("b", 1, [2, 0, 0, 0], base=life.core.version)
        head, update = head_of(life), accepted(life.store)[0]
        proof = proved(life, update, earlier)
        true = taken(update, proof)
        check(proof, head, true, earlier)
        for wrong in (
            replace(true, body=b"12345678"),
            replace(true, weight=true.weight / 2),
            replace(true, seq=2),
            replace(true, outbox=true.outbox + 1),
            replace(true, version=true.version + 1),
        ):
            with pytest.raises(Unproven, match="not in the log"):
                check(proof, head, wrong, earlier)
        with pytest.raises(Unproven, match="history was changed"):
            check(proof, head, true, Head(earlier.size, bytes(32)))
        with pytest.raises(Unproven, match="release is not in"):
            check(proof.model_copy(update={"digest": bytes(16)}), head, true, earlier)
        with pytest.raises(Unproven, match="not among those"):
            check(proof.model_copy(update={"updates": 0}), head, true, earlier)


def test_a_device_asks_over_the_broker_and_is_answered_alone(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        update, head = accepted(life.store)[0], head_of(life)
        life.posts.clear()
        life.hear((TOPICS.update("a"), frames.encode(Prove(outbox=update.outbox, seq=1, entries=head.size))))
        (answer,) = life.posts
        assert answer.topic == TOPICS.receipt("a") and not answer.retain
        proof, _ = messages.decode(Proof, answer.payload)
        assert check(proof, head, taken(update, proof)).version == life.core.version
        life.posts.clear()
        life.hear((TOPICS.update("a"), frames.encode(Prove(outbox=update.outbox, seq=9, entries=head.size))))
        assert "no release" in messages.decode(Proof, life.posts[0].payload)[0].why


def test_hashes_of_neighbours_say_nothing_of_them(tmp_path: Path) -> None:
    """Without a salt, whoever knows a neighbour's outbox finds its entry among the siblings by trying."""
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.send("b", 1, [2, 0, 0, 0], base=life.core.version)
        first, second = accepted(life.store)
        asked = Prove(outbox=second.outbox, seq=second.seq, entries=life.store.ledger.head.size)
        assert life.store.ledger.prove("a", asked.model_copy(update={"seq": 2})).why  # only b gets b's
        one, two = proved(life, first), proved(life, second)
        assert one.salt != two.salt and len(one.salt) == 16
        for salt in (b"", one.salt, bytes(16)):
            guess = merkle.leaf_hash(taken(second, two).entry(salt))
            assert guess not in {*one.path, *one.release_path}


def test_a_power_cut_between_a_release_and_its_entries_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig(tmp_path) as life:
        life.send("a", 1, [1, 0, 0, 0])
        before = life.store.ledger.head
        monkeypatch.setattr(life.store.ledger, "write", lambda db: None)  # the process ends before this write
        life.send("b", 1, [2, 0, 0, 0], base=life.core.version)
        version = life.core.version
    with rig(tmp_path) as life:
        assert life.core.version == version
        assert life.store.ledger.head.size == before.size + 2
        update = accepted(life.store)[-1]
        proof = proved(life, update, before)
        check(proof, life.store.ledger.head, taken(update, proof), before)


def test_a_store_of_an_earlier_midge_begins_its_log_with_the_next_release(tmp_path: Path) -> None:
    life = live(tmp_path, THREES)
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.executescript(NO_LOG)
    with ReadOnlyStore(tmp_path) as store:
        found = list(audit(store, life.core.version))
        assert not found[0].wrong and found[0].log == ""
    with rig(tmp_path, THREES) as later:
        assert later.store.ledger.head.size <= 4 * later.core.version
        size = later.store.ledger.head.size
        for name in "abc":
            later.send(name, 99, [1, 1, 0, 0], base=later.core.version, first=99)
        assert later.store.ledger.head.size == size + 4


def flip(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "store.db")) as db:
        assert db.execute(statement).rowcount == 1
        db.commit()


_OTHER = "substr(hash, 1, 7) || x'00' || substr(hash, 9)"


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE ledger_nodes SET hash = CAST({_OTHER} AS BLOB) WHERE level = 0 AND place = 4",
        f"UPDATE ledger_nodes SET hash = CAST({_OTHER} AS BLOB) WHERE level = 2 AND place = 0",
        "UPDATE ledger SET weight = 0.5 WHERE place = 3 AND tag != x''",
        "DELETE FROM ledger_nodes WHERE level = 0 AND place = 3",
    ],
    ids=["leaf", "node", "weight", "missing"],
)
def test_an_audit_finds_a_changed_log(tmp_path: Path, statement: str) -> None:
    life = live(tmp_path, EVERYTHING_COUNTS)
    with ReadOnlyStore(tmp_path) as store:
        found = list(audit(store, 2))
        assert not any(one.wrong for one in found) and all(any("log of" in each for each in one.same) for one in found)
        assert found[-1].log == str(head_of(life))
    flip(tmp_path, statement)
    with ReadOnlyStore(tmp_path) as store:
        wrong = [each for one in audit(store, 2) for each in one.wrong]
    assert wrong and all("log of" in each for each in wrong)


def test_an_audit_finds_a_changed_journal(tmp_path: Path) -> None:
    """An update that is exchanged for another one, with its checksum, is not the one that the log has."""
    live(tmp_path, EVERYTHING_COUNTS)
    with rig(tmp_path) as life:
        update = accepted(life.store)[2]
        with life.store.transaction() as db:
            body = life.store.body(update.lsn)
            life.store.rewrite(db, replace(update, body=b"87654321"))
            packed = rec.pack(replace(update, body=b"87654321"))
            db.execute("UPDATE journal SET body = ?, crc = ? WHERE lsn = ?", (body, checksum(packed, body), update.lsn))
    with ReadOnlyStore(tmp_path) as store:
        wrong = [each for one in audit(store, 2) for each in one.wrong]
    assert len(wrong) == 1 and "log of" in wrong[0]


def test_a_damaged_log_begins_again_and_its_devices_see_it(tmp_path: Path) -> None:
    live(tmp_path, EVERYTHING_COUNTS)
    with ReadOnlyStore(tmp_path) as store:
        store.ledger.load()
        before = store.ledger.head
    flip(
        tmp_path, f"UPDATE ledger_nodes SET hash = CAST({_OTHER} AS BLOB) WHERE level = 0 AND place = {before.size - 1}"
    )
    with rig(tmp_path) as life:
        assert life.store.ledger.head.size == 0
        for number in range(before.size + 1):
            life.send("z", number + 1, [1, 0, 0, 0], base=life.core.version)
        head, update = life.store.ledger.head, accepted(life.store)[-1]
        assert head.size > before.size
        proof = proved(life, update, before)
        check(proof, head, taken(update, proof))
        with pytest.raises(Unproven, match="does not go on"):
            check(proof, head, taken(update, proof), before)


def test_what_is_pruned_leaves_proofs_of_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rig(tmp_path) as life:
        earlier: list[Head] = []
        for number in range(1, 30):
            life.send("a", number, [1, 0, 0, 0], base=life.core.version)
            earlier.append(life.store.ledger.head)
        monkeypatch.setattr("midge.aggregator.store.store.KEEP_RECORDS", 30)
        nodes = life.store.query("SELECT count(*) FROM ledger_nodes")[0][0]
        for number in range(30, 34):  # the oldest checkpoint is forgotten, and with it what only it needed
            life.send("a", number, [1, 0, 0, 0], base=life.core.version)
            earlier.append(life.store.ledger.head)
            life.engine.checkpoint(life.core)
        assert life.store.query("SELECT count(*) FROM ledger_nodes")[0][0] < nodes
        head = life.store.ledger.head
        assert head == earlier[-1]
        for number, since in ((-1, earlier[-5]), (-9, earlier[-9])):
            update = accepted(life.store)[number]
            proof = proved(life, update, since)
            check(proof, head, taken(update, proof), since)
        gone = life.store.ledger.prove("a", Prove(outbox=1, seq=1, entries=head.size))
        assert "which are kept, has this update" in gone.why
        life.send("a", 34, [1, 0, 0, 0], base=life.core.version)
    with rig(tmp_path) as life:
        assert life.store.ledger.head.size == head.size + 2


def test_updates_that_only_wait_are_in_no_release(tmp_path: Path) -> None:
    """The first release of a generation publishes no device's work: what was stepped before is in the next one."""
    with rig(tmp_path, replace(EVERYTHING_COUNTS, release_floor=2)) as life:
        life.send("a", 1, [1, 0, 0, 0])
        size = life.store.ledger.head.size
        life.processor.shell.carry_out(life.core.begin_generation(1, life.core.version, 0.0), 0.0)
        assert life.store.ledger.head.size == size + 1
        life.send("b", 1, [1, 0, 0, 0], base=life.core.version, generation=life.core.generation)
        assert life.store.ledger.head.size == size + 4
        update = accepted(life.store)[0]
        proof = proved(life, update)
        assert proof.version == life.core.version and proof.updates == 2
        assert np.isfinite(proof.weight)
