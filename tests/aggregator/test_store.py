"""What was promised is in the store: after any kill, and after damage either all of it or a refusal."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midge.aggregator.core.optimizers import adam, sgd
from midge.aggregator.core.presets import balanced, ca2fl, fedasync, fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.records import UpdateRecord
from midge.aggregator.core.staleness import constant, polynomial
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.model import Frame
from midge.aggregator.store.store import Checkpoint, Entry, Store, StoreError
from midge.wire.messages import Moment, Verdict
from midge.wire.moments import Moments
from midge.wire.schema import Schema
from tests.aggregator.rig import QuickStore, Rig, hello, journaled, rig, statistics

STRATEGIES = [
    fedasync(0.6, norm_limit=None, release_floor=2, form="delta", bounded=False),
    fedasync(0.5, form="mixing", max_staleness=6, norm_limit=None, release_floor=1),
    fedbuff(3, deadline=20, norm_limit=None, release_floor=1, bounded=False),
    balanced(fairness=3.0, serve_interval=7, norm_limit=None, release_floor=1),
    balanced(3, clip=1.5, combine="trimmed", trim=0.2, optimizer=sgd(0.5), release_every=2),
    balanced(3, combine="centred", staleness=polynomial(0.5, seconds=60), max_age=50, serve_decay=0.0),
    ca2fl(2, calibration=0.5, optimizer=adam(), even_steps=True, bounded=False),
    private(Privacy(clip=0.5, noise=4.0, epsilon=50.0), 3, deadline=20),
    fedbuff(
        3, 0.7, normalise="weight", deadline=None, norm_limit=3, release_floor=2, release_interval=9, bounded=False
    ),
]


def play(life: Rig, number: int) -> None:
    """The event of this number, always the same: updates of three devices, some late, some bad, some twice; time."""
    device, now = "abc"[number % 3], float(number)
    seq = life.core.hi(device, 1) + 1
    base = max(1, life.core.version - number * number % 5)
    delta = [float(np.sin(number + place)) for place in range(4)]
    if number % 11 == 5:
        message = life.update(device, seq, delta, base=base, codec="morse", body=b"")
    else:
        message = life.update(device, seq, delta, base=base, codec="int8:16" if number % 2 else "float32")
    batch = [message, message] if number % 7 == 3 else [message]
    if number % 5 == 0:
        batch.append(hello(device, first=seq))
    life.hear(*batch, now=now)


@example(STRATEGIES[1], 1, {0}, set())  # before the second release: version 0 is none that could be rebuilt
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(STRATEGIES),
    st.integers(1, 60),
    st.sets(st.integers(0, 59), max_size=6),
    st.sets(st.integers(0, 59), max_size=6),
)
def test_a_restart_anywhere_changes_no_bit(
    strategy: Strategy, length: int, restarts: set[int], checkpoints: set[int]
) -> None:
    """The twin is never restarted and never writes a checkpoint after its first; both draw the same noise."""
    with (
        patch("midge.aggregator.processor.secrets.token_bytes", lambda size: np.random.default_rng(7).bytes(size)),
        tempfile.TemporaryDirectory() as there,
        tempfile.TemporaryDirectory() as here,
    ):
        twin, life = Rig(Path(there), strategy).start(), Rig(Path(here), strategy).start()
        for number in range(length):
            if number in checkpoints:
                life.engine.checkpoint(life.core)
            if number in restarts:
                life.close()
                life = Rig(Path(here), strategy)  # not started: its timers are the one thing that starts over
                life.core._steps.since = twin.core._steps.since
                life.core._releases.released_at = twin.core._releases.released_at
                life.core._releases.served_at = twin.core._releases.served_at
                life.roster.devices |= twin.roster.devices  # statuses are retained, and come again
                life.processor = life.process_again()
            play(twin, number)
            play(life, number)
        assert life.state == twin.state
        assert min((f.version, f.span) for f in life.store.published() if f.span >= 0) >= (1, 0)
        for frame in twin.store.published():
            assert life.store.frame(frame.version, frame.span) == twin.store.frame(frame.version, frame.span)
        twin.close()
        life.close()


CHILD = """
import sys
from pathlib import Path
from tests.aggregator.rig import Rig
from tests.aggregator.test_store import STRATEGIES, play
life = Rig(Path(sys.argv[1]), STRATEGIES[int(sys.argv[2])]).start()
number = life.core.lsn
while True:
    play(life, number)
    number += 1
    if number % 40 == 0:
        life.engine.checkpoint(life.core)
    print(number, life.core.lsn, flush=True)
"""


@pytest.mark.parametrize("number", range(len(STRATEGIES)))
def test_a_killed_process_loses_nothing_that_it_said(tmp_path: Path, number: int) -> None:
    """SIGKILL at some moment of the ingest, three times over; then the store is what its own journal says."""
    for kill in range(3):
        command = [sys.executable, "-P", "-c", CHILD, str(tmp_path), str(number)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                said = int(line.split()[1])
                if int(line.split()[0]) >= 30 * (kill + 1) + 7 * number:
                    child.send_signal(signal.SIGKILL)
                    break
        with rig(tmp_path, STRATEGIES[number]) as life:
            assert life.core.lsn >= said
            again = from_the_journal_alone(tmp_path, STRATEGIES[number], life)
            assert again == life.state


def from_the_journal_alone(directory: Path, strategy: Strategy, life: Rig) -> tuple[bytes, dict[str, object]]:
    """What the oldest checkpoint that is left and the journal behind it come to."""
    with tempfile.TemporaryDirectory() as copy:
        for file in directory.iterdir():
            if file.name != "lock":
                (Path(copy) / file.name).write_bytes(file.read_bytes())
        checkpoints = sorted(Path(copy).glob("checkpoint-*"))
        for newer in checkpoints[1:]:
            newer.unlink()
        again = Rig(Path(copy), strategy)
        again.close()
        return again.model.digest(), journaled(again.core)


# ---------------------------------------------------------------- checkpoints


def grow(life: Rig, updates: int, since: int = 0) -> None:
    for number in range(since, since + updates):
        play(life, number)


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        for since in (0, 10, 20):
            grow(life, 10, since)
            life.engine.checkpoint(life.core)
        grow(life, 5, 30)
        state = life.state
    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 3
    checkpoints[-1].write_bytes(checkpoints[-1].read_bytes()[:-1])
    checkpoints[-2].unlink()
    with rig(tmp_path) as life:
        assert life.state == state
    checkpoints[0].write_bytes(b"")
    with pytest.raises(StoreError, match="No checkpoint"), rig(tmp_path):
        pass


@pytest.mark.parametrize(
    "name", [".checkpoint-000000000099.safetensors.tmp", "checkpoint-000000000099.safetensors.tmp"]
)
def test_a_checkpoint_that_was_cut_short_is_removed_at_the_next_start(tmp_path: Path, name: str) -> None:
    with rig(tmp_path) as life:
        grow(life, 5)
        state = life.state
    (tmp_path / name).write_bytes(b"half a checkpoint")
    with rig(tmp_path) as life:
        assert life.state == state
        assert not (tmp_path / name).exists()


def test_updates_in_the_buffer_outlive_many_checkpoints(tmp_path: Path) -> None:
    strategy = fedbuff(4, deadline=None, norm_limit=None, release_floor=1, staleness=constant(), bounded=False)
    with rig(tmp_path, strategy) as life:
        for seq in range(1, 4):
            life.send("a", seq, [4, 0, 0, 0])
        for turn in range(6):  # refusals, so that the journal grows
            life.send("b", turn + 1, [1, 0, 0, 0], base=99)
            life.engine.checkpoint(life.core)
        assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    with rig(tmp_path, strategy) as life:
        life.send("c", 1, [4, 0, 0, 0])
        np.testing.assert_array_equal(life.model.x, [2, 0, 0, 0])


def test_the_journal_is_pruned(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        for since in (0, 20, 40, 60):
            grow(life, 20, since)
            life.engine.checkpoint(life.core)
        (first,) = life.store._open_db.execute("SELECT min(lsn) FROM journal WHERE body IS NOT NULL").fetchone()
        assert first > 20


def test_records_stay_for_a_while_without_their_bodies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midge.aggregator.store.store.KEEP_RECORDS", 50)
    with rig(tmp_path) as life:
        for since in range(0, 200, 20):
            grow(life, 20, since)
            life.engine.checkpoint(life.core)
        (first, count) = life.store._open_db.execute("SELECT min(lsn), count(*) FROM journal").fetchone()
        assert 50 <= count < 400
        assert first > 100


def test_records_without_their_bodies_take_the_space_of_their_own(tmp_path: Path) -> None:
    """Bodies that were set to NULL left their space free, and no later record filled it: 821 bytes for one of 210."""
    schema, body = Schema.of({"x": np.zeros(4, np.float32)}), bytes(1000)
    with QuickStore(tmp_path) as store:
        store.create(schema)
        for newest in range(20, 4001, 20):
            verdict, codec = Verdict.ACCEPTED.value, "int8:256"
            store.commit(
                Entry(UpdateRecord(lsn, "a", 1, lsn, verdict, codec=codec), body)
                for lsn in range(newest - 19, newest + 1)
            )
            if newest % 200 == 0:
                store.checkpoint(Checkpoint(newest, {}, {}, {}), oldest_body=newest - 100, oldest_base=0)
        ((kept, rows),) = store.query("SELECT sum(length(record)), count(*) FROM journal")
        ((pages, free),) = store.query(
            "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count"
        )
        assert rows == 4000
        assert (pages - free) * 4096 < 2 * kept + 1000 * 1200, "the newest thousand still have their bodies"
        assert [entry.record.lsn for entry in store.entries(3999)] == [4000]


def test_statistics_outlive_a_restart_before_they_are_pooled(tmp_path: Path) -> None:
    parameters = {"x": np.zeros(2, np.float32), "i_mean": np.zeros(2, np.float32), "i_scale": np.ones(2, np.float32)}
    arguments: dict[str, Any] = {
        "parameters": parameters,
        "roles": {"i_mean": "frozen", "i_scale": "frozen"},
        "moments": (Moment(name="i", channels=2),),
    }
    with rig(tmp_path, **arguments) as life:
        life.hear(statistics("a", life.core.lineage, i=Moments.of([[1, 3e20], [3, 3e20]] * 10)))
        life.engine.checkpoint(life.core)
        life.engine.checkpoint(life.core)
    with rig(tmp_path, **arguments) as life:
        life.hear(statistics("b", life.core.lineage, i=Moments.of([[5, -3e20], [7, -3e20]] * 10)))
        assert life.core.version == 1
        tensors = life.model.state.parameters()
        np.testing.assert_allclose(np.asarray(tensors["i_mean"], np.float64), [4, 0])
        np.testing.assert_allclose(np.asarray(tensors["i_scale"], np.float64), [np.sqrt(5), 3e20], rtol=1e-6)
        state = life.state
    with rig(tmp_path, **arguments) as life:
        assert life.state == state


# --------------------------------------------------------------------- damage


@pytest.mark.parametrize("column", ["record", "body"])
def test_a_damaged_record_is_not_replayed(tmp_path: Path, column: str) -> None:
    with rig(tmp_path) as life:
        grow(life, 10)
        life.store._open_db.execute(f"UPDATE journal SET {column} = x'00' WHERE lsn = 6")
        life.store._open_db.commit()
    with pytest.raises(StoreError, match="damaged at record"), rig(tmp_path):
        pass


def test_a_missing_record_is_not_passed_over(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        grow(life, 10)
        life.store._open_db.execute("DELETE FROM journal WHERE lsn = 6")
        life.store._open_db.commit()
    with pytest.raises(StoreError, match="damaged at record 6"), rig(tmp_path):
        pass


def test_a_damaged_update_of_before_the_checkpoint_is_not_applied(tmp_path: Path) -> None:
    strategy = fedbuff(2, deadline=None, release_floor=1, bounded=False)
    with rig(tmp_path, strategy) as life:
        life.send("a", 1, [1, 0, 0, 0])
        life.engine.checkpoint(life.core)
        life.store._open_db.execute("UPDATE journal SET body = x'00000000000000000000000000000041'")
        life.store._open_db.commit()
    # At the start, and not in the middle of the work that needs it.
    with pytest.raises(StoreError, match=r"damaged at record 2.* 1 update that was receipted"), rig(tmp_path, strategy):
        pass


def test_a_record_of_a_later_version_of_midge_is_named(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        life.store._open_db.execute("UPDATE journal SET kind = 'prophecy'")
        life.store._open_db.commit()
    with pytest.raises(StoreError, match="start with the version that wrote it"), rig(tmp_path):
        pass


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"shopping list\n" * 100)
    with pytest.raises(StoreError, match=r"store\.db cannot be read"), Store(tmp_path):
        pass


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        life.store.set_constant("format", 99)
        life.store.set_constant("midge", "47.11")
    with pytest.raises(StoreError, match=r"has format 99; .* start Midge 47\.11, which wrote it"), Store(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="name a directory that can"), Store(tmp_path / "file" / "store"):
        pass


def test_a_second_aggregator_is_kept_out(tmp_path: Path) -> None:
    with rig(tmp_path), pytest.raises(StoreError, match="in use by another aggregator"), Store(tmp_path):
        pass
    with Store(tmp_path):
        pass


# ------------------------------------------------------------- when writing fails


class FullDisk(QuickStore):
    """Fails like a disk that is full, when it is told to."""

    full = False

    def commit(self, entries: Sequence[object]) -> None:  # type: ignore[override]
        if self.full:
            self._open_db.execute("PRAGMA max_page_count=1")
        super().commit(entries)  # type: ignore[arg-type]


def test_no_receipt_leaves_before_its_record_is_written(tmp_path: Path) -> None:
    store = FullDisk(tmp_path)
    life = Rig(tmp_path, store=store, parameters={"x": np.zeros(5000, np.float32)}).start()
    assert life.send("a", 1, np.ones(5000, np.float32)).verdict is Verdict.ACCEPTED
    state, posts = life.state, len(life.posts)
    store.full = True
    with pytest.raises(StoreError, match="is full"):
        life.hear(life.update("a", 2, np.ones(5000, np.float32)))
    assert len(life.posts) == posts, "a receipt left before its record was durable"
    life.close()
    with rig(tmp_path, parameters={"x": np.zeros(5000, np.float32)}) as life:
        assert life.state == state
        assert life.send("a", 2, np.ones(5000, np.float32)).repeat is False


def test_a_frame_that_is_there_stays(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        life.store.add_frames([(Frame(1, 0, b"other"), 1)])
        assert life.store.frame(1, 0) != b"other"
