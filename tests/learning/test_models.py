"""The models of a fleet: statistics without pooling, both engines, and that they learn."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from midge.iot_client.training.fit import Parameters
from midge.sensor_fleet.data import FleetData, Rows, load
from midge.sensor_fleet.models import Engine, FleetModel, Name, model_for
from midge.wire.messages import Plan
from midge.wire.moments import pool
from midge.wire.schema import Schema
from tests import needs

RNG = np.random.default_rng(0)
N = 240


def make(folder: Path, x: np.ndarray, y: np.ndarray) -> FleetData:
    path = folder / "set.npz"
    np.savez(path, x=x, y=y, unit=np.arange(len(y)) % 4)
    return load(path)


@pytest.fixture(params=["table", "image", "colours", "window", "regression"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> FleetData:
    """Small sets of each kind whose y shows in the mean of x."""
    y = RNG.integers(0, 3, N)
    shapes = {"table": (6,), "image": (8, 8), "colours": (8, 9, 3), "window": (30, 2), "regression": (6,)}
    x = RNG.normal(0, 0.5, (N, *shapes[request.param])) + y.reshape(-1, *[1] * len(shapes[request.param]))
    match request.param:
        case "image" | "colours":
            x = np.clip(x * 60 + 60, 0, 255).astype(np.uint8)
        case "regression":
            return make(tmp_path, 1000 + 10 * x, 50 + 20.0 * y)
        case _:
            x[0] = np.nan
    return make(tmp_path, x, y)


def normalised(model: FleetModel, data: FleetData) -> dict[str, np.ndarray]:
    """The initial parameters with the fleet's statistics, pooled from the devices' own."""
    found = [model.moments(rows) for rows in data.devices.values()]
    return model.initial | model.freeze({name: pool([part[name] for part in found]) for name in model.channels})


def improves(model: FleetModel, data: FleetData, start: Parameters, end: Parameters) -> None:
    before, after = (model.evaluate(parameters, data.test) for parameters in (start, end))
    if data.task == "classification":
        assert after["accuracy"] > max(0.8, before["accuracy"])
    else:
        assert after["rmse"] < 0.6 * before["rmse"]


@pytest.mark.parametrize("name", [None, "linear"])
def test_dense_models_learn_from_pooled_statistics(data: FleetData, name: None) -> None:
    model = model_for(data, name)
    start = normalised(model, data)
    whole = model.freeze(model.moments(data.pooled()))
    assert set(whole) == {name for name, role in model.roles.items() if role == "frozen"}
    for tensor, array in whole.items():
        np.testing.assert_allclose(start[tensor], array, rtol=1e-4, atol=1e-4)
        assert array.shape == model.initial[tensor].shape
    end = model.trainer(data.pooled())(start, Plan(epochs=20)).parameters
    improves(model, data, start, end)
    Schema.of(model.initial, model.roles).check(end)


def test_channels_are_those_of_the_statistics(data: FleetData) -> None:
    model = model_for(data)
    found = model.moments(data.test)
    assert model.channels == {name: moments.count.size for name, moments in found.items()}
    assert ("target" in found) == (data.task == "regression")
    if data.kind == "image":
        assert model.channels == {"input": 1}


@pytest.mark.torch
@needs.torch
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_both_engines_give_the_same_fit(data: FleetData, name: Name) -> None:
    model = model_for(data, name if data.kind == "image" else None)
    start = normalised(model, data)
    for rows in data.devices.values():
        plain, twin = (model.trainer(rows, engine, seed=4)(start, Plan(seed=5)) for engine in ("numpy", "torch"))
        assert list(plain.parameters) == list(twin.parameters)
        for tensor, array in plain.parameters.items():
            np.testing.assert_allclose(array, twin.parameters[tensor], rtol=1e-3, atol=1e-4 if name == "cnn" else 1e-5)


@pytest.mark.parametrize("engine", ["numpy", pytest.param("torch", marks=[pytest.mark.torch, needs.torch])])
def test_convolutional_models_learn(data: FleetData, engine: Engine) -> None:
    torch = engine == "torch"
    if data.kind == "table":
        with pytest.raises(ValueError, match="needs images or windows"):
            model_for(data, "cnn", torch=torch)
        return
    if data.kind == "window" and not torch:
        with pytest.raises(ValueError, match="of windows needs torch on every device"):
            model_for(data, "cnn")
        return
    model = model_for(data, "cnn", torch=torch)
    again = model_for(data, "cnn", torch=torch)
    for name, array in model.initial.items():
        np.testing.assert_array_equal(array, again.initial[name])
    start = normalised(model, data)
    trainer = model.trainer(data.pooled(), engine)
    improves(model, data, start, trainer(start, Plan(epochs=25)).parameters)
    if data.kind == "window":
        with pytest.raises(ValueError, match="runs on torch only"):
            model.trainer(data.test, "numpy")


@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32), (28, 28, 1), (1, 28, 28)])
def test_images_have_their_colours_last_or_first(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Seen to fail where (3, 32, 32) was 3 rows of 32 pixels with 32 colours."""
    x = RNG.integers(0, 256, (N, *shape), np.uint8)
    data = make(tmp_path, x, RNG.integers(0, 3, N))
    channels = min(shape)
    assert data.shape == (max(shape), max(shape), channels)
    first = next(iter(data.devices.values())).x[0]
    owned = [row for number, row in enumerate(x) if number % 4 == 0]
    if shape[0] == channels:
        owned = [np.moveaxis(row, 0, 2) for row in owned]
    assert any(np.array_equal(first, row) for row in owned)
    model = model_for(data, "cnn")
    fit = model.trainer(data.test)(normalised(model, data), Plan(local_steps=2))
    Schema.of(model.initial, model.roles).check(fit.parameters)


def test_what_cannot_be_is_told(data: FleetData) -> None:
    with pytest.raises(ValueError, match="unknown model 'tree'"):
        model_for(data, "tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no rows"):
        model_for(data).evaluate({}, Rows(data.test.x[:0], data.test.y[:0]))


def test_without_torch_the_dense_models_work_and_say_what_does_not(
    data: FleetData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "midge.iot_client.training.torch_trainer", raising=False)
    model = model_for(data)
    model.trainer(data.test)(model.initial, Plan())
    with pytest.raises(ValueError, match=r"pip install .*torch"):
        model.trainer(data.test, "torch")


def test_a_model_that_diverged_is_evaluated_all_the_same(data: FleetData) -> None:
    model = model_for(data)
    broken = {name: np.full_like(array, 1e38) for name, array in model.initial.items()}
    assert set(model.evaluate(broken, data.test)) in ({"accuracy"}, {"rmse"})


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_regression_on_many_correlated_sensors_stays_stable(name: Literal["linear", "mlp"], tmp_path: Path) -> None:
    cause = RNG.normal(size=(N, 1))
    data = make(tmp_path, cause + 0.1 * RNG.normal(size=(N, 300)), 100 + 10 * cause[:, 0])
    model = model_for(data, name)
    start = normalised(model, data)
    improves(model, data, start, model.trainer(data.pooled())(start, Plan(epochs=30)).parameters)
