"""Who carries a simulation does not show in its result: bit for bit."""

import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from midge.aggregator.core.presets import balanced
from midge.iot_client.training.fit import Recipe, TrainingPlan
from midge.sensor_fleet.data import load
from midge.sensor_fleet.lazily import shared
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.simulation import shards
from midge.sensor_fleet.simulation.cluster import OnRay
from midge.sensor_fleet.simulation.learners import TrainingResult
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.shards import Carrier
from midge.sensor_fleet.simulation.simulate import simulate
from midge.sensor_fleet.simulation.stacked import Job
from midge.sensor_fleet.simulation.workers import REMEMBERED, Make, StartCache
from midge.wire.messages import Plan
from midge.wire.schema import Schema
from tests import needs

DATA = shared(load("digits", seed=0), 60, 0)


def run(workers: int, hours: float = 9.0, carry: Callable[[Make], Carrier] | None = None) -> Simulated:
    return simulate(
        model_for(DATA, "mlp", seed=0),
        data=DATA,
        profile="farm",
        seed=4,
        seconds=3600 * hours,
        workers=workers,
        carry=carry,
        recipe=Recipe(local_steps=5),
    )


def same(one: Simulated, other: Simulated) -> bool:
    return all(one.parameters[name].tobytes() == other.parameters[name].tobytes() for name in one.parameters)


def test_one_process_and_two_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several shards, so that both have something to carry."""
    monkeypatch.setattr(shards, "DEVICES", 12)
    alone, two = run(1), run(2)
    assert same(alone, two)
    np.testing.assert_array_equal(alone.bytes_up, two.bytes_up)
    np.testing.assert_array_equal(alone.update_times, two.update_times)
    assert alone.trainings == two.trainings > 60


def test_convolutional_models_are_trained_in_stacks_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch in this process or another, and half as long for half of the steps."""
    monkeypatch.setattr(shards, "DEVICES", 12)
    data = load("digits", devices=24, seed=0)
    model = model_for(data, "cnn")

    def play(workers: int, steps: int) -> Simulated:
        strategy = balanced(plan=Plan(local_steps=steps))
        return simulate(model, data=data, strategy=strategy, seconds=4.0, seed=2, workers=workers)

    alone, two, half = play(1, 20), play(2, 20), play(1, 10)
    assert same(alone, two)
    assert alone.trainings == two.trainings > 60
    assert half.trainings > 1.7 * alone.trainings


@needs.ray
def test_actors_of_a_ray_cluster_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two actors of a cluster on this machine."""
    monkeypatch.setattr(shards, "DEVICES", 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Ray's own
        actors = run(1, carry=partial(OnRay, count=2))
    alone = run(1)
    assert same(alone, actors)
    np.testing.assert_array_equal(alone.update_times, actors.update_times)


def test_what_is_done_ahead_changes_little_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are other ones then, so that last bits differ, and nothing else."""
    pools: list[shards.Pool] = []
    begin = shards.Pool.begin

    def watched(self: shards.Pool, *args: object) -> int:
        if self not in pools:
            pools.append(self)
        return begin(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.Pool, "begin", watched)
    ahead = run(1)
    monkeypatch.setattr(shards.Pool, "_new_predictions", lambda self, place: iter(()))
    behind = run(1)
    assert ahead.trainings == behind.trainings
    np.testing.assert_array_equal(ahead.senders, behind.senders)
    for name in ahead.parameters:
        np.testing.assert_allclose(ahead.parameters[name], behind.parameters[name], atol=0.02)
    assert pools[0].mispredicted < 0.2 * ahead.trainings


class Marking:
    """Trains to the start plus one, and is as quick as any."""

    def train(self, jobs: Sequence[Job]) -> list[TrainingResult]:
        return [TrainingResult(job.start + np.float32(1 + job.device), 1, 1) for job in jobs]

    def load(self, device: int, plan: TrainingPlan, seen: int = 0) -> float:
        return 1.0


def test_training_that_turns_out_otherwise_than_expected_is_done_again() -> None:
    """From the version that it really began from, and its number; one that was expected rightly is not."""
    schema = Schema.of({"x": np.zeros(4, np.float32)})
    plan = Plan(codec="float32")
    old, new = (shards.Start(key, np.full(4, 10 * key, np.float32), plan, b"") for key in (1, 2))
    expected = [(shards.Task(1, 1, 7, 1), old), (shards.Task(2, 1, 8, 1), old)]
    work = shards.ShardWorker(Marking(), schema, ["a", "b", "c"])
    pool = shards.Pool(shards.LocalCarrier(work), [0, 0, 0], lambda shard: iter(expected))
    pool.end(pool.begin(shards.Task(0, 1, 6, 1), old, due=1.0))
    expected.clear()
    assert pool.mispredicted == 0
    otherwise = pool.end(pool.begin(shards.Task(1, 2, 9, 1), new, due=2.0))
    as_expected = pool.end(pool.begin(shards.Task(2, 1, 8, 1), old, due=3.0))
    assert otherwise.decoded is not None and as_expected.decoded is not None
    assert otherwise.decoded.delta.tolist() == [2.0] * 4  # of a start of 20, not of what 10 came to
    assert as_expected.decoded.delta.tolist() == [3.0] * 4
    assert (pool.mispredicted, pool.begun) == (1, 3)


def test_shards_follow_from_names_and_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every process, on every machine."""
    monkeypatch.setattr(shards, "DEVICES", 2)
    names = [f"device-{number}" for number in range(8)]
    assert shards.shards_of(names, 3) == [zlib.crc32(f"3/shard/{name}".encode()) % 4 for name in names]
    assert shards.shards_of(names, 4) != shards.shards_of(names, 3)


def test_trainers_that_cannot_travel_are_told() -> None:
    def train(parameters: object, plan: object) -> object:
        return None

    with pytest.raises(ValueError, match="put them in a module, or use workers=1"):
        simulate(train, devices=2, initial={"x": np.zeros(3, np.float32)}, workers=2)  # type: ignore[arg-type]


def test_starts_are_sent_once_and_known_at_both_ends() -> None:
    rng = np.random.default_rng(0)
    sender, worker = StartCache(), StartCache()
    sent = 0
    for step in range(400):
        keys = {int(key) for key in step + rng.integers(0, 200, 30)}
        starts = {key: shards.Start(key, np.zeros(1, np.float32), Plan(), b"") for key in keys}
        new = sender.missing(starts)
        sent += len(new)
        assert {key: start.key for key, start in worker.whole(tuple(starts), new).items()} == {k: k for k in keys}
    assert REMEMBERED < 400 < sent < 2 * 600


def test_strategy_of_a_profile_keeps_its_pace() -> None:
    found = run(1, hours=5)
    assert found.per_device.max() <= 1  # six hours between two trainings
    assert balanced().pace.interval == 0
