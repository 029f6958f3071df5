"""The convolutional model in NumPy: its gradients, its twin in torch, and threads that train at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_cnn import CNN
from midge.wire.messages import Plan
from tests import needs
from tests.learning.finite_differences import gradients

GREY = CNN((8, 8), 3, width=4)
ODD = CNN((9, 11, 3), 4, width=4)
REGRESSION = CNN((6, 8), 1, "regression", 8)


def problem(net: CNN, rows: int = 40) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters, and images with an even background: there, pooling meets values that are equal."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (rows, *net.shape)).astype(np.float32)
    x[:, :5] = 1
    parameters = net.initial(1)
    parameters["input_mean"] += 3
    parameters["input_scale"] *= 2
    for name in parameters:
        if name in ("layers.1.weight", "layers.5.weight"):
            parameters[name] += rng.normal(0, 0.7, parameters[name].shape).astype(np.float32)  # some are negative
    if net.task == "regression":
        parameters["target_mean"] += 3
        return parameters, x, x.mean(axis=(1, 2))
    return parameters, x, rng.integers(0, net.outputs, rows)


@pytest.mark.parametrize("net", [GREY, ODD, REGRESSION])
def test_gradients_are_those_of_finite_differences(net: CNN) -> None:
    """In float64, of places of which two maxima are not near each other."""
    parameters, x, y = problem(net, 6)
    for found, expected in gradients(net, parameters, x, y, change=1e-4):
        assert found == pytest.approx(expected, rel=2e-2, abs=1e-4)


@pytest.mark.torch
@needs.torch
@pytest.mark.parametrize("net", [GREY, ODD, REGRESSION])
def test_predictions_and_twenty_steps_are_torchs(net: CNN) -> None:
    """Within 1e-5: the order of float32 sums depends on the processor.

    Seen to fail where pooling gave the second of a pair nothing, and with another epsilon.
    """
    import torch

    from midge.iot_client.training.torch_trainer import (
        ImageCNN,
        TorchTrainer,
        fit_torch,
        predict,
        state,
    )

    parameters, x, y = problem(net)
    module = ImageCNN(net.image, net.outputs, net.task, net.width)
    assert {name: array.shape for name, array in state(module)[0].items()} == {
        name: array.shape for name, array in parameters.items()
    }
    assert list(state(module)[0]) == list(parameters)
    np.testing.assert_allclose(net.predict(parameters, x), predict(module, parameters, x), atol=2e-6)
    plan, recipe = Plan(seed=3, proximal=0.1), Recipe(0.05, local_steps=20)
    twin = TorchTrainer(module, lambda model, plan: fit_torch(model, x, y, plan, seed=2, recipe=recipe))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = twin(parameters, plan).parameters
    torch.set_num_threads(threads)
    found = net.trainer(x, y, seed=2, recipe=recipe)(parameters, plan).parameters
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5)


def test_threads_that_train_at_the_same_time_do_not_share_memory() -> None:
    """Seen to fail where all threads had the same workspace."""
    parameters, x, y = problem(GREY, 200)
    train = GREY.trainer(x, y, recipe=Recipe(0.05, local_steps=60))
    alone = [train(parameters, Plan(seed=seed)).parameters for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda seed: train(parameters, Plan(seed=seed)).parameters, range(8))
    for one, other in zip(alone, together, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 × 4 pixels, not 3 × 8"):
        CNN((3, 8))
    with pytest.raises(ValueError, match="does not reconstruct"):
        CNN((8, 8), 64, "reconstruction")
