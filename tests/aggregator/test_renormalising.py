"""`midge renormalise`: new statistics in a store that has a model, whatever ends in the middle of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core import records as rec
from midge.aggregator.core.presets import fedasync
from midge.aggregator.model.model import Frame
from midge.aggregator.model.statistics import CAP, pooled
from midge.aggregator.store.renormalising import renormalise, statistics_of
from midge.aggregator.store.store import Store, StoreError, StoreFull
from midge.wire import frames, messages
from midge.wire.messages import Announcement, Moment, Verdict
from midge.wire.moments import Moments
from midge.wire.schema import Schema
from tests.aggregator.rig import EVERYTHING_COUNTS, QuickStore, Rig, rig, statistics

MODEL = {"x": np.zeros(4, np.float32), "i_mean": np.zeros(1, np.float32), "i_scale": np.ones(1, np.float32)}
ARGUMENTS: dict[str, Any] = {
    "parameters": MODEL,
    "roles": {"i_mean": "frozen", "i_scale": "frozen"},
    "moments": (Moment(name="i", channels=1),),
}
EARLY = [Moments.of(np.array([[18.0], [18.1]] * 10)), Moments.of(np.array([[18.0], [18.1]] * 10))]
LATE = [Moments.of(np.arange(100.0)[:, None]), Moments.of(np.arange(50.0)[:, None])]


def send(life: Rig, parts: Iterable[Moments] = LATE) -> None:
    for name, part in zip("ab", parts, strict=False):
        life.hear(statistics(name, life.core.lineage, i=part))


def scale(life: Rig) -> float:
    return float(np.asarray(life.model.state.parameters()["i_scale"])[0])


def announced(life: Rig) -> Announcement:
    return messages.decode_announcement(life.shelf.announcement().payload)


def trained(directory: Path) -> tuple[float, ...]:
    """A store whose statistics were early, and that has learned since; what it has published."""
    with rig(directory, **ARGUMENTS) as life:
        send(life, EARLY)
        for number in range(1, 6):
            assert life.send("a", number, [0.5, -2, 1, number]).verdict is Verdict.ACCEPTED
        assert scale(life) < 0.1 and life.core.version == 6
        return tuple(life.model.state.values().tolist())


def test_new_statistics_are_asked_for_and_the_model_goes_on(tmp_path: Path) -> None:
    values = trained(tmp_path)
    with Store(tmp_path) as store:
        assert renormalise(store) == (1, 6)
    with rig(tmp_path, **ARGUMENTS) as life:
        told = announced(life)
        assert (told.phase, told.generation, told.version, len(told.moments)) == ("statistics", 1, 6, 1)
        settled = life.send("b", 1, [9, 9, 9, 9], generation=0, base=6)
        assert settled.verdict is Verdict.STALE and "train again" in settled.why
        send(life)
        told = announced(life)
        assert (told.phase, told.generation, told.version) == ("training", 1, 7)
        assert [frame.span for frame in told.frames if frame.version == 7] == [0], "a snapshot: no step leads across"
        np.testing.assert_allclose(scale(life), pooled(LATE, CAP).scale()[0], rtol=1e-6)
        assert tuple(life.model.state.values().tolist()) == values
        assert life.send("b", 2, [9, 9, 9, 9], generation=0, base=6).verdict is Verdict.STALE
        assert life.send("b", 3, [1, 0, 0, 0]).verdict is Verdict.ACCEPTED
        assert life.core.version == 8
        state = life.state
    with rig(tmp_path, **ARGUMENTS) as life:
        assert life.state == state


def test_what_one_device_has_contributed_is_not_published_with_the_new_statistics(tmp_path: Path) -> None:
    strategy = fedasync(1.0, norm_limit=None, release_floor=2, form="delta", bounded=False)
    with rig(tmp_path, strategy, **ARGUMENTS) as life:
        send(life, EARLY)
        assert life.send("a", 1, [5, 5, 5, 5]).verdict is Verdict.ACCEPTED
        assert life.core.version == 1
    with Store(tmp_path) as store:
        renormalise(store)
    with rig(tmp_path, strategy, **ARGUMENTS) as life:
        send(life)
        assert life.core.version == 2 and not life.model.state.values().any()
        life.send("b", 1, [1, 1, 1, 1])
        assert life.core.version == 3 and life.model.state.values()[0] > 3, "a's work counts now"


def test_a_strategy_that_steps_back_goes_on_too(tmp_path: Path) -> None:
    strategy = fedasync(0.5, norm_limit=None, release_floor=1, form="mixing")
    with rig(tmp_path, strategy, **ARGUMENTS) as life:
        send(life, EARLY)
        for number in range(1, 5):
            assert life.send("a", number, [1, 2, 3, 4]).verdict is Verdict.ACCEPTED
    with Store(tmp_path) as store:
        renormalise(store)
    with rig(tmp_path, strategy, **ARGUMENTS) as life:
        assert life.send("b", 1, [1, 1, 1, 1], generation=0).verdict is Verdict.STALE
        send(life)
        for number in range(5, 9):
            assert life.send("a", number, [1, 2, 3, 4]).verdict is Verdict.ACCEPTED
        state = life.state
    with rig(tmp_path, strategy, **ARGUMENTS) as life:
        assert life.state == state


class Dying(QuickStore):
    """Ends as the power does, where it is told to."""

    at = ""

    def commit(self, entries: Any) -> None:
        entries = list(entries)
        kinds = {rec.kind(entry.record) for entry in entries}
        if self.at == "before freeze" and "freeze" in kinds:
            raise StoreFull("power")
        super().commit(entries)
        if self.at == "after freeze" and "freeze" in kinds:
            raise StoreFull("power")

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        if self.at == "before frames":
            raise StoreFull("power")
        super().add_frames(new)


@pytest.mark.parametrize(
    "at", ["at once", "one device", "before freeze", "after freeze", "before frames", "checkpoint"]
)
def test_a_crash_in_the_middle_ends_at_the_same_model(tmp_path: Path, at: str) -> None:
    trained(tmp_path / "whole")
    trained(tmp_path / "cut")
    with Store(tmp_path / "whole") as store:
        renormalise(store)
    with rig(tmp_path / "whole", **ARGUMENTS) as life:
        send(life)
        wanted = (announced(life).version, scale(life), life.model.x.tolist(), life.model.state.integers.tolist())
    with Store(tmp_path / "cut") as store:
        renormalise(store)
    dying = Dying(tmp_path / "cut")
    dying.at = at
    life = Rig(tmp_path / "cut", store=dying, **ARGUMENTS).start()
    if at == "checkpoint":
        life.engine.checkpoint(life.core)
    elif at == "one device":
        send(life, LATE[:1])
    elif at != "at once":
        with pytest.raises(StoreFull):
            send(life)
    life.close()
    with rig(tmp_path / "cut", **ARGUMENTS) as life:
        assert life.core.generation == 1
        send(life)
        life.tick(100.0)
        assert announced(life).phase == "training"
        found = (announced(life).version, scale(life), life.model.x.tolist(), life.model.state.integers.tolist())
        assert found == wanted


@pytest.mark.parametrize(
    ("point", "begun"), [("commit.before", False), ("commit.within", False), ("commit.after", True)]
)
def test_the_command_is_killed_and_the_store_is_as_before_or_whole(tmp_path: Path, point: str, begun: bool) -> None:
    trained(tmp_path)
    command = [sys.executable, "-m", "midge", "renormalise", str(tmp_path)]
    environment = {**os.environ, "MIDGE_CRASH_AT": point}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    with rig(tmp_path, **ARGUMENTS) as life:
        assert (life.core.generation, life.core.frozen) == (int(begun), not begun)
        assert life.core.version == 6


def test_the_command_says_what_is_in_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["renormalise", str(tmp_path)]) == 2
    assert "is no store" in capsys.readouterr().err
    store = tmp_path / "store"
    trained(store)
    with rig(store, **ARGUMENTS):
        assert main(["renormalise", str(store)]) == 2
        assert "stop its aggregator" in capsys.readouterr().err
    assert main(["renormalise", str(store)]) == 0
    assert "Generation 1 begins above version 6" in capsys.readouterr().out
    assert main(["renormalise", str(store)]) == 2
    assert "waits for statistics already" in capsys.readouterr().err
    with rig(tmp_path / "plain", EVERYTHING_COUNTS):
        pass
    assert main(["renormalise", str(tmp_path / "plain")]) == 2
    assert "not normalised with statistics" in capsys.readouterr().err
    with Store(tmp_path / "none") as empty, pytest.raises(StoreError, match="is empty"):
        renormalise(empty)


def test_a_pair_of_frozen_tensors_is_a_statistic() -> None:
    assert statistics_of(Schema.of(MODEL, {"i_*": "frozen"})) == ("i",)
    assert statistics_of(Schema.of(MODEL, {"i_mean": "frozen"})) == ()


def test_records_of_before_are_read_as_they_were_meant() -> None:
    old = rec.unpack("freeze", frames.pack({"lsn": 3, "statistics": (1, 2)}))
    assert old == rec.FreezeRecord(3, (1, 2), cap=0.0, near=0.0, keep=False)
    capped = rec.unpack("freeze", frames.pack({"lsn": 3, "statistics": (1, 2), "cap": 4.0, "keep": True}))
    assert capped == rec.FreezeRecord(3, (1, 2), cap=4.0, near=0.0, keep=True)
    said = {"lsn": 1, "device": "a", "names": (("i", 1),), "missing": 0}
    assert rec.unpack("statistics", frames.pack(said)) == rec.StatisticsRecord(1, "a", (("i", 1),), 0)


@pytest.mark.parametrize("cap", [0.0, 4.0])
def test_a_journal_of_before_is_replayed_to_the_same_bits(tmp_path: Path, cap: float) -> None:
    """Then one device's claim weighed as much as it said; a store that froze so keeps what it published."""
    claim = Moments(np.array([10_000]), np.array([50.0]), np.array([4.0 * 10_000]))
    with rig(tmp_path, **ARGUMENTS) as life:
        life.hear(statistics("a", life.core.lineage, i=claim))
        lsn = life.core.lsn
        life.hear(statistics("b", life.core.lineage, i=LATE[0]))
        db = life.store._open_db
        frozen = rec.FreezeRecord(lsn + 2, (lsn, lsn + 1), cap)
        with db:
            life.store.rewrite(db, frozen)
    with rig(tmp_path, **ARGUMENTS) as life:
        np.testing.assert_allclose(scale(life), pooled([claim, LATE[0]], cap).scale()[0], rtol=1e-6)
        assert life.core.frozen


def test_a_checkpoint_of_before_is_taken_up(tmp_path: Path) -> None:
    with rig(tmp_path, **ARGUMENTS) as life:
        send(life, LATE[:1])
        state = life.core.dump()
        del state["digests"]
        life.core.load(state)
        send(life, LATE)
        assert life.core.frozen


def test_one_lie_of_five_decides_nothing_and_is_told(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(20, 2, (1000, 1))
    evil = Moments(np.array([2**40]), np.array([1e30]), np.array([1e60 * 2.0**40]))
    with rig(tmp_path, statistics_devices=5, **ARGUMENTS) as life:
        life.hear(statistics("evil", life.core.lineage, i=evil))
        for number in range(4):
            life.hear(statistics(f"h{number}", life.core.lineage, i=Moments.of(rows[200 * number :][:200])))
        assert 1.8 < scale(life) < 2.2 and announced(life).phase == "training"
        (told,) = [fields for event, fields in life.told if event == "statistics_off"]
        assert told["device"] == "evil" and "mean 1e+30" in told["why"]
        state = life.state
    with rig(tmp_path, statistics_devices=5, **ARGUMENTS) as life:
        assert life.state == state


def test_what_one_of_five_shows_alone_counts_with_a_limit_and_a_restart_finds_the_same(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(20, 5, (800, 1))
    lie = Moments(np.array([2**40]), np.array([-100.0]), np.array([240.0**2 * 2.0**40]))
    with rig(tmp_path, statistics_devices=5, **ARGUMENTS) as life:
        for number in range(4):
            life.hear(statistics(f"h{number}", life.core.lineage, i=Moments.of(rows[200 * number :][:200])))
        life.hear(statistics("evil", life.core.lineage, i=lie))
        assert 5 < scale(life) < 20 and announced(life).phase == "training"
        (told,) = [fields for event, fields in life.told if event == "statistics_limited"]
        assert told["device"] == "evil" and "spread 240" in told["why"]
        state = life.state
    with rig(tmp_path, statistics_devices=5, **ARGUMENTS) as life:
        assert life.state == state


def test_two_devices_that_contradict_each_other_wait_for_a_third(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with rig(tmp_path, statistics_devices=5, **ARGUMENTS) as life:
        for name, unit in (("a", 1), ("b", 100)):
            rows = unit * rng.normal(1013, 8, (200, 1))
            life.hear(statistics(name, life.core.lineage, i=Moments.of(rows)))
        life.tick(100.0)
        assert announced(life).phase == "statistics"
        assert "a has i 0" in str(life.core.obstacle)
        rows = rng.normal(1010, 8, (200, 1))
        life.hear(statistics("c", life.core.lineage, i=Moments.of(rows)), now=101.0)
        life.tick(200.0)
        assert life.core.obstacle is None
        assert 7 < scale(life) < 9
