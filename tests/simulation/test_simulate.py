"""Federations in virtual time: the same seed gives the same run, and the real rules hold in it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import midge
from midge.aggregator.core.strategy import Strategy
from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan
from midge.sensor_fleet.data import load
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.simulation import learners, shards, stacked
from midge.sensor_fleet.simulation.simulate import CALM, simulate
from midge.sensor_fleet.world import World
from midge.wire.messages import Plan
from midge.wire.schema import Schema

START = {"x": np.zeros(4, np.float32)}


def add_one(parameters: Parameters, plan: TrainingPlan) -> Fit:
    return Fit({"x": parameters["x"] + np.float32(1)}, examples=1)


def everything() -> Strategy:
    return midge.fedasync(
        1.0, midge.constant(), norm_limit=None, plan=Plan(codec="float32"), form="delta", bounded=False
    )


def test_design_example_runs() -> None:
    found = midge.simulate(
        add_one,
        devices=30,
        strategy=midge.fedasync(form="delta", bounded=False),
        loss=0.1,
        seed=0,
        initial=START,
        seconds=30,
    )
    assert len(found.staleness) > 300
    assert found.versions[-1] > 100


def test_each_accepted_update_is_applied_once_whatever_is_lost_doubled_or_broken() -> None:
    """Every update adds one, so the model counts them: what is lost is sent again, what is doubled is dropped."""
    world = World(median=1.0, spread=0.5, online=20.0, offline=3.0, late=0.3, leave=0.3, twice=0.2, bandwidth=0.0)
    found = simulate(
        add_one, devices=20, strategy=everything(), seed=3, seconds=120, initial=START, world=world, loss=0.2
    )
    assert len(found.senders) > 500
    assert found.parameters["x"][0] == pytest.approx(len(found.senders), rel=0.01)  # p follows x within a step
    assert found.per_device.sum() == len(found.senders)


def test_device_trains_once_from_each_version() -> None:
    """So four devices alike fill a buffer of four together, none of them twice, and nothing is ever stale."""
    strategy = midge.fedbuff(4, plan=Plan(codec="float32"))
    found = simulate(add_one, devices=4, strategy=strategy, seconds=30.5, initial=START)
    assert found.versions[-1] == 31
    assert found.per_device.tolist() == [30] * 4
    assert not found.staleness.any()


def test_staleness_follows_littles_law() -> None:
    """In a fleet whose devices are always at work, mean staleness is near concurrency over buffer size, less one."""
    found = simulate(
        add_one, devices=40, strategy=midge.fedbuff(5), seconds=60, initial=START, world=replace(CALM, spread=0.8)
    )
    assert 40 / 5 - 1.5 < found.staleness[200:].mean() < 40 / 5


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_the_same_seed_gives_the_same_run(jitter: float) -> None:
    data = load("digits", devices=12, seed=0)
    runs = [
        simulate(
            model_for(data, "mlp", seed=0), data=data, seed=5, seconds=6, world=World(median=1.0).calm(), jitter=jitter
        )
        for _ in range(2)
    ]
    for name in ("times", "versions", "staleness", "senders", "update_times", "bytes_up"):
        np.testing.assert_array_equal(getattr(runs[0], name), getattr(runs[1], name))
    np.testing.assert_array_equal(runs[0].metrics["accuracy"], runs[1].metrics["accuracy"])


def test_runs_do_not_depend_on_how_trainings_were_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who trains with whom is a matter of the simulation only."""
    data = load("digits", devices=10, seed=0)
    model = model_for(data, "mlp", seed=0)
    together = simulate(model, data=data, seed=1, seconds=4, recipe=Recipe(local_steps=4))
    monkeypatch.setattr(stacked, "AT_ONCE", 1)
    alone = simulate(model, data=data, seed=1, seconds=4, recipe=Recipe(local_steps=4))
    np.testing.assert_array_equal(together.senders, alone.senders)
    np.testing.assert_allclose(together.metrics["accuracy"], alone.metrics["accuracy"], atol=0.02)


def test_trainings_are_done_when_the_first_result_is_needed() -> None:
    """All that wait, up to a batch: those that end first, whoever is asked for."""
    seen: list[int] = []

    class Counting(learners.TrainerPerDevice):
        def train(self, jobs: Sequence[stacked.Job]) -> list[learners.TrainingResult]:
            seen.append(len(jobs))
            return super().train(jobs)

    schema = Schema.of(START)
    work = shards.ShardWorker(Counting(lambda _, __: add_one, schema, {}), schema, [f"d{n}" for n in range(5)])
    pool = shards.Pool(shards.LocalCarrier(work), [0] * 5)
    start = shards.Start(1, START["x"], Plan(codec="float32"), bytes(16))
    numbers = [pool.begin(shards.Task(n, 1, n, 1), start, due=float(n)) for n in range(5)]
    pool.forget(numbers[1])
    said = pool.end(numbers[3]).decoded
    assert said is not None and said.delta.tolist() == [1, 1, 1, 1]
    pool.end(numbers[0])
    assert seen == [4]


def test_wrong_calls_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="initial="):
        simulate(add_one, devices=3)
    with pytest.raises(ValueError, match="devices="):
        simulate(add_one, initial=START)
    with pytest.raises(ValueError, match="is a tensor of a site, which no simulation averages"):
        simulate(add_one, devices=3, initial=START, roles={next(iter(START)): "site"})
    with pytest.raises(ValueError, match="speeds has 2 numbers for 3"):
        simulate(add_one, devices=3, initial=START, speeds=[1.0, 2.0])
