from itertools import count
from pathlib import Path

import numpy as np
import pytest

from midge.sensor_fleet.baselines import DEVICES, Baselines
from midge.sensor_fleet.models import FleetModel
from midge.sensor_fleet.setting import Setting


@pytest.fixture(scope="module")
def digits() -> Baselines:
    setting = Setting(devices=6)
    data, model = setting.load()
    return Baselines(data, model, setting.plan(), trainings=120, clock=lambda: 0.0)


def test_pooled_is_above_alone(digits: Baselines) -> None:
    found = digits.measure(digits.model.initial)
    assert found["metric"] == "accuracy"
    assert found["central"]["value"] > 0.93
    assert found["central"]["steps"] == found["central"]["steps_asked"] >= 120 * 20
    assert found["alone"]["mean"] < found["central"]["value"] - 0.1
    assert set(found["alone"]["values"]) == set(digits.data.devices)
    assert found["own"]["mean"] < 0.3, "a model that nobody trained"


def test_the_same_seed_gives_the_same(digits: Baselines) -> None:
    assert digits.alone() == digits.alone()


def test_no_model_no_score_on_own_rows(digits: Baselines) -> None:
    assert digits.measure(None)["own"] is None


def test_stops_when_the_time_is_over(digits: Baselines) -> None:
    ticking = count(step=10)
    late = Baselines(digits.data, digits.model, digits.plan, trainings=120, clock=lambda: float(next(ticking)))
    central, alone = late.central(), late.alone()
    assert central["value"] is not None
    assert 0 < central["steps"] < central["steps_asked"]
    assert len(alone["values"]) == 1
    assert alone["of"] == 6


def test_of_a_large_fleet_some_train_alone() -> None:
    setting = Setting(devices=30)
    data, model = setting.load()
    alone = Baselines(data, model, setting.plan(), clock=lambda: 0.0).alone()
    assert len(alone["values"]) == DEVICES
    assert alone["of"] == 30


def test_regression_is_measured_by_its_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    np.savez(tmp_path / "line.npz", x=x, y=(x @ np.arange(5) * 10 + 50).astype(np.float32))
    setting = Setting(data=str(tmp_path / "line.npz"), devices=4)
    data, model = setting.load()
    found = Baselines(data, model, setting.plan(), trainings=100, clock=lambda: 0.0).measure(model.initial)
    assert found["metric"] == "rmse"
    assert found["central"]["value"] < found["alone"]["mean"] < found["own"]["mean"]


def test_what_is_not_finite_is_none(digits: Baselines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FleetModel, "evaluate", lambda *_: {"accuracy": float("nan")})
    found = digits.own(digits.model.initial)
    assert found["mean"] is None
    assert found["values"] == dict.fromkeys(digits.data.devices)
    assert digits.central()["value"] is None
