"""Torch modules as trainers, and the NumPy models held against torch."""

import warnings
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.fit import Fit, TrainingPlan
from midge.iot_client.training.numpy_models import MLP, Linear, Logistic
from midge.wire.messages import Plan
from tests import needs

torch = needs.module("torch", "torch")
nn = torch.nn

from midge.iot_client.training.torch_trainer import (  # noqa: E402 (after the check that there is a torch)
    ImageCNN,
    Normalised,
    TorchMLP,
    WindowCNN,
    fit_torch,
    load,
    state,
    torch_trainer,
)

pytestmark = pytest.mark.torch

MODELS = [
    MLP(12, (9, 6), 4),
    MLP(12, (9,), 4, channels=1),
    Linear(12, outputs=3),
    MLP(12, (9, 6), 1, "regression"),
    Linear(12, outputs=1, task="regression"),
    Logistic(12),
    Autoencoder(12, (6, 3, 6)).net,
]


def twins(model: MLP) -> tuple[TorchMLP, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A torch module, its parameters with normalisation, rows with missing values, and targets."""
    rng = np.random.default_rng(5)
    x = rng.normal(2, 3, (60, model.inputs)).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = np.nan
    targets: dict[str, np.ndarray] = {
        "classification": rng.integers(0, model.outputs, 60),
        "binary": rng.integers(0, 2, 60),
        "regression": rng.normal(50, 9, 60),
        "reconstruction": x,
    }
    y = targets[model.task]
    parameters = model.initial(7)
    parameters["input_mean"] += 2
    parameters["input_scale"] *= 3
    if model.task == "regression":
        parameters["target_mean"] += 50
        parameters["target_scale"] *= 9
    twin = TorchMLP(model.inputs, model.hidden, model.outputs, model.task, model.channels)
    load(twin, parameters)
    return twin, parameters, x, y


@pytest.mark.parametrize("model", MODELS)
def test_names_shapes_order_and_roles_are_torchs(model: MLP) -> None:
    twin, parameters, _, _ = twins(model)
    arrays, roles = state(twin)
    assert [(name, array.shape, array.dtype) for name, array in arrays.items()] == [
        (name, array.shape, array.dtype) for name, array in parameters.items()
    ]
    assert {name for name, role in roles.items() if role == "trained"} == {
        name for name in parameters if name.startswith("layers.")
    }
    assert set(roles.values()) == {"trained", "frozen"}


@pytest.mark.parametrize("model", MODELS)
def test_predictions_and_gradients_are_torchs(model: MLP) -> None:
    twin, parameters, x, y = twins(model)
    with torch.no_grad():
        expected = twin(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.predict(parameters, x), expected, rtol=1e-5, atol=1e-5)

    target = torch.from_numpy(y.astype(np.int64 if model.task == "classification" else np.float32))
    loss = twin.loss(torch.from_numpy(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    mine, gradients = model.loss_and_gradients(parameters, x, y)
    assert mine == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("proximal", [0.0, 0.5])
def test_twenty_steps_are_torchs(model: MLP, proximal: float) -> None:
    twin, parameters, x, y = twins(model)
    plan = Plan(local_steps=20, proximal=proximal, seed=11)
    mine = model.trainer(x, y, seed=2)(parameters, plan)
    fit = fit_torch(twin, x, y, plan, seed=2)
    assert (mine.examples, mine.steps) == (fit.examples, fit.steps) == (60, 20)
    assert mine.metrics["loss"] == pytest.approx(fit.metrics["loss"], rel=1e-4)
    for name, array in mine.parameters.items():
        np.testing.assert_allclose(array, fit.parameters[name], rtol=1e-4, atol=1e-5)
    assert not np.array_equal(mine.parameters["layers.0.weight"], parameters["layers.0.weight"])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (ImageCNN((28, 28), 3), (28, 28)),
        (ImageCNN((9, 10, 3), 3), (9, 10, 3)),
        (WindowCNN((50, 4), 3), (50, 4)),
        (WindowCNN((50, 4), 1, "regression"), (50, 4)),
    ],
)
def test_the_convolutional_models_learn(module: Normalised, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 48)
    x = (rng.normal(0, 1, (48, *shape)) + y.reshape(-1, *[1] * len(shape))).astype(np.float32)
    x[0] = np.nan
    first = fit_torch(module, x, y, Plan(local_steps=5, learning_rate=0.05)).metrics["loss"]
    fit_torch(module, x, y, Plan(epochs=15, learning_rate=0.05))
    last = fit_torch(module, x, y, Plan(local_steps=5, learning_rate=0.05)).metrics["loss"]
    assert last < 0.7 * first


def test_images_and_windows_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="4 × 4"):
        ImageCNN((3, 28))
    with pytest.raises(ValueError, match="4 time steps"):
        WindowCNN((3, 6))


class Net(nn.Module):  # type: ignore[name-defined,misc]
    """A user's module with all sorts of state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("input_mean", torch.ones(3))


def nudge(model: Net, plan: TrainingPlan) -> int:
    """A user's loop: one step up, of everything that can move."""
    assert model.training
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(plan.learning_rate or 1.0)
        for buffer in model.buffers():
            buffer.add_(1)
    model.eval()
    return 12


def test_a_users_function_becomes_a_trainer() -> None:
    trainer = torch_trainer(Net())(nudge)
    assert trainer.roles["steps"] == trainer.roles["input_mean"] == "frozen"
    assert (trainer.roles["average"], trainer.roles["body.weight"]) == ("averaged", "trained")
    start, _ = state(Net())
    for array in start.values():
        array.flags.writeable = False
    fit = trainer(start, Plan(learning_rate=0.5))
    fit = trainer(start, Plan(learning_rate=0.5))  # from the parameters given, not from where the module stood
    assert (fit.examples, fit.steps, fit.metrics) == (12, 0, {})
    np.testing.assert_allclose(fit.parameters["body.weight"] - start["body.weight"], 0.5, rtol=1e-5)
    np.testing.assert_array_equal(fit.parameters["average"], start["average"] + 1)
    np.testing.assert_array_equal(fit.parameters["input_mean"], start["input_mean"])
    np.testing.assert_array_equal(fit.parameters["steps"], start["steps"])


def test_parameters_can_be_frozen_by_name() -> None:
    trainer = torch_trainer(Net(), frozen=("body.*",))(nudge)
    assert trainer.roles["body.bias"] == "frozen"
    assert not trainer.module.body.weight.requires_grad
    start, _ = state(Net())
    fit = trainer(start, Plan())
    np.testing.assert_array_equal(fit.parameters["body.weight"], start["body.weight"])
    assert not np.array_equal(fit.parameters["head.weight"], start["head.weight"])


def test_what_the_function_may_return() -> None:
    start, _ = state(Net())
    fit = torch_trainer(Net())(lambda _model, _plan: (5, {"loss": 1}))(start, Plan())
    assert (fit.examples, fit.metrics) == (5, {"loss": 1.0})
    fit = torch_trainer(Net())(lambda _model, _plan: Fit({}, 6, 7))(start, Plan())
    assert (fit.examples, fit.steps, set(fit.parameters)) == (6, 7, set(start))
    for wrong in (None, True, "5", (5,)):
        function: Any = Mock(return_value=wrong)
        with pytest.raises(TypeError, match="return the number of examples"):
            torch_trainer(Net())(function)(start, Plan())


def test_parameters_that_do_not_fit_are_named() -> None:
    start, _ = state(Net())
    del start["body.bias"]
    start["extra"] = np.zeros(1)
    start["head.weight"] = np.zeros((2, 9))
    with pytest.raises(ValueError, match=r"body.bias is missing; extra is unexpected; head.weight is \(2, 9\), not"):
        torch_trainer(Net())(nudge)(start, Plan())


def test_batch_norm_warns() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.warns(UserWarning, match="'1' is a BatchNorm.*GroupNorm"):
        _, roles = state(module)
    assert roles["1.running_mean"] == "averaged"
    assert roles["1.num_batches_tracked"] == "frozen"
    with pytest.warns(UserWarning, match="BatchNorm"):
        torch_trainer(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state(ImageCNN())
