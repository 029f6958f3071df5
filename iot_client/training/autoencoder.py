"""An autoencoder in plain NumPy for anomaly detection.

It needs no labels. Rows pass through a narrow layer and are reconstructed from it; rows unlike those that were trained
on are reconstructed badly, and the reconstruction error is their score (Sakurada and Yairi, "Anomaly detection using
autoencoders with nonlinear dimensionality reduction", MLSDA 2014). The equivalent on torch is `TorchMLP(n, hidden, n,
"reconstruction")` of `iot_client.training.torch_trainer`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.fit import Parameters, Recipe, Trainer
from midge.iot_client.training.numpy_models import MLP, Array, standardise
from midge.wire.field_checks import Count, check_fields


@dataclass(frozen=True)
class Autoencoder:
    """A perceptron with a narrow layer that reconstructs its inputs, of shape (n, inputs).

    Examples:
        >>> model = midge.Autoencoder(8, hidden=(3,))
        >>> model.score(model.initial(seed=0), np.zeros((2, 8))).shape
        (2,)
    """

    inputs: Count
    hidden: tuple[Count, ...] = (16, 4, 16)
    """Widths of the hidden layers; the smallest is the bottleneck."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.hidden or min(self.hidden) >= self.inputs:
            raise ValueError(
                f"an autoencoder of {self.inputs} inputs needs a narrower hidden layer, and has {self.hidden}: else it "
                "learns to copy, and everything looks normal"
            )

    @cached_property
    def net(self) -> MLP:
        return MLP(self.inputs, self.hidden, self.inputs, "reconstruction")

    def initial(self, seed: int = 0) -> dict[str, Array]:
        """New parameters, with `input_mean` and `input_scale` for the federation's statistics."""
        return self.net.initial(seed)

    def reconstruct(self, parameters: Parameters, x: npt.ArrayLike) -> Array:
        """Reconstructed rows, of shape (n, inputs), in units of x."""
        return self.net.predict(parameters, x)

    def score(self, parameters: Parameters, x: npt.ArrayLike) -> Array:
        """Mean squared reconstruction error of each row, of shape (n,), in units of the inputs' deviations.

        A missing value counts as the mean of its channel.
        """
        error = self.net.output(parameters, x) - standardise(x, parameters)
        return np.asarray(np.mean(error * error, axis=1), np.float32)

    def trainer(self, x: npt.ArrayLike, *, seed: int = 0, recipe: Recipe | None = None) -> Trainer:
        """Mini-batch SGD on a device's own rows, taken to be normal.

        Raises:
            ValueError: there are no rows, or they are not of this many inputs.
        """
        return self.net.trainer(x, x, seed=seed, recipe=recipe)
