"""The models that simulated fleets train, with what a fleet needs to know of them.

Dense models, and convolutional ones of images, run on NumPy or, with the same parameters, on torch; convolutional
models of windows need torch, which is imported on first use.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.fit import Parameters, Recipe, Trainer
from midge.iot_client.training.numpy_cnn import CNN
from midge.iot_client.training.numpy_models import FROZEN, MLP, Array, Network
from midge.sensor_fleet.data import FleetData, Kind, Rows
from midge.sensor_fleet.features import by_channel, features, raw
from midge.sensor_fleet.lazily import numbered
from midge.wire.moments import Moments, pool
from midge.wire.schema import Role

if TYPE_CHECKING:
    from types import ModuleType

    from midge.iot_client.training.torch_trainer import Normalised

Name = Literal["linear", "mlp", "cnn"]
Engine = Literal["numpy", "torch"]
SMALL_INPUTS: Final = 100
"""Maximum number of features for two narrow layers; beyond, one wide layer."""
WIDTH: Final = 8
"""Channels of the first convolution on images; the second has twice as many."""
BATCH: Final = 1024
"""Rows predicted at once."""

MOMENTS: Final = 256
"""Devices whose statistics are pooled, at most, evenly spaced over all devices."""


class FleetModel(ABC):
    """A model for one data set. `initial` holds all tensors, with normalisation to mean 0 and scale 1."""

    name: Name
    recipe: Recipe
    initial: dict[str, npt.NDArray[Any]]

    def __init__(self, data: FleetData) -> None:
        self.task = data.task
        self.kind = data.kind
        self.shape = data.shape
        self.outputs = data.classes or 1
        self._seen: tuple[Rows, Array] | None = None

    @property
    def roles(self) -> dict[str, Role]:
        return {name: "frozen" if name in FROZEN else "trained" for name in self.initial}

    @property
    def channels(self) -> dict[str, int]:
        """Names of the statistics that the model needs, and their numbers of channels."""
        means = [name for name in FROZEN if name.endswith("_mean") and name in self.initial]
        return {name.removesuffix("_mean"): self.initial[name].size for name in means}

    @abstractmethod
    def trainer(self, rows: Rows, engine: Engine = "numpy", seed: int = 0) -> Trainer:
        """A trainer on a device's own rows.

        Raises:
            ValueError: the model does not run on that engine, or torch is not installed.
        """

    @abstractmethod
    def prepare(self, x: npt.NDArray[Any]) -> Array:
        """Stored rows in the model's input format: float32, not yet standardised."""

    @abstractmethod
    def predict(self, parameters: Parameters, inputs: Array) -> Array:
        """Logits of shape (n, outputs), or predictions of shape (n,), for prepared inputs."""

    def twin(self) -> "Normalised":
        """The same network as a torch module.

        Raises:
            ValueError: there is none, or torch is not installed.
        """
        raise ValueError("this model has no equivalent in torch")

    def moments(self, rows: Rows) -> dict[str, Moments]:
        """Statistics of a device's own rows: of the inputs, and for regression of the target."""
        found = {"input": Moments.of(by_channel(self.prepare(rows.x), self.kind))}
        if self.task == "regression":
            found["target"] = Moments.of(rows.y[:, None])
        return found

    def freeze(self, pooled: Mapping[str, Moments]) -> dict[str, Array]:
        """The frozen tensors for the fleet's pooled statistics."""
        frozen = {}
        for name, moments in pooled.items():
            frozen[f"{name}_mean"] = moments.mean.astype(np.float32)
            frozen[f"{name}_scale"] = moments.scale().astype(np.float32)
        return frozen

    def evaluate(self, parameters: Parameters, rows: Rows) -> dict[str, float]:
        """Accuracy, or the root mean squared error in units of y."""
        if not len(rows):
            raise ValueError("there are no rows to evaluate on")
        inputs = self._prepared(rows)
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged model gives NaN, to be reported as it is
            outputs = np.concatenate([self.predict(parameters, inputs[batch]) for batch in _batches(len(rows))])
            if self.task == "classification":
                return {"accuracy": float(np.mean(outputs.argmax(axis=1) == rows.y))}
            return {"rmse": float(np.sqrt(np.mean((outputs.astype(np.float64) - rows.y) ** 2)))}

    def _prepared(self, rows: Rows) -> Array:
        """Prepared inputs, cached for the last rows: a run evaluates the same test rows again and again."""
        if self._seen is None or self._seen[0] is not rows:
            self._seen = rows, self.prepare(rows.x)
        return self._seen[1]


class NumpyModel(FleetModel):
    """A model that runs on either engine: `net` in NumPy, and its twin in torch."""

    net: Network

    def predict(self, parameters: Parameters, inputs: Array) -> Array:
        return self.net.predict(parameters, inputs)

    def trainer(self, rows: Rows, engine: Engine = "numpy", seed: int = 0) -> Trainer:
        inputs = self.prepare(rows.x)
        if engine == "numpy":
            return self.net.trainer(inputs, rows.y, seed=seed, recipe=self.recipe)
        return _torch_trainer(self.twin(), inputs, rows.y, seed, self.recipe)


class DenseModel(NumpyModel):
    """A linear model or a perceptron on the features of a row."""

    net: MLP

    def __init__(self, data: FleetData, name: Name, seed: int = 0) -> None:
        super().__init__(data)
        self.name = name
        example = self.prepare(data.test.x[:1])
        inputs = example.shape[1]
        hidden = () if name == "linear" else (64, 32) if inputs <= SMALL_INPUTS else (128,)
        channels = by_channel(example, self.kind).shape[1]
        self.net = MLP(inputs, hidden, self.outputs, self.task, channels)
        self.recipe = Recipe(learning_rate=_rate(self.net, self.kind), local_steps=20)
        self.initial = dict(self.net.initial(seed))

    def prepare(self, x: npt.NDArray[Any]) -> Array:
        return features(x, self.kind)

    def twin(self) -> "Normalised":
        net = self.net
        module: Normalised = _torch().TorchMLP(net.inputs, net.hidden, net.outputs, net.task, net.channels)
        return module


class ImageModel(NumpyModel):
    """A small convolutional model on raw images."""

    name = "cnn"
    net: CNN

    def __init__(self, data: FleetData, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__(data)
        self.net = CNN(self.shape, self.outputs, self.task, width)
        self.recipe = Recipe(learning_rate=0.05, local_steps=20)
        self.initial = dict(self.net.initial(seed))

    def prepare(self, x: npt.NDArray[Any]) -> Array:
        return raw(x, self.kind)

    def twin(self) -> "Normalised":
        module: Normalised = _torch().ImageCNN(self.shape, self.outputs, self.task, self.net.width)
        return module


class WindowModel(FleetModel):
    """A small convolutional model on raw windows; torch only."""

    name = "cnn"

    def __init__(self, data: FleetData, seed: int = 0) -> None:
        super().__init__(data)
        self.recipe = Recipe(learning_rate=0.05, local_steps=20)
        self.initial = _torch().seeded_state(self.twin, seed)

    def twin(self) -> "Normalised":
        module: Normalised = _torch().WindowCNN(self.shape, self.outputs, self.task)
        return module

    @cached_property
    def _evaluated(self) -> "Normalised":
        return self.twin()

    def prepare(self, x: npt.NDArray[Any]) -> Array:
        return raw(x, self.kind)

    def predict(self, parameters: Parameters, inputs: Array) -> Array:
        predicted: Array = _torch().predict(self._evaluated, parameters, inputs)
        return predicted

    def trainer(self, rows: Rows, engine: Engine = "torch", seed: int = 0) -> Trainer:
        if engine != "torch":
            raise ValueError("a cnn of windows runs on torch only; use the engine torch, or the model mlp")
        return _torch_trainer(self.twin(), self.prepare(rows.x), rows.y, seed, self.recipe)


def model_for(data: FleetData, name: Name | None = None, *, torch: bool = False, seed: int = 0) -> FleetModel:
    """Make the model of that name for a data set; by default a perceptron. `torch` says whether torch may be used.

    Raises:
        ValueError: unknown model, unsuitable data, or torch is needed.
    """
    match name:
        case None | "mlp":
            return DenseModel(data, "mlp", seed)
        case "linear":
            return DenseModel(data, "linear", seed)
        case "cnn" if data.kind == "image":
            return ImageModel(data, seed)
        case "cnn" if data.kind == "table":
            raise ValueError("a cnn needs images or windows, and this data is a table; use mlp or linear")
        case "cnn" if torch:
            return WindowModel(data, seed)
        case "cnn":
            raise ValueError("a cnn of windows needs torch on every device; use the engine torch, or the model mlp")
    raise ValueError(f"unknown model {name!r}; use linear, mlp or cnn")


def initial_model(
    model: FleetModel, data: FleetData, initial: Parameters | None = None
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The initial model, normalised by pooled statistics of some devices, and its tensors' roles."""
    rows_of, number = numbered(data.devices), len(data.devices)
    chosen = np.unique(np.linspace(0, number - 1, min(number, MOMENTS)).round().astype(int))
    moments = [model.moments(rows_of(int(place))) for place in chosen]
    pooled = {name: pool([each[name] for each in moments]) for name in model.channels}
    return {**(initial or model.initial), **model.freeze(pooled)}, model.roles


def _rate(net: MLP, kind: Kind) -> float:
    """The learning rate with which pooled training gets furthest in 400 steps, to within a factor of two.

    The curvature of a squared error grows with correlated inputs, as sensors have, and unlike with softmax its gradient
    is unbounded. The constants were measured with 24 to 784 inputs.
    """
    if net.task == "classification":
        return 0.2 if kind == "image" and net.hidden else 0.1
    return min(0.1, (2.4 if net.hidden else 0.24) / net.inputs)


def _batches(rows: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, rows, BATCH))


def _torch() -> "ModuleType":
    """Import the torch side on first use.

    Raises:
        ValueError: torch is not installed.
    """
    try:
        import midge.iot_client.training.torch_trainer as torch_side  # noqa: PLC0415 (torch is an extra)
    except ModuleNotFoundError as error:
        raise ValueError('this needs torch: pip install "midge[torch]"') from error
    return torch_side


def _torch_trainer(module: "Normalised", inputs: Array, y: npt.NDArray[Any], seed: int, recipe: Recipe) -> Trainer:
    torch_side = _torch()
    trainer: Trainer = torch_side.TorchTrainer(
        module, lambda model, plan: torch_side.fit_torch(model, inputs, y, plan, seed=seed, recipe=recipe)
    )
    return trainer
