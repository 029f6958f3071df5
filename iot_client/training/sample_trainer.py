"""Training and predicting on samples with the models in plain NumPy, without a line of the user's own.

Which model it is, the federation's parameters say: names and shapes are those of `iot_client.training.numpy_models`.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.samples import Samples
from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan
from midge.iot_client.training.numpy_models import MLP
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.inputs import width

Model = Literal["auto", "linear", "softmax", "mlp"]


def model_of(parameters: Parameters) -> MLP:
    """The model that parameters belong to.

    Raises:
        TrainerError: it is none of ours.
    """
    shapes: list[tuple[int, ...]] = []
    while (weight := parameters.get(f"layers.{2 * len(shapes)}.weight")) is not None:
        shapes.append(np.shape(weight))
    if not shapes or "input_mean" not in parameters:
        raise TrainerError(
            "the federation's model is none of midge's own in NumPy, whose tensors are named layers.0.weight and so on "
            f"beside input_mean; it has {', '.join(sorted(parameters))}. Write a trainer for it: midge.Device(train=…)."
        )
    return MLP(
        inputs=shapes[0][1],
        hidden=tuple(shape[0] for shape in shapes[:-1]),
        outputs=shapes[-1][0],
        task="regression" if "target_mean" in parameters else "classification",
        channels=np.size(parameters["input_mean"]),
    )


class SampleTrainer:
    """A device's trainer on its samples: an instance is what `Device(train=…)` takes, its `predict` what predicts.

    Args:
        samples: the rows.
        model: what the owner takes the federation's model to be: a mistake is told and not trained.
        recipe: how to train where the plan does not say.
        seed: chance, another for each device.
    """

    def __init__(self, samples: Samples, *, model: Model = "auto", recipe: Recipe | None = None, seed: int = 0) -> None:
        self.samples, self._model, self._recipe, self._seed = samples, model, recipe, seed

    def __call__(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        """Mini-batch SGD over all rows that are there.

        Raises:
            TrainerError: the federation's model is another than the samples are for.
        """
        net = self._checked(parameters)
        x, y = self.samples.arrays()
        if not len(x):
            raise TrainerError("there are no samples yet: give the device the condition enough_new(samples, rows).")
        if net.task == "classification" and y.max() >= net.outputs:
            raise TrainerError(
                f"a label is class {y.max()}; the federation's model has classes 0 to {net.outputs - 1}."
            )
        fit = net.trainer(x, y, seed=self._seed, recipe=self._recipe)(parameters, plan)
        return Fit(fit.parameters, fit.examples, fit.steps, {**fit.metrics, "clipped": float(self.samples.clipped)})

    def predict(self, parameters: Parameters, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Values in units of the label, or numbers of classes: of shape (n,) for rows, a scalar array for one row."""
        net, rows = self._checked(parameters), np.asarray(x, np.float32)
        found = net.predict(parameters, np.atleast_2d(rows))
        if net.task == "classification":
            found = found.argmax(axis=1)
        return found if rows.ndim > 1 else found[0]

    def _checked(self, parameters: Parameters) -> MLP:
        net = model_of(parameters)
        names = self.samples.features
        if net.inputs != len(names):
            raise TrainerError(
                f"{width(net.inputs, names)}. Give the model's inputs in its order: --features, or "
                "midge.Samples(features=…)."
            )
        if net.task != self.samples.kind:
            raise TrainerError(f"the federation's model is for {net.task}; the samples are for {self.samples.kind}.")
        if self._model != "auto" and (self._model == "mlp") != bool(net.hidden):
            raise TrainerError(f"the federation's model has hidden layers {net.hidden}: it is no {self._model} model.")
        return net
