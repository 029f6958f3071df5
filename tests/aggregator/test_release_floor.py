"""`release_floor`: a release carries the work of several devices, and what hides nothing of it does not count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.core.presets import balanced, fedbuff, private
from midge.aggregator.core.privacy import Privacy
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.wire.messages import DeviceState, Verdict
from tests.aggregator.rig import Rig, hello, rig

STRATEGY = fedbuff(2, staleness=constant(), bounded=False, deadline=5.0, release_floor=3)
C = ("c", [1.0, 2.5, 3.0, 4.0])


def know_the_fleet(life: Rig, *more: str) -> None:
    """Three versions with the work of three devices of ordinary norms, so that there is a reference.

    Args:
        life: the aggregator.
        more: devices whose work fills the last release.
    """
    for device in ("victim", "b", "c", "spy"):
        life.hear(hello(device))
    for seq in (1, 2, 3):
        for number, device in enumerate(("victim", "b", "c", "spy")):
            life.send(device, seq, [1.0, number, seq, 0.5], now=float(seq))
    life.send("other", 1, [1.0, 1.0, 1.0, 1.0], now=3.0)  # the first step took three
    for number, device in enumerate(more):
        life.send(device, 1, [1.0, 2.0, number, 1.0], now=3.0)
    life.tick(9.0)
    assert life.core.version > 2 and not life.core.buffered and not life.core._state.contributors


def version_after(life: Rig, *sent: tuple[str, list[float]], now: float = 10.0, seq: int = 4) -> int:
    """Versions released by these updates."""
    before = life.core.version
    for device, delta in sent:
        assert life.send(device, seq, delta, now=now).verdict is Verdict.ACCEPTED
    life.tick(now + 100.0)
    return life.core.version - before


@pytest.mark.parametrize(
    "strategy", [STRATEGY, balanced(buffer_size=2, deadline=5.0, release_floor=3)], ids=["fedbuff", "balanced"]
)
@pytest.mark.parametrize("nothing", [[0.0] * 4, [1e-9] * 4, [0.01, 0.0, 0.0, 0.0]], ids=["zeros", "tiny", "1/100"])
def test_work_is_not_hidden_by_next_to_nothing(tmp_path: Path, strategy: Strategy, nothing: list[float]) -> None:
    """Else a second name that sends zeros reads a device's delta from the difference of two versions."""
    with rig(tmp_path, strategy) as life:
        know_the_fleet(life, "more")
        published = life.model.published(life.core.version).copy()
        assert version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), C, ("spy", nothing)) == 0
        np.testing.assert_array_equal(life.model.published(life.core.version), published)
        obstacle = life.core.obstacle
        assert obstacle is not None and obstacle.kind == "held"
        assert "2 of at least 3" in obstacle.why and "1 sent next to nothing" in obstacle.why
        life.engine.checkpoint(life.core)
    with rig(tmp_path, strategy) as life:
        assert life.core.obstacle == obstacle, "a restart remembers it"
        assert version_after(life, ("b", [2.0, 1.0, 1.0, 0.0]), now=200.0) > 0


def test_work_is_not_hidden_by_a_repetition(tmp_path: Path) -> None:
    """A known delta can be subtracted. The same delta from another base is no training."""
    with rig(tmp_path, STRATEGY) as life:
        know_the_fleet(life, "more")
        first = ("victim", [1.0, 2.0, 3.0, 4.0]), ("c", [1.0, 2.5, 3.0, 4.0])
        assert version_after(life, *first, ("spy", [1.0, 1, 1, 0.5])) == 0, "b's of before"
        assert version_after(life, ("b", [1.0, 2.5, 3.5, 4.0])) == 1


@pytest.mark.parametrize("delta", [[1.0] * 4, [0.0] * 4], ids=["the same", "zeros"])
def test_one_of_two_devices_does_not_stop_the_other(tmp_path: Path, delta: list[float]) -> None:
    """Seen to fail: a device with nothing to learn, or whose training always adds one, stopped a federation of two."""
    with rig(tmp_path, replace(STRATEGY, release_floor=2)) as life:
        know_the_fleet(life)
        for seq in (4, 5, 6):
            work = [1.0, float(seq), 0.0, 2.0]
            assert version_after(life, ("b", delta), ("c", work), now=10.0 + 200 * seq, seq=seq) == 1


def test_equal_work_from_one_base_is_no_repetition(tmp_path: Path) -> None:
    """Devices with the same rows, or a tiny model: they trained, and each has the other's work already."""
    with rig(tmp_path, STRATEGY) as life:
        know_the_fleet(life, "more")
        assert version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), ("b", [1.0, 2.0, 3.0, 4.0]), C) == 1


def test_where_there_is_only_nothing_there_is_nothing_to_hide(tmp_path: Path) -> None:
    """Else a fleet at rest would never get a new version, and would train on no new data."""
    with rig(tmp_path, STRATEGY) as life:
        know_the_fleet(life, "more")
        assert version_after(life, ("b", [0.0] * 4), ("c", [0.0] * 4), ("spy", [0.0] * 4)) == 1


def test_a_forgotten_device_counts_as_before(tmp_path: Path) -> None:
    with rig(tmp_path, STRATEGY) as life:
        know_the_fleet(life, "more")
        version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), ("spy", [0.0] * 4))
        life.core.forget("spy", "gone-1")
        life.core.forget("victim", "gone-2")
        assert life.core.dump()["trivial"] == ["gone-1"] and life.core.dump()["contributors"] == ["gone-2"]


def test_a_private_strategy_counts_names(tmp_path: Path) -> None:
    """When a version comes must not depend on what the updates contain."""
    privacy = Privacy(clip=1.0, noise=4.0, epsilon=8.0)
    with rig(tmp_path, private(privacy, 2)) as life:
        assert version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), ("b", [2.0, 0.0, 0.0, 0.0]), seq=1) == 1
        assert version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), ("spy", [0.0] * 4), seq=2) == 1


def test_devices_that_leave_do_not_take_the_floor_with_them(tmp_path: Path) -> None:
    with rig(tmp_path, STRATEGY) as life:
        know_the_fleet(life, "more")
        life.hear(hello("spy", state=DeviceState.DISCONNECTED))
        assert version_after(life, ("victim", [1.0, 2.0, 3.0, 4.0]), ("victim", [2.0, 2.0, 3.0, 4.0])) == 0
