"""Gradients beside finite differences."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_models import Network


def gradients(
    model: Network, parameters: Mapping[str, npt.NDArray[Any]], x: Any, y: Any, *, change: float
) -> Iterator[tuple[float, float]]:
    """Of each trained tensor, the largest component of its gradient: by backpropagation, and by the loss in float64."""
    exact = {name: array.astype(np.float64) for name, array in parameters.items()}
    _, found = model.loss_and_gradients(exact, x, y)
    assert set(found) == {name for name in exact if name.startswith("layers.")}
    for name, gradient in found.items():
        place = np.unravel_index(np.argmax(np.abs(gradient)), gradient.shape)
        losses = []
        for step in (change, -change):
            moved = exact | {name: exact[name].copy()}
            moved[name][place] += step
            losses.append(model.loss_and_gradients(moved, x, y)[0])
        yield (losses[0] - losses[1]) / (2 * change), float(gradient[place])
