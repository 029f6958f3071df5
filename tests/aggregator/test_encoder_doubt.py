"""An encoder that loses what it leaves out is told, and bounded; one that is right is not."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from midge.aggregator.core.encoder_doubt import doubt
from midge.aggregator.core.presets import balanced
from midge.iot_client.training.update_encoder import encode
from midge.wire.messages import Plan, Trouble
from tests.aggregator.rig import Rig, answers, rig

SIZE = 300
CODEC = "topk:0.5|float32"
"""Says what either encoder makes as it is, and needs feedback."""
Array = npt.NDArray[np.float64]


class Encoder:
    """Of one device: as it should be, or as the words "what is left out goes into the next" were once followed."""

    def __init__(self, kind: str, life: Rig) -> None:
        self.kind, self._life = kind, life
        self._left: bytes | None = None
        self._kept = np.zeros(SIZE)

    def __call__(self, delta: Array, seed: int) -> Array:
        if self.kind == "naive":  # nearest, never finer, never clipped
            wanted = delta + self._kept
            step = 4 * np.sqrt(np.mean(wanted**2))
            said = np.array(np.rint(wanted / step) * step, np.float64)
            self._kept = wanted - said
            return said
        rows = delta.astype(np.float32)[None]
        schema = self._life.model.schema
        coded, (self._left,) = encode(
            rows, "uq:4|rice", self._life.core.lineage, schema, feedback=True, left=[self._left], seeds=[seed]
        )
        return np.array(coded.values[0], np.float64)


def learn(tmp_path: Path, kinds: list[str], rounds: int, seed: int = 0) -> tuple[dict[str, int], float, float]:
    """How often each device was told, where the model ended, and how far the largest single step went."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=SIZE)
    told: dict[str, int] = {}
    longest, now = 0.0, 0.0
    strategy = balanced(release_floor=1, byte_rate=0.0)
    with rig(tmp_path, strategy, parameters={"x": np.zeros(SIZE, np.float32)}) as life:
        encoders = [Encoder(kind, life) for kind in kinds]
        for turn in range(rounds):
            x, base = life.model.state.values().astype(float), life.core.version
            for number in rng.permutation(len(kinds)):
                now += 20.0
                # A training of least squares on its own data: part of the way, and not quite in the right direction.
                delta = 0.6 * (truth - x + 0.5 * np.linalg.norm(truth - x) / SIZE**0.5 * rng.normal(size=SIZE))
                said = encoders[number](delta, turn)
                before, posts = life.model.parameters()["x"].copy(), len(life.posts)
                life.hear(life.update(f"d{number}", turn + 1, said.astype(np.float32), base=base, codec=CODEC), now=now)
                troubles = [each for each in answers(life.posts[posts:]) if isinstance(each, Trouble)]
                told[f"d{number}"] = told.get(f"d{number}", 0) + len(troubles)
                longest = max(longest, float(np.linalg.norm(life.model.parameters()["x"] - before)))
        return told, float(np.mean((life.model.parameters()["x"] - truth) ** 2)), longest


def test_one_bad_encoder_among_good_ones_is_told_and_does_no_harm(tmp_path: Path) -> None:
    # How soon it sticks out differs from world to world: it, too, learns.
    played = [learn(tmp_path / str(seed), ["naive", *["good"] * 5], 40, seed) for seed in range(5)]
    assert sum(told["d0"] > 1 for told, _, _ in played) >= 3
    assert all(sum(told.values()) - told["d0"] <= 2 for told, _, _ in played)
    assert np.median([loss for _, loss, _ in played]) < 0.01


def test_good_encoders_are_not_doubted(tmp_path: Path) -> None:
    told, loss, _ = learn(tmp_path, ["good"] * 4, 40)
    assert sum(told.values()) <= 1 and loss < 1e-3


def test_a_fleet_of_bad_encoders_is_told_and_stays_bounded(tmp_path: Path) -> None:
    told, loss, _ = learn(tmp_path, ["naive"] * 3, 60)
    assert sum(told.values()) > 2
    assert loss < 10, "the rate is damped"


def test_updates_that_grow_without_end_are_told_and_move_the_model_by_what_others_do(tmp_path: Path) -> None:
    strategy = balanced(2, release_floor=1, byte_rate=0.0)
    with rig(tmp_path, strategy, parameters={"x": np.zeros(SIZE, np.float32)}) as life:
        rng = np.random.default_rng(1)
        for turn in range(20):
            before = life.model.parameters()["x"].copy()
            for name, length in (("good", 1.0), ("fine", 1.0), ("grows", 1.5**turn)):
                delta = rng.normal(size=SIZE)
                delta *= length / np.linalg.norm(delta)
                life.hear(life.update(name, turn + 1, delta.astype(np.float32), codec=CODEC), now=20.0 * turn + 1)
            assert np.linalg.norm(life.model.parameters()["x"] - before) < 8
        troubles = [each for each in answers(life.posts) if isinstance(each, Trouble)]
        assert troubles and all("int8:256" in each.why for each in troubles)
        assert {fields["device"] for event, fields in life.told if event == "encoder"} == {"grows"}


@pytest.mark.parametrize("codec", ["int8:256", "float32"])
def test_a_codec_that_leaves_nothing_out_is_not_doubted(tmp_path: Path, codec: str) -> None:
    with rig(tmp_path, balanced(release_floor=1), parameters={"x": np.zeros(SIZE, np.float32)}) as life:
        for turn in range(15):
            for name, length in (("a", 1.0), ("b", 1.0), ("grows", 2.0**turn)):
                life.hear(life.update(name, turn + 1, np.full(SIZE, length, np.float32), codec=codec), now=20.0 * turn)
        assert not [each for each in answers(life.posts) if isinstance(each, Trouble)]


@pytest.mark.parametrize(("plan", "told"), [(Plan(), True), (Plan(feedback=False), False)])
def test_a_device_that_keeps_no_feedback_is_told_unless_the_plan_asks_for_none(
    tmp_path: Path, plan: Plan, told: bool
) -> None:
    strategy = balanced(release_floor=1, plan=plan)
    with rig(tmp_path, strategy, parameters={"x": np.zeros(SIZE, np.float32)}) as life:
        life.hear(life.update("a", 1, np.ones(SIZE, np.float32), codec="uq:4|rice", feedback=False), now=1.0)
        life.hear(life.update("b", 1, np.ones(SIZE, np.float32), codec="int8:256", feedback=False), now=1.0)
        life.hear(life.update("c", 1, np.ones(SIZE, np.float32), codec="uq:4|rice"), now=1.0)
        assert [fields["device"] for event, fields in life.told if event == "encoder"] == (["a"] if told else [])


def test_a_jump_and_a_fall_are_no_growth() -> None:
    assert not doubt([1.0] * 8, 100.0, 1.0), "too few to judge"
    assert not doubt([1, 1, 1, 1, 10, 9, 8, 7, 6], 2.0, 1.0), "the world changed"
    assert not doubt([90, 80, 70, 60, 50, 40, 30, 25, 20], 9.0, 1.0), "it follows a fleet that learns fast"
    assert "grow" in doubt([1.3**n for n in range(9)], 1.0, 1.0)
    assert "grow" in doubt([1, 1, 1, 1, 1, 1, 2, 2, 2], 1.0, 0.5)
    assert "as long as" in doubt([5.0] * 9, 7.0, 1.0)
