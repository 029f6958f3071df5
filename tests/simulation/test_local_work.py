"""Local steps in simulated fleets: chosen by the aggregator, or by what fits into a plan's seconds."""

from collections.abc import Callable
from typing import Any

import pytest

import midge
from midge.sensor_fleet.data import load
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.simulation.incidents import Crash, Incidents
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.messages import Plan, Update

RECIPE = 20


class Steps:
    """Notes the steps of what is sent in the second half of a run."""

    def __init__(self, after: float) -> None:
        self._after, self.taken = after, dict[str, list[int]]()

    def begin(self, server: Any, clock: Any) -> None:
        self._clock = clock

    def sent(self, device: str, update: Update, said: Any) -> Any:
        if self._clock.now > self._after:
            self.taken.setdefault(device, []).append(update.steps)
        return said


@pytest.fixture
def play() -> Callable[..., tuple[Simulated, dict[str, list[int]]]]:
    def run(**others: Any) -> tuple[Simulated, dict[str, list[int]]]:
        data = load("digits", devices=10, seed=1)
        seen = Steps(10.0)
        model = model_for(data, "linear", seed=1)
        found = simulate(model, data=data, seconds=20.0, every=20.0, seed=1, tamper=seen, **others)
        return found, seen.taken

    return run


def test_short_journeys_make_short_trainings_and_long_ones_leave_the_recipe(play: Any) -> None:
    assert {step for each in play(overhead=0.01)[1].values() for step in each} == {4}
    between = {step for each in play(overhead=0.25)[1].values() for step in each}
    assert max(between) < RECIPE and min(between) > 4
    assert {step for each in play(overhead=2.0)[1].values() for step in each} == {RECIPE}


def test_a_restart_asks_for_the_same_steps(play: Any) -> None:
    crashes = Incidents(crashes=(Crash(at=12.0, until=12.5, clock=3.0),))
    assert {step for each in play(overhead=0.01, incidents=crashes)[1].values() for step in each} == {4}


def test_a_plan_of_seconds_gives_each_device_the_steps_that_fit(play: Any) -> None:
    speeds = [0.5] * 5 + [2.0] * 5
    strategy = midge.balanced(plan=Plan(seconds=1.0))
    taken = play(strategy=strategy, speeds=speeds)[1]
    fast, slow = list(taken.values())[:5], list(taken.values())[5:]
    assert {step for each in fast for step in each} | {step for each in slow for step in each} == {10, 40}
    assert sorted({each[-1] for each in taken.values()}) == [10, 40]
    assert fast and slow
