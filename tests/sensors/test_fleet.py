"""Sensors in a virtual fleet: devices train on what has come, when enough of it is new, and recover from a drift."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import midge
from midge.__main__ import main
from midge.sensor_fleet.data import load
from midge.sensor_fleet.models import model_for
from midge.sensor_fleet.sensors import Drift, Flaws, Stream, a_week, energy, vibration
from midge.sensor_fleet.sensors.__main__ import main as write
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.stacked import Job, Stack
from midge.wire.schema import Vector

HOUR, DAY = 3600.0, 86400.0


def run(stream: Stream, seconds: float = DAY, **given: object) -> Simulated:
    arguments: dict[str, object] = {"strategy": midge.balanced(2, pace=midge.Pace()), "seed": 0, **given}
    return midge.simulate(model_for(stream, "linear"), data=stream, seconds=seconds, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("fresh", [4, 12])
def test_devices_train_when_enough_is_new(fresh: int) -> None:
    """One row an hour and a model that is always new: each device trains at the start, and then each `fresh` hours."""
    stream = energy(6, seed=0, window=48, fresh=fresh, flaws=Flaws.none())
    found = run(stream, 2 * DAY + 600)
    assert found.trainings_of.tolist() == [1 + 48 // fresh] * 6


def test_devices_with_gaps_wait_longer() -> None:
    flaws = Flaws(labels=0, lost=0.5, outages=0)
    with_gaps = run(energy(6, seed=0, window=48, fresh=6, flaws=flaws), 4 * DAY)
    assert 6 * 0.8 * 8 < with_gaps.trainings < 6 * 1.2 * 8 + 6


def test_trainings_see_the_rows_that_had_come_when_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a row of the future, and none that is old."""
    stream = energy(4, seed=0, window=24, fresh=3, flaws=Flaws.none())
    seen: dict[int, list[int]] = {}
    train = Stack.train

    def watched(stack: Stack, jobs: Sequence[Job]) -> list[Vector]:
        for job in jobs:
            rows = (
                stack._of(job.device, job.seen)[1][:, 0] * stack._frozen["target_scale"] + stack._frozen["target_mean"]
            )
            np.testing.assert_allclose(rows, stream.flow.rows(job.device, job.seen).y, rtol=1e-5)
            seen.setdefault(job.device, []).append(job.seen)
        return train(stack, jobs)

    monkeypatch.setattr(Stack, "train", watched)
    run(stream, DAY + 600)
    first = stream.flow.slots(0.0)
    assert all(sorted(set(slots)) == [first + 3 * place for place in range(9)] for slots in seen.values())


def test_result_does_not_depend_on_workers() -> None:
    one, two = (run(energy(8, seed=0, window=48, drift=Drift(DAY / 2)), workers=workers) for workers in (1, 2))
    for name, array in one.parameters.items():
        np.testing.assert_array_equal(array, two.parameters[name])
    np.testing.assert_array_equal(one.metrics["rmse"], two.metrics["rmse"])
    np.testing.assert_array_equal(one.trainings_of, two.trainings_of)


def test_evaluation_follows_the_concept_and_the_fleet_recovers() -> None:
    """Machines are slowed down on day 3. Until then nothing is as it were otherwise; a day of the new is not enough."""
    calm, drifting = (
        run(
            vibration(30, seed=1, faulty=1.0, interval=HOUR, window=32, fresh=2, drift=drift),
            days * DAY,
            every=DAY / 2,
            strategy=midge.balanced(4, pace=midge.Pace(interval=2 * HOUR)),
        )
        for drift, days in ((None, 3), (Drift(3 * DAY, over=0.0), 6))
    )
    until = np.flatnonzero(calm.times < 3 * DAY)
    np.testing.assert_array_equal(calm.metrics["accuracy"][until], drifting.metrics["accuracy"][until])
    accuracy, at = drifting.metrics["accuracy"], len(until)
    assert accuracy[at] < accuracy[at - 1] - 0.05, "nobody notices"
    assert accuracy[-3:].mean() > accuracy[at] + 0.1, "nobody learns"


def test_evaluations_tell_each_class() -> None:
    found = run(vibration(4, seed=0, window=16), HOUR, every=HOUR)
    names = ("healthy", "outer race", "inner race", "ball")
    assert tuple(found.metrics) == ("accuracy", *names)
    recalls = [found.metrics[name] for name in names]
    np.testing.assert_allclose(found.metrics["accuracy"], np.mean(recalls, axis=0))


def test_each_name_is_a_device_that_learns(tmp_path: Path) -> None:
    """A week of it as a set that stands still, and the same written to a file and read again."""
    for kind, task in (("vibration", "classification"), ("energy", "regression")):
        data = load(kind, devices=3, seed=4)
        assert (data.task, len(data.devices)) == (task, 3)
        assert len(data.pooled()) == 3 * 168
        np.testing.assert_array_equal(data.test.x, a_week(kind, 3, 4).test.x)
        path = tmp_path / f"{kind}.npz"
        assert write([kind, "--devices", "3", "--hours", "40", "--seed", "4", "--clean", "--out", str(path)]) == 0
        again = load(path)
        assert {len(rows) for rows in again.devices.values()} == {41 if kind == "energy" else 81}
        assert (again.task, again.names or None) == (task, data.names or None)
        np.testing.assert_array_equal(
            again.test.y, (vibration if kind == "vibration" else energy)(3, seed=4).at(40 * HOUR).test.y
        )


def test_file_is_refused_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert write(["energy", "--devices", "0", "--out", str(tmp_path / "x.npz")]) == 2
    assert "at least 1 device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        write(["energy", "--hours", "0", "--out", str(tmp_path / "x.npz")])
    assert "must be above 0" in capsys.readouterr().err


def test_command_simulates_sensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--devices", "12", "--days", "1", "--model", "linear", "--json", "--name", "x"]
    assert main(["fleet", "--virtual", "--data", "energy", "--drift", "0.5", "--fresh", "6", *options]) == 0
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert outcome["devices"] == 12 and outcome["rmse"] < 1
    assert "--data energy --model linear --drift 0.5 --fresh 6" in (tmp_path / "runs/x/report.html").read_text()
    assert main(["fleet", "--virtual", "--drift", "0.5", *options]) == 2
    assert "use vibration or energy, not digits" in capsys.readouterr().err
