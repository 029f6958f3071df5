"""The autoencoder, and logistic regression: the trainers that the perceptron's tests do not reach."""

import numpy as np
import pytest

from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.numpy_models import MLP, Linear, Logistic
from midge.wire.messages import Plan
from midge.wire.moments import Moments

MODEL = Autoencoder(8, (3,))


def healthy(rows: int, seed: int) -> np.ndarray:
    """Eight sensors that two hidden causes move, far from zero and of different sizes."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, 8))
    return (1000 + (rng.normal(size=(rows, 2)) @ mixing + rng.normal(0, 0.05, (rows, 8))) * 10).astype(np.float32)


def trained(x: np.ndarray) -> dict[str, np.ndarray]:
    start = MODEL.initial(1)
    moments = Moments.of(x)
    start["input_mean"], start["input_scale"] = moments.mean.astype(np.float32), moments.scale().astype(np.float32)
    return dict(MODEL.trainer(x)(start, Plan(epochs=60)).parameters)


def test_what_was_never_seen_scores_higher_than_all_that_is_normal() -> None:
    parameters = trained(healthy(400, 0))
    normal, odd = healthy(200, 1), healthy(200, 2)
    odd[:, 3] += np.float32(30)  # within its own range, but not with the others
    scores = MODEL.score(parameters, normal)
    assert scores.shape == (200,) and scores.dtype == np.float32
    assert np.median(MODEL.score(parameters, odd)) > 3 * np.quantile(scores, 0.99)


def test_the_score_is_the_error_of_the_reconstruction_in_deviations() -> None:
    x = healthy(50, 3)
    parameters = trained(x)
    error = (MODEL.reconstruct(parameters, x) - x) / parameters["input_scale"]
    np.testing.assert_allclose(MODEL.score(parameters, x), np.mean(error**2, axis=1), rtol=1e-2)


def test_a_missing_value_counts_as_its_mean() -> None:
    x = healthy(400, 0)
    parameters = trained(x)
    gap, mean = healthy(1, 4), healthy(1, 4)
    gap[0, 2], mean[0, 2] = np.nan, parameters["input_mean"][2]
    np.testing.assert_allclose(MODEL.score(parameters, gap), MODEL.score(parameters, mean), rtol=1e-4)


@pytest.mark.parametrize("hidden", [(), (8,), (9, 10)])
def test_an_autoencoder_that_could_copy_is_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="narrower hidden layer"):
        Autoencoder(8, hidden)


def test_a_reconstruction_of_other_width_is_refused() -> None:
    with pytest.raises(ValueError, match="as many outputs"):
        MLP(4, (2,), 3, "reconstruction")


def test_logistic_regression_is_softmax_of_two_classes() -> None:
    """softmax((0, z)) is the logistic function of z: the same loss, whatever the logits' size."""
    x = np.random.default_rng(0).normal(0, 400, (64, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.uint8)
    logistic, softmax = Logistic(5), Linear(5, outputs=2)
    one = logistic.initial(3)
    two = dict(softmax.initial(3))
    two["layers.0.weight"] = np.concatenate([np.zeros((1, 5), np.float32), one["layers.0.weight"]])
    two["layers.0.bias"] = np.concatenate([np.zeros(1, np.float32), one["layers.0.bias"]])
    assert np.abs(logistic.predict(one, x)).max() > 100  # where exp alone would overflow
    with np.errstate(over="raise", invalid="raise"):
        loss, gradients = logistic.loss_and_gradients(one, x, y)
    expected, others = softmax.loss_and_gradients(two, x, y)
    assert loss == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradients["layers.0.weight"][0], others["layers.0.weight"][1], rtol=1e-4, atol=1e-4)


def test_logistic_regression_learns() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5, 0.0] > 0.3).astype(np.int64)
    model = Logistic(4)
    fit = model.trainer(x, y)(model.initial(), Plan(epochs=20))
    assert model.predict(fit.parameters, x).shape == (300,)
    assert np.mean((model.predict(fit.parameters, x) > 0) == y) > 0.95
