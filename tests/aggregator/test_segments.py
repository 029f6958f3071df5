"""Bodies beside the journal: there once they are written, gone where the journal does not know them or needs them."""

import os
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core.events import Decode, Event
from midge.aggregator.store import segments
from midge.aggregator.store.checkpoint_table import KEEP_CHECKPOINTS
from midge.aggregator.store.segments import Segments
from midge.aggregator.store.store import Store, StoreError
from midge.wire.messages import Verdict
from tests.aggregator.rig import Rig, rig
from tests.aggregator.test_store import play

SIZE = 20_000
MODEL = {"x": np.zeros(SIZE, np.float32)}


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("bodies-*"))


def feed(life: Rig, count: int) -> None:
    for _ in range(count):
        seq = life.core.hi("a", 1) + 1
        assert life.send("a", seq, np.full(SIZE, seq, np.float32)).verdict is Verdict.ACCEPTED


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    bodies = [os.urandom(size) for size in (1, 5000, 0, 700)] * 300  # more than are written at once
    store = Segments(tmp_path)
    places = store.write(7, bodies)
    assert [store.read(*place, len(body)) for place, body in zip(places, bodies, strict=True)] == bodies
    assert store.read(7, places[-1][1] + 1, 700) is None
    assert store.read(8, 0, 1) is None
    store.close()


def test_a_large_body_lies_beside_the_database_and_survives(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        feed(life, 3)
        state = life.state
        assert len(files(tmp_path)) == 1
        assert life.store._open_db.execute("SELECT count(*) FROM journal WHERE body IS NOT NULL").fetchone() == (0,)
    with rig(tmp_path, parameters=MODEL) as life:
        assert life.state == state


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\1" + data[1:]])
def test_a_damaged_body_is_not_replayed(tmp_path: Path, damage: object) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        feed(life, 1)
    (name,) = files(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(StoreError, match="damaged at record"), rig(tmp_path, parameters=MODEL):
        pass


def test_what_the_journal_does_not_know_is_cut_off(tmp_path: Path) -> None:
    """As after a crash between the two syncs: first behind other bodies, then in a file of its own."""
    with rig(tmp_path, parameters=MODEL) as life:
        feed(life, 1)
    (name,) = files(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"orphan")
    (tmp_path / "bodies-000000000099").write_bytes(b"orphan")
    with rig(tmp_path, parameters=MODEL) as life:
        assert files(tmp_path) == [name]
        assert (tmp_path / name).stat().st_size == 4 * SIZE
        feed(life, 1)


def test_what_could_not_be_committed_is_taken_back(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        feed(life, 1)
        life.store._open_db.execute("PRAGMA max_page_count=1")
        with pytest.raises(StoreError, match="is full"):
            feed(life, 500)
        (name,) = files(tmp_path)
        known = life.store.query("SELECT max(place + size) FROM journal")[0][0]
        assert (tmp_path / name).stat().st_size == known


def test_files_go_when_a_checkpoint_has_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LONGEST", 8 * SIZE)
    with rig(tmp_path, parameters=MODEL) as life:
        for _ in range(8):
            feed(life, 4)
            life.engine.checkpoint(life.core)
            assert len(files(tmp_path)) <= 2 * KEEP_CHECKPOINTS + 2
        state = life.state
    with rig(tmp_path, parameters=MODEL) as life:
        assert life.state == state


def test_a_store_from_before_there_were_segments_is_opened(tmp_path: Path) -> None:
    with rig(tmp_path) as life:
        for number in range(10):
            play(life, number)
        state = life.state
        life.store.set_constant("format", 1)
        for column in ("segment", "place", "size"):
            life.store._open_db.execute(f"ALTER TABLE journal DROP COLUMN {column}")
    with rig(tmp_path) as life:
        assert life.state == state


def test_a_body_is_overwritten_where_its_device_is_forgotten(tmp_path: Path) -> None:
    with rig(tmp_path, parameters=MODEL) as life:
        feed(life, 2)
        lsns = [lsn for (lsn,) in life.store.query("SELECT lsn FROM journal WHERE segment IS NOT NULL")]
        with life.store.transaction() as db:
            assert life.store.rewrite(db, life.store.record(lsns[0]))
        (name,) = files(tmp_path)
        assert (tmp_path / name).read_bytes()[: 4 * SIZE] == bytes(4 * SIZE)
        assert any(life.store.body(lsns[1]))
        with pytest.raises(StoreError, match="damaged"):
            life.store.body(lsns[0])


def test_the_threshold_is_of_all_bodies_together(tmp_path: Path) -> None:
    with Store(tmp_path):
        pass
    with rig(tmp_path) as life:
        play(life, 1)
        assert files(tmp_path) == []


def test_a_batch_of_large_updates_is_taken_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midge.aggregator.processor._AT_ONCE", 2 * 4 * SIZE)
    with rig(tmp_path, parameters=MODEL) as life:
        decode, waiting = life.processor.decode, []

        def watched(action: Decode, now: float) -> Event:
            waiting.append(life.ingress.bodies.decoded)
            return decode(action, now)

        monkeypatch.setattr(life.processor, "decode", watched)
        batch = [life.update("a", seq, np.full(SIZE, seq, np.float32), base=1) for seq in range(1, 8)]
        (*_, last) = life.hear(*batch)
        assert last.hi == 7
        assert waiting == [0, 1, 0, 1, 0, 1, 0]
        assert life.model.x[0] == sum(range(1, 8))
