"""Whether a model still goes anywhere: on straight and slow ways, to and fro, and after a rest."""

from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import midge
from midge.aggregator.model.movement import Movement
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.lineage import State
from midge.wire.schema import Schema

SIZE = 50
SCHEMA = Schema.of({"x": np.zeros(SIZE, np.float32)})


def quiet(
    ways: Iterator[npt.NDArray[np.float64]], versions: int, turn: int = 1, movement: Movement | None = None
) -> list[int]:
    """How many versions in a row moved nothing, version by version."""
    found = movement or Movement(SIZE)
    states = (State(SCHEMA, np.rint(2**16 * next(ways)).astype(np.int32), -16, b"") for _ in range(versions))
    return [found.follow(state, turn) for state in states]


def way(seed: int, *, drift: float = 0.0, pull: float = 1.0, noise: float = 1.0) -> Iterator[npt.NDArray[np.float64]]:
    """Values that are pulled back to a place, which drifts: with a pull of 0, a random walk."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(SIZE)
    values, place = np.zeros(SIZE), np.zeros(SIZE)
    while True:
        place = place + drift * direction
        values = values + pull * (place - values) + noise * rng.standard_normal(SIZE)
        yield values


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("turn", [1, 8])
def test_a_model_that_goes_to_and_fro_is_at_rest(seed: int, turn: int) -> None:
    assert max(quiet(way(seed, pull=0.5), 80 * turn, turn)) > 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("drift", [0.3, 1.0, 10.0])
def test_a_model_that_goes_on_is_not(seed: int, drift: float) -> None:
    """Although each version goes further to and fro than on, at the smallest of these drifts."""
    assert max(quiet(way(seed, drift=drift), 200)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_random_walk_is_movement(seed: int) -> None:
    """As of a model whose flattest directions are still being learned."""
    assert max(quiet(way(seed, pull=0.0), 200)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_shorter_turn_of_the_fleet_is_no_rest(seed: int) -> None:
    """Seen to fail: the last two short windows, far from where the distances begin, looked equal."""
    movement, walk = Movement(SIZE), way(seed, pull=0.0)
    for turn in (7, 1) * 20:
        assert max(quiet(walk, 9, turn, movement)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_rest_ends_with_a_drift(seed: int) -> None:
    movement = Movement(SIZE)
    assert quiet(way(seed, pull=0.5), 60, movement=movement)[-1] > 0
    assert quiet(way(seed, pull=0.5, drift=0.3), 40, movement=movement)[-1] == 0


def test_a_model_that_stands_still_is_at_rest() -> None:
    assert quiet(repeat(np.ones(SIZE)), 40)[-1] > 0


class Pump:
    """Learns a line from rows that do not change, but once."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(200, 3)).astype(np.float32)
        self.noise = rng.normal(scale=0.1, size=200).astype(np.float32)
        self.true = np.array([2.0, -1.0, 0.5], np.float32)
        self.trained = 0

    def __call__(self, parameters: Mapping[str, npt.NDArray[Any]], _: Any) -> midge.Fit:
        self.trained += 1
        w = parameters["w"].copy()
        for _step in range(10):
            w -= 0.1 * self.x.T @ (self.x @ w - (self.x @ self.true + self.noise)) / len(self.x)
        return midge.Fit({"w": w}, examples=len(self.x))


@pytest.mark.parametrize("devices", [2, 5])
def test_a_fleet_that_has_learned_all_trains_some_fifty_times_a_day(devices: int) -> None:
    """It trained without a pause: 25 to 50 versions a second, for ever, on 200 rows."""
    pumps = [Pump(seed) for seed in range(devices)]
    changed = 43_200.0
    seen: list[tuple[float, float]] = []

    def evaluate(parameters: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
        at = 600.0 * len(seen)
        if at >= changed:
            for pump in pumps:
                pump.true = np.array([3.0, -1.0, 0.5], np.float32)
        error = float(np.linalg.norm(parameters["w"] - pumps[0].true))
        seen.append((at, error))
        return {"error": error}

    simulate(
        pumps,
        strategy=midge.balanced(),
        seed=1,
        seconds=86_400.0,
        initial={"w": np.zeros(3, np.float32)},
        speeds=[1.0] * devices,
        evaluate=evaluate,
        every=600.0,
    )
    assert max(pump.trained for pump in pumps) < 400
    assert all(error < 0.05 for at, error in seen if 600 <= at < changed)
    assert all(error < 0.05 for at, error in seen if at >= changed + 4000), "and it follows a change"
