"""Models in plain NumPy for devices without torch: linear, logistic, softmax and a perceptron.

Names, shapes, order, loss and gradients are those of `TorchMLP` in `iot_client.training.torch_trainer`, so that devices
with and without torch train one model together. All arithmetic is float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from math import isfinite, prod, sqrt
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan
from midge.wire.field_checks import Count, check_fields
from midge.wire.schema import Vectors

Task = Literal["classification", "binary", "regression", "reconstruction"]
Array = npt.NDArray[np.float32]
FROZEN: Final = ("input_mean", "input_scale", "target_mean", "target_scale")
"""Normalisation tensors: set by the federation, and not trained."""
AT_ONCE: Final = 16
"""Maximum number of devices in a stack: with five thousand parameters each, it fits into a processor's cache."""


def standardise(x: npt.ArrayLike, parameters: Parameters) -> Array:
    """Inputs with mean 0 and deviation 1 in each channel (the last axis), and 0 for missing values."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite or exceeds float32 is missing, as NaN is
        z = np.asarray((np.asarray(x, np.float32) - parameters["input_mean"]) / parameters["input_scale"], np.float32)
    z[~np.isfinite(z)] = 0
    return z


Batch = tuple[Array, npt.NDArray[Any]]
"""The batch of a step of a stack, a row for each device: standardised inputs of shape (devices, batch, …), and targets
from `Network.targets`, of shape (devices, batch) or (devices, batch, outputs)."""


class Network(ABC):
    """A network trained by mini-batch SGD, with the same calls for one device and for a stack of devices."""

    task: Task

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each trained tensor by name, in order."""

    @property
    def at_once(self) -> int:
        """Maximum number of devices in a stack, so that it fits into a processor's cache."""
        return AT_ONCE

    @abstractmethod
    def _output(self, parameters: Mapping[str, Array], z: Array) -> Array:
        """Output of the last layer, of shape (devices, batch, outputs)."""

    @abstractmethod
    def _gradients(
        self,
        parameters: Mapping[str, Array],
        z: Array,
        targets: npt.NDArray[Any],
        sizes: Array,
        gradients: Mapping[str, Array],
        *,
        padded: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        """Write the gradient of each device's mean loss for each trained tensor; return the losses by row."""

    @cached_property
    def places(self) -> Mapping[str, slice]:
        """The slice of each trained tensor in a flat vector."""
        ends = accumulate(prod(shape) for shape in self.shapes.values())
        return {
            name: slice(end - prod(shape), end) for (name, shape), end in zip(self.shapes.items(), ends, strict=True)
        }

    def predict(self, parameters: Parameters, x: npt.ArrayLike) -> Array:
        """The model's output: for regression predictions of shape (n,) in units of y.

        For classification logits of shape (n, outputs), for binary of shape (n,); for reconstruction inputs of shape
        (n, inputs), in units of x.
        """
        output = self.output(parameters, x)
        match self.task:
            case "classification":
                return output
            case "binary":
                return output[:, 0]
            case "reconstruction":
                return np.asarray(output * parameters["input_scale"] + parameters["input_mean"], np.float32)
        prediction: Array = output[:, 0] * parameters["target_scale"] + parameters["target_mean"]
        return prediction

    def output(self, parameters: Parameters, x: npt.ArrayLike) -> Array:
        """Output of the last layer, of shape (n, outputs): still normalised for regression and reconstruction."""
        own = {name: np.asarray(parameters[name])[None] for name in self.shapes}
        output: Array = self._output(own, standardise(x, parameters)[None])[0]
        return output

    def loss_and_gradients(
        self, parameters: Parameters, x: npt.ArrayLike, y: npt.NDArray[Any]
    ) -> tuple[float, dict[str, Array]]:
        """Mean loss over the rows, and its gradient with respect to each trained tensor."""
        own = {name: np.asarray(parameters[name])[None] for name in self.shapes}
        gradients = {name: np.empty_like(array) for name, array in own.items()}
        z, target = standardise(x, parameters)[None], self.targets(parameters, y)[None]
        losses = self._gradients(own, z, target, np.array([[[len(y)]]], np.float32), gradients)
        return float(np.mean(losses)), {name: array[0] for name, array in gradients.items()}

    def trainer(
        self, x: npt.ArrayLike, y: npt.ArrayLike, *, seed: int = 0, recipe: Recipe | None = None
    ) -> Callable[[Parameters, TrainingPlan], Fit]:
        """A trainer by mini-batch SGD on a device's rows: x of shape (n, …), y of shape (n,), or x for reconstruction.

        The same seed, plan and parameters give the same fit. A training that diverges returns its result, without the
        loss among its metrics: the sender of an update checks for NaN in any case.

        Raises:
            ValueError: there are no rows, or x and y do not fit.
        """
        rows, targets = np.asarray(x), np.asarray(y)
        if rows.shape != (wanted := (len(targets), *self.shape)) or not len(targets):
            raise ValueError(f"x has shape {rows.shape}, not {wanted} with at least one row")
        defaults = recipe or Recipe()

        def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
            follow = defaults.under(plan)
            rng = np.random.default_rng((seed, plan.seed))
            batches = (
                (standardise(rows[batch], parameters)[None], self.targets(parameters, targets[batch])[None])
                for batch in follow.batches(len(rows), rng)
            )
            values = np.concatenate([np.ravel(parameters[name]) for name in self.places], dtype=np.float32)[None]
            sizes = [min(follow.batch_size, len(rows))]
            losses = [float(each.mean()) for each in self.descend(values, self.places, [follow], sizes, batches)]
            own = self.views(values, self.places)
            trained = {name: own[name][0] if name in own else np.array(array) for name, array in parameters.items()}
            loss = sum(losses) / len(losses)
            return Fit(trained, len(rows), len(losses), {"loss": loss} if isfinite(loss) else {})

        return train

    def targets(self, parameters: Parameters, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Labels unchanged; other targets as float32 with mean 0 and deviation 1, of the outputs' shape."""
        if self.task == "classification":
            return y
        if self.task == "reconstruction":
            return standardise(y, parameters)
        column = y.astype(np.float32)[:, None]
        return column if self.task == "binary" else (column - parameters["target_mean"]) / parameters["target_scale"]

    def views(self, values: Vectors, places: Mapping[str, slice]) -> dict[str, Array]:
        """The trained tensors of a stack of devices, of shape (devices, …), as views of its flat values."""
        return {name: values[:, places[name]].reshape(-1, *shape) for name, shape in self.shapes.items()}

    def descend(
        self,
        values: Vectors,
        places: Mapping[str, slice],
        recipes: Sequence[Recipe],
        sizes: Sequence[int],
        batches: Iterable[Batch],
    ) -> list[Array]:
        """Train a stack of devices in place, one step for each of `batches`; return the losses of each step.

        Args:
            values: of shape (devices, size), a flat vector for each device.
            places: the slice of each weight and bias in them.
            recipes: a learning rate and a proximal weight for each device.
            sizes: rows in each device's batches; the rest of a smaller batch is padding.
            batches: of all devices, or of the first ones once the others have done all their steps.
        """
        rates = np.array([recipe.learning_rate for recipe in recipes], np.float32)[:, None]
        pulls = np.array([recipe.proximal for recipe in recipes], np.float32)[:, None]
        counts = np.array(sizes, np.float32)[:, None, None]
        padded = None if min(sizes) == max(sizes) else np.arange(max(sizes)) >= np.array(sizes)[:, None]
        pulled, slopes, losses = pulls.any(), np.empty_like(values), []
        start, moved = (values.copy(), np.empty_like(values)) if pulled else (values, slopes)
        own, gradients = self.views(values, places), self.views(slopes, places)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for inputs, targets in batches:
                if (active := len(inputs)) < len(values):
                    values, slopes, start, moved = (each[:active] for each in (values, slopes, start, moved))
                    rates, pulls, counts = rates[:active], pulls[:active], counts[:active]
                    padded = None if padded is None else padded[:active]
                    own, gradients = self.views(values, places), self.views(slopes, places)
                losses.append(self._gradients(own, inputs, targets, counts, gradients, padded=padded))
                if pulled:
                    np.subtract(values, start, out=moved)
                    moved *= pulls
                    slopes += moved
                slopes *= rates
                values -= slopes
        return losses


@dataclass(frozen=True)
class MLP(Network):
    """A perceptron with ReLU between its layers; without hidden layers it is linear.

    Classification ends in softmax and cross-entropy, with integer labels from 0. Binary classification has one output,
    with the logistic function and cross-entropy, and labels 0 and 1. Regression has one output and the mean squared
    error of the normalised target; reconstruction has as many outputs as inputs, with the same loss.

    Examples:
        >>> model = midge.MLP(4, (8,), 3)
        >>> parameters = model.initial(seed=0)
        >>> fit = model.trainer(np.zeros((20, 4)), np.zeros(20, int))(parameters, midge.Plan())
        >>> model.predict(fit.parameters, np.zeros((2, 4))).shape
        (2, 3)
    """

    inputs: Count = 64
    hidden: tuple[Count, ...] = (64, 32)
    outputs: Count = 10
    task: Task = "classification"
    channels: Count | None = None
    """Channels of the normalisation: by default `inputs`, or 1 if all inputs share mean and scale."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.task in ("binary", "regression") and self.outputs != 1:
            raise ValueError(f"a model of task {self.task} has 1 output, not {self.outputs}")
        if self.task == "reconstruction" and self.outputs != self.inputs:
            raise ValueError(f"a model that reconstructs {self.inputs} inputs has as many outputs, not {self.outputs}")
        if self.channels not in (None, 1, self.inputs):
            raise ValueError(f"{self.inputs} inputs have {self.inputs} channels or share 1, not {self.channels}")

    @cached_property
    def layers(self) -> tuple[tuple[str, str, int, int], ...]:
        """Name of the weight, name of the bias, inputs and outputs of each layer; odd indices are the ReLUs."""
        sizes = (self.inputs, *self.hidden, self.outputs)
        return tuple(
            (f"layers.{2 * i}.weight", f"layers.{2 * i}.bias", fan_in, fan_out)
            for i, (fan_in, fan_out) in enumerate(pairwise(sizes))
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        pairs = (((weight, (m, n)), (bias, (m,))) for weight, bias, n, m in self.layers)
        return dict(chain.from_iterable(pairs))

    def initial(self, seed: int = 0) -> dict[str, Array]:
        """New parameters: weights and biases uniform within ±1/√inputs, as in torch; no normalisation yet."""
        rng = np.random.default_rng(seed)
        parameters = normalisation(self.channels or self.inputs, self.task)
        for weight, bias, fan_in, fan_out in self.layers:
            bound = 1 / sqrt(fan_in)
            parameters[weight] = rng.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32)
            parameters[bias] = rng.uniform(-bound, bound, fan_out).astype(np.float32)
        return parameters

    def _output(self, parameters: Mapping[str, Array], z: Array) -> Array:
        return self._forward(parameters, z)[-1]

    def _forward(self, parameters: Mapping[str, Array], z: Array) -> list[Array]:
        """The input of each layer and the final output, of one device or a stack of them."""
        values = [z]
        for index, (weight, bias, _, _) in enumerate(self.layers):
            if index:
                np.maximum(values[-1], 0, out=values[-1])
            output = np.matmul(values[-1], parameters[weight].swapaxes(-1, -2))
            output += parameters[bias][..., None, :]
            values.append(output)
        return values

    def _gradients(
        self,
        parameters: Mapping[str, Array],
        z: Array,
        targets: npt.NDArray[Any],
        sizes: Array,
        gradients: Mapping[str, Array],
        *,
        padded: npt.NDArray[np.bool_] | None = None,
    ) -> Array:
        *inputs, output = self._forward(parameters, z)
        losses, slope = LOSSES[self.task](output, targets, sizes)
        if padded is not None:
            slope[padded] = 0
        for index in reversed(range(len(self.layers))):
            weight, bias, _, _ = self.layers[index]
            np.matmul(slope.swapaxes(-1, -2), inputs[index], out=gradients[weight])
            slope.sum(axis=-2, out=gradients[bias])
            if index:
                slope = np.matmul(slope, parameters[weight])
                slope *= inputs[index] > 0
        return losses


@dataclass(frozen=True)
class Linear(MLP):
    """Softmax or linear regression: the perceptron without hidden layers.

    Examples:
        >>> model = midge.Linear(2, outputs=1, task="regression")
        >>> sorted(model.initial())
        ['input_mean', 'input_scale', 'layers.0.bias', 'layers.0.weight', 'target_mean', 'target_scale']
    """

    hidden: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden:
            raise ValueError(f"hidden is {self.hidden}: a linear model has no hidden layers, and an MLP has.")


@dataclass(frozen=True)
class Logistic(Linear):
    """Logistic regression: two classes, labels 0 and 1, and one logit.

    Examples:
        >>> model = midge.Logistic(2)
        >>> model.predict(model.initial(seed=0), np.zeros((5, 2))).shape
        (5,)
    """

    outputs: Count = 1
    task: Task = "binary"


def normalisation(channels: int, task: Task) -> dict[str, Array]:
    """The frozen tensors before the federation's statistics are known: mean 0 and scale 1."""
    tensors = {"input_mean": np.zeros(channels, np.float32), "input_scale": np.ones(channels, np.float32)}
    if task == "regression":
        tensors |= {"target_mean": np.zeros(1, np.float32), "target_scale": np.ones(1, np.float32)}
    return tensors


def _cross_entropy(logits: Array, labels: npt.NDArray[Any], sizes: Array) -> tuple[Array, Array]:
    """Softmax cross-entropy, and the gradient of its mean with respect to the logits, which it overwrites."""
    logits -= logits.max(axis=-1, keepdims=True)
    flat, places = logits.reshape(-1, logits.shape[-1]), (np.arange(labels.size), labels.reshape(-1))
    logit = flat[places].reshape(labels.shape)
    np.exp(logits, out=logits)
    sums = logits.sum(axis=-1, keepdims=True)
    logits /= sums
    flat[places] -= 1
    logits /= sizes
    return np.log(sums[..., 0]) - logit, logits


def _squared_error(output: Array, target: npt.NDArray[Any], sizes: Array) -> tuple[Array, Array]:
    """Squared error of each output, and the gradient of its mean, which overwrites the outputs."""
    output -= target
    losses = output * output
    output *= np.float32(2) / (sizes * np.float32(output.shape[-1]))
    return losses, output


def _logistic(logits: Array, labels: npt.NDArray[Any], sizes: Array) -> tuple[Array, Array]:
    """Logistic cross-entropy, and the gradient of its mean with respect to the logits; neither overflows."""
    small = np.exp(-np.abs(logits))
    losses = np.maximum(logits, 0) - logits * labels + np.log1p(small)
    slope = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)) - labels
    return losses, slope / sizes


LOSSES: Final[Mapping[Task, Callable[[Array, npt.NDArray[Any], Array], tuple[Array, Array]]]] = {
    "classification": _cross_entropy,
    "binary": _logistic,
    "regression": _squared_error,
    "reconstruction": _squared_error,
}
"""The loss of a task: a function of outputs, targets and each device's number of rows; returns losses and gradient."""
