"""Training and prediction on samples with the models in plain NumPy, without user code.

The federation's parameters determine the model: names and shapes are those of `iot_client.training.numpy_models`.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.row_reader import Kind
from midge.iot_client.data.samples import Samples
from midge.iot_client.training.autoencoder import Autoencoder
from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan
from midge.iot_client.training.numpy_models import MLP, Task
from midge.iot_client.training.update_encoder import TrainerError
from midge.wire.inputs import width

Model = Literal["auto", "linear", "softmax", "mlp", "autoencoder"]


def model_of(parameters: Parameters, kind: Kind | None = None) -> MLP:
    """The model to which parameters belong.

    Args:
        parameters: of the federation.
        kind: of the samples: a model with as many outputs as inputs may reconstruct them, or classify.

    Raises:
        TrainerError: it is not one of ours.
    """
    shapes: list[tuple[int, ...]] = []
    while (weight := parameters.get(f"layers.{2 * len(shapes)}.weight")) is not None:
        shapes.append(np.shape(weight))
    if not shapes or "input_mean" not in parameters:
        raise TrainerError(
            "the federation's model is none of midge's own in NumPy, whose tensors are named layers.0.weight and so on "
            f"beside input_mean; it has {', '.join(sorted(parameters))}. Write a trainer for it: midge.Device(train=…)."
        )
    task: Task = "regression" if "target_mean" in parameters else "classification"
    if task == "classification" and shapes[-1][0] == 1:
        task = "binary"
    elif task == "classification" and kind == "reconstruction" and shapes[-1][0] == shapes[0][1]:
        task = "reconstruction"
    return MLP(
        inputs=shapes[0][1],
        hidden=tuple(shape[0] for shape in shapes[:-1]),
        outputs=shapes[-1][0],
        task=task,
        channels=np.size(parameters["input_mean"]),
    )


class SampleTrainer:
    """A device's trainer on its samples: an instance is for `Device(train=…)`, its method `predict` predicts.

    Args:
        samples: the rows.
        model: the expected model: if the federation's differs, training ends with an error.
        recipe: hyperparameters that the plan does not set.
        seed: different for each device.

    Examples:
        >>> samples = midge.Samples(None, ["speed"], label="power")
        >>> for speed in range(100):
        ...     _ = samples.observe([speed / 100], speed / 50)
        >>> model = midge.Linear(1, outputs=1, task="regression")
        >>> midge.SampleTrainer(samples)(model.initial(), midge.Plan()).examples
        100
    """

    def __init__(self, samples: Samples, *, model: Model = "auto", recipe: Recipe | None = None, seed: int = 0) -> None:
        self.samples, self._model, self._recipe, self._seed = samples, model, recipe, seed

    def __call__(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        """Mini-batch SGD over all rows.

        Raises:
            TrainerError: the federation's model does not fit the samples.
        """
        net = self._checked(parameters)
        x, y = self.samples.arrays()
        if not len(x):
            raise TrainerError("there are no samples yet: give the device the condition enough_new(samples, rows).")
        most = max(2, net.outputs)  # with one output, it is the probability of the second class
        if self.samples.kind == "classification" and y.max() >= most:
            raise TrainerError(f"a label is class {y.max()}; the federation's model has classes 0 to {most - 1}.")
        fit = net.trainer(x, y, seed=self._seed, recipe=self._recipe)(parameters, plan)
        return Fit(fit.parameters, fit.examples, fit.steps, {**fit.metrics, "clipped": float(self.samples.clipped)})

    def predict(self, parameters: Parameters, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Values in units of the label, or numbers of classes: of shape (n,) for rows, a scalar array for one row.

        Without a label, anomaly scores: the mean squared reconstruction error of each row, in the inputs' deviations.
        """
        net, rows = self._checked(parameters), np.asarray(x, np.float32)
        if net.task == "reconstruction":
            scores = Autoencoder(net.inputs, net.hidden).score(parameters, np.atleast_2d(rows))
            return scores if rows.ndim > 1 else scores[0]
        found = net.predict(parameters, np.atleast_2d(rows))
        if net.task == "classification":
            found = found.argmax(axis=1)
        elif net.task == "binary":
            found = (found > 0).astype(np.int64)
        return found if rows.ndim > 1 else found[0]

    def losses(self, parameters: Parameters, x: npt.ArrayLike, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The loss of each row, of shape (n,), by which two models are compared.

        A class is right or wrong (0 or 1). An error of a value is in deviations of the label, and does not matter below
        a thousandth of one; without a label it is the anomaly score.
        """
        net, found = self._checked(parameters), self.predict(parameters, x)
        if net.task == "reconstruction":
            return found
        if net.task != "regression":
            return np.asarray(found != y, np.float32)
        errors = np.asarray(np.abs(found - y) / parameters["target_scale"], np.float32)
        return np.maximum(errors, np.float32(1e-3))

    def _checked(self, parameters: Parameters) -> MLP:
        net = model_of(parameters, self.samples.kind)
        names = self.samples.features
        if net.inputs != len(names):
            raise TrainerError(
                f"{width(net.inputs, names)}. Give the model's inputs in its order: --features, or "
                "midge.Samples(features=…)."
            )
        if self.samples.kind == "reconstruction" and net.task != "reconstruction":
            raise TrainerError(
                f"the federation's model is for {net.task}; the samples have no label, and take one that has as many "
                f"outputs as inputs, such as midge.Autoencoder({net.inputs}). Name the label with --label otherwise."
            )
        if net.task == "reconstruction" and (not net.hidden or min(net.hidden) >= net.inputs):
            raise TrainerError(
                "the federation's model has no layer that is narrower than its inputs: it learns to copy them, and all "
                "looks normal."
            )
        if (net.task == "binary" and self.samples.kind != "classification") or (
            net.task not in ("binary", self.samples.kind)
        ):
            raise TrainerError(f"the federation's model is for {net.task}; the samples are for {self.samples.kind}.")
        if self._model not in ("auto", "autoencoder") and (self._model == "mlp") != bool(net.hidden):
            raise TrainerError(f"the federation's model has hidden layers {net.hidden}: it is no {self._model} model.")
        return net
