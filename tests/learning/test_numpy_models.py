"""The NumPy models, and how a plan is followed."""

import numpy as np
import pytest

from midge.iot_client.training.fit import Fit, Recipe
from midge.iot_client.training.numpy_models import FROZEN, MLP, Linear, Task, standardise
from midge.wire.messages import Plan
from tests.learning.finite_differences import gradients

ROWS = 40


def problem(model: MLP, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (ROWS, model.inputs)).astype(np.float32)
    if model.task == "classification":
        return x, (x[:, 0] > 3).astype(np.uint8)
    return x, 100 + 10 * x[:, 0]


def parameters_of(model: MLP) -> dict[str, np.ndarray]:
    parameters = model.initial(1)
    parameters["input_mean"] += 3
    parameters["input_scale"] *= 2
    if model.task == "regression":
        parameters["target_mean"] += 130
        parameters["target_scale"] *= 20
    return parameters


SMALL = MLP(inputs=5, hidden=(7,), outputs=2)
REGRESSION = MLP(inputs=5, hidden=(7,), outputs=1, task="regression")


@pytest.mark.parametrize("model", [SMALL, REGRESSION, Linear(5, outputs=2), MLP(5, (4, 3), 2, channels=1)])
def test_gradients_are_those_of_finite_differences(model: MLP) -> None:
    for found, expected in gradients(model, parameters_of(model), *problem(model), change=1e-3):
        assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("model", [SMALL, REGRESSION])
def test_training_learns_and_leaves_the_frozen_tensors_alone(model: MLP) -> None:
    x, y = problem(model)
    start = parameters_of(model)
    before = {name: array.copy() for name, array in start.items()}
    fit = model.trainer(x, y)(start, Plan(epochs=30, seed=3))
    assert (fit.examples, fit.steps) == (ROWS, 30 * ROWS // 16)
    assert model.loss_and_gradients(fit.parameters, x, y)[0] < model.loss_and_gradients(start, x, y)[0] * 0.6
    for name, array in fit.parameters.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, start[name]) == (name in FROZEN)
        np.testing.assert_array_equal(start[name], before[name])


def test_the_same_seed_gives_the_same_fit_and_another_does_not() -> None:
    x, y = problem(SMALL)
    start = parameters_of(SMALL)
    weights = [
        SMALL.trainer(x, y, seed=seed)(start, Plan(seed=plan)).parameters["layers.0.weight"]
        for seed, plan in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert not np.array_equal(weights[0], weights[3])


def test_the_proximal_term_holds_the_model_near_its_start() -> None:
    x, y = problem(SMALL)
    start = parameters_of(SMALL)
    moved = [
        np.linalg.norm(
            SMALL.trainer(x, y)(start, Plan(local_steps=100, proximal=rho)).parameters["layers.0.weight"]
            - start["layers.0.weight"]
        )
        for rho in (0.0, 0.1, 2.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


def test_missing_values_count_as_the_mean() -> None:
    parameters = parameters_of(SMALL)
    x = np.full((1, 5), 3, np.float32)
    odd = np.array([[np.nan, np.inf, -np.inf, 3, 1e300]])
    np.testing.assert_array_equal(standardise(odd, parameters), np.zeros((1, 5)))
    np.testing.assert_array_equal(SMALL.predict(parameters, odd), SMALL.predict(parameters, x))


def test_regression_predicts_in_units_of_y() -> None:
    x, y = problem(REGRESSION)
    fit = REGRESSION.trainer(x, y)(parameters_of(REGRESSION), Plan(epochs=200))
    prediction = REGRESSION.predict(fit.parameters, x)
    assert prediction.shape == (ROWS,)
    assert np.sqrt(np.mean((prediction - y) ** 2)) < 5


def test_a_training_that_diverges_says_no_loss() -> None:
    x, y = problem(REGRESSION)
    fit = REGRESSION.trainer(x, y)(parameters_of(REGRESSION), Plan(learning_rate=1e6, local_steps=50))
    assert fit.metrics == {}
    assert not np.isfinite(fit.parameters["layers.0.weight"]).all()


def test_a_plan_goes_before_the_recipe() -> None:
    recipe = Recipe(learning_rate=0.5, batch_size=4, local_steps=3)
    assert recipe.under(Plan()) == recipe
    assert recipe.under(Plan(learning_rate=0.1, proximal=0.2)) == Recipe(0.1, 4, 3, 0.2)
    assert recipe.under(Plan(epochs=2)).epochs == 2
    assert recipe.under(Plan(epochs=2, local_steps=7)) == Recipe(0.5, 4, 7)


@pytest.mark.parametrize(("rows", "size"), [(17, 16), (5, 16), (32, 16), (1, 1)])
def test_batches_are_equally_large_and_pass_over_all_rows(rows: int, size: int) -> None:
    batches = list(Recipe(batch_size=size, epochs=4).batches(rows, np.random.default_rng(0)))
    assert {len(batch) for batch in batches} == {min(size, rows)}
    counts = np.bincount(np.concatenate(batches), minlength=rows)
    assert counts.min() >= 4
    assert counts.max() <= 5


@pytest.mark.parametrize(("task", "outputs", "word"), [("regression", 2, "1 output"), ("classification", 2, "share 1")])
def test_a_model_that_cannot_be_is_refused(task: Task, outputs: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MLP(4, (), outputs, task, channels=3)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        SMALL.trainer(np.zeros((0, 5)), np.zeros(0))
    with pytest.raises(ValueError, match=r"not \(3, 5\)"):
        SMALL.trainer(np.zeros((3, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="negative"):
        Fit({}, -1)
