"""Training with torch: any module and an ordinary loop as a trainer.

    @torch_trainer(Net())
    def train(model: Net, plan: TrainingPlan) -> int:
        ...                     # your loop
        return len(dataset)

Also the torch equivalents of `iot_client.training.numpy_models`, two small convolutional models, and the loop that
trains them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from math import isfinite
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit, Parameters, Recipe, TrainingPlan, whole
from midge.iot_client.training.numpy_models import FROZEN, Task, normalisation
from midge.iot_client.training.torch_state import StateError, arrays, load, narrow, read_state, roles, state, warn
from midge.iot_client.training.update_encoder import NoFit, TrainerError

__all__ = [
    "ImageCNN",
    "Normalised",
    "TorchMLP",
    "TorchTrainer",
    "WindowCNN",
    "fit_torch",
    "load",
    "predict",
    "read_state",
    "roles",
    "seeded_state",
    "state",
    "torch_evaluator",
    "torch_trainer",
]

M = TypeVar("M", bound=nn.Module)
E = TypeVar("E", Mapping[str, float], Scores)
Outcome = int | tuple[int, Mapping[str, float]] | Fit
"""Result of a user's training function: examples, examples and metrics, or a fit. Numbers may be NumPy's or torch's."""


# ------------------------------------------------------------------------- the trainer


class TorchTrainer(Generic[M]):
    """A user's training function as a trainer: `trainer(parameters, plan)` returns a fit."""

    def __init__(self, module: M, train: Callable[[M, TrainingPlan], Outcome], frozen: Sequence[str] = FROZEN) -> None:
        self.module = module
        self.roles = roles(module, frozen)
        self._train = train

    def local(self) -> dict[str, npt.NDArray[Any]]:
        """The module's own values, as initial values of local tensors."""
        return dict(arrays(self.module))

    def __call__(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        """Load, train, read back. Frozen tensors are returned unchanged.

        Raises:
            TrainerError: the parameters are not those of the module, or the training changed its structure.
            NoFit: the function returned something other than examples, examples and metrics, or a fit.
        """
        load(self.module, parameters)
        self.module.train()
        less = narrow(self.module)
        before = arrays(self.module) if less else {}
        with _single_rows(self.module):
            outcome = self._train(self.module, plan)
        after = arrays(self.module)
        if changed := [
            f"{name} was {np.shape(given)} and is {np.shape(after[name]) if name in after else 'gone'}"
            for name, given in parameters.items()
            if name in self.roles and (name not in after or np.shape(after[name]) != np.shape(given))
        ]:
            raise TrainerError(
                f"the training function changed the module: {'; '.join(changed)}. Make its layers before it is given "
                "to Midge, and train them in place"
            )
        for name in less:  # a rounding error of loading is not training
            if name in parameters and name in after and after[name].shape == before[name].shape:
                after[name] = parameters[name] + (after[name] - before[name])
        kept = {name: np.array(array) for name, array in parameters.items() if self._keeps(name)}
        return fit_of(outcome, {**after, **kept})

    def _keeps(self, name: str) -> bool:
        """Whether it is returned unchanged: frozen, or local state that once travelled."""
        role = self.roles.get(name, "frozen" if name.endswith("_extra_state") else "")
        return (self.roles.get(role[1:]) if role.startswith("=") else role) == "frozen"


def fit_of(outcome: Any, parameters: Parameters) -> Fit:
    """The fit of a training function's result.

    Raises:
        NoFit: it is none; the message says what to return.
    """
    match outcome:
        case Fit():
            return replace(outcome, parameters=parameters)
        case (examples, Mapping() as metrics):
            pass
        case examples:
            metrics = {}
    number = whole(examples)
    if number is None:
        raise NoFit(
            f"the training function returned {type(outcome).__name__}; "
            "return the number of examples, or that and a dict of metrics"
        )
    return Fit(parameters, number, metrics=metrics)


@contextmanager
def _single_rows(module: nn.Module) -> Iterator[None]:
    """Let a batch of one row use BatchNorm's running statistics, because it has no variance."""
    hooks = []

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch = inputs[0] if inputs else None
        if layer.training and isinstance(batch, Tensor) and batch.ndim > 1 and batch.numel() == batch.shape[1]:
            layer.training, layer._single = False, True  # type: ignore[assignment]  # noqa: SLF001

    def after(layer: nn.Module, *_: Any) -> None:
        if layer.__dict__.pop("_single", False):
            layer.training = True

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and layer.track_running_stats:
            hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def torch_trainer(
    module: M, *, frozen: Sequence[str] = FROZEN
) -> Callable[[Callable[[M, TrainingPlan], Outcome]], TorchTrainer[M]]:
    """Make a trainer from a function that trains this module in place.

    The function gets the module, loaded and in training mode, and the plan. Parameters that fit one of the patterns
    `frozen` get no gradient. Warns if the module has a BatchNorm layer, which uses its running statistics for a batch
    of one row.

    Examples:
        >>> import torch
        >>> @midge.torch_trainer(torch.nn.Linear(2, 1, bias=False))
        ... def train(net, plan):
        ...     net.weight.data += 1
        ...     return 10
        >>> train({"weight": np.zeros((1, 2))}, midge.Plan()).parameters["weight"].tolist()
        [[1.0, 1.0]]
    """
    warn(module)
    fixed = {name for name, role in roles(module, frozen).items() if role == "frozen"}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.is_inference():
            raise StateError(f"{name} was made in inference mode and cannot be trained: make the module outside of it")
        if name in fixed:
            parameter.requires_grad_(False)

    def decorate(train: Callable[[M, TrainingPlan], Outcome]) -> TorchTrainer[M]:
        return TorchTrainer(module, train, frozen)

    return decorate


def torch_evaluator(
    module: M,
) -> Callable[[Callable[[M], E]], Callable[[Parameters], E]]:
    """Make an evaluator from a function that evaluates this module, for `Aggregator(evaluate=…)` or a device's.

    The function gets a copy of the module, loaded, in evaluation mode and without gradients. It returns metrics by
    name for an aggregator or a simulation, and `Scores` for a device.

    Raises:
        StateError: at a call, if the parameters are not those of the module.

    Examples:
        >>> import torch
        >>> @midge.torch_evaluator(torch.nn.Linear(2, 1, bias=False))
        ... def evaluate(net):
        ...     return {"output": float(net(torch.ones(1, 2)))}
        >>> evaluate({"weight": np.array([[1.0, 2.0]])})
        {'output': 3.0}
    """
    own = deepcopy(module)  # another thread may train the given one

    def decorate(evaluate: Callable[[M], E]) -> Callable[[Parameters], E]:
        @wraps(evaluate)
        def evaluator(parameters: Parameters) -> E:
            load(own, parameters)
            own.eval()
            with torch.no_grad():
                return evaluate(own)

        return evaluator

    return decorate


# -------------------------------------------------------------------------- the models


class Normalised(nn.Module):
    """A module that standardises its inputs itself, with tensors that the federation provides.

    A subclass has `layers` and may reshape their input in `arrange`. Inputs have their channels last.
    """

    layers: nn.Module
    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, channels: int, task: Task) -> None:
        super().__init__()
        self.task = task
        for name, array in normalisation(channels, task).items():
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, predictions, or reconstructed inputs, as of `iot_client.training.numpy_models.MLP.predict`."""
        output = self.normalised(x)
        match self.task:
            case "classification":
                return output
            case "binary":
                return output[:, 0]
            case "reconstruction":
                return output * self.input_scale + self.input_mean
        return output[:, 0] * self.target_scale + self.target_mean

    def normalised(self, x: Tensor) -> Tensor:
        """The output of the layers."""
        output: Tensor = self.layers(self.arrange(self.standardised(x)))
        return output

    def standardised(self, x: Tensor) -> Tensor:
        """Mean 0 and deviation 1 on each channel; missing inputs count as the channel's mean."""
        z = (x - self.input_mean) / self.input_scale
        return torch.where(torch.isfinite(z), z, 0.0)

    def arrange(self, z: Tensor) -> Tensor:
        return z

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, or mean squared error of the normalised target."""
        output = self.normalised(x)
        match self.task:
            case "classification":
                return functional.cross_entropy(output, y)
            case "binary":
                return functional.binary_cross_entropy_with_logits(output[:, 0], y)
            case "reconstruction":
                return functional.mse_loss(output, self.standardised(y))
        return functional.mse_loss(output[:, 0], (y - self.target_mean) / self.target_scale)


class TorchMLP(Normalised):
    """The torch equivalent of `iot_client.training.numpy_models.MLP`."""

    def __init__(
        self,
        inputs: int = 64,
        hidden: Sequence[int] = (64, 32),
        outputs: int = 10,
        task: Task = "classification",
        channels: int | None = None,
    ) -> None:
        super().__init__(channels or inputs, task)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *hidden, outputs)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])


class ImageCNN(Normalised):
    """Two convolutions with GroupNorm and pooling, then one dense layer; images (n, h, w) or (n, h, w, colours)."""

    def __init__(
        self, shape: tuple[int, ...] = (28, 28), outputs: int = 10, task: Task = "classification", width: int = 16
    ) -> None:
        super().__init__(1, task)
        height, breadth, colours = (*shape, 1)[:3]
        if min(height, breadth) < 4:
            raise ValueError(f"a convolutional model needs images of at least 4 × 4 pixels, not {height} × {breadth}")
        self.layers = nn.Sequential(
            *(nn.Conv2d(colours, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(4, 2 * width), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (breadth // 4), outputs),
        )

    def arrange(self, z: Tensor) -> Tensor:
        return z[:, None] if z.ndim == 3 else z.permute(0, 3, 1, 2)


class WindowCNN(Normalised):
    """Two convolutions over time with GroupNorm, the mean over time, one dense layer; windows (n, time, channels)."""

    def __init__(
        self, shape: tuple[int, int] = (100, 6), outputs: int = 5, task: Task = "classification", width: int = 32
    ) -> None:
        time, channels = shape
        super().__init__(channels, task)
        if time < 4:
            raise ValueError(f"a convolutional model needs windows of at least 4 time steps, not {time}")
        self.layers = nn.Sequential(
            *(nn.Conv1d(channels, width, 5, padding=2), nn.GroupNorm(4, width), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(width, 2 * width, 5, padding=2), nn.GroupNorm(4, 2 * width), nn.ReLU()),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(2 * width, outputs),
        )

    def arrange(self, z: Tensor) -> Tensor:
        return z.transpose(1, 2)


def fit_torch(
    module: Normalised,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    plan: TrainingPlan,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> Fit:
    """Mini-batch SGD on the module's current state; equivalent to `MLP.trainer`, batch for batch.

    A training that diverges returns its result, without the loss among its metrics.

    Raises:
        ValueError: there are no rows, or x and y differ in length.
    """
    rows, targets = np.asarray(x, np.float32), np.asarray(y)
    if len(rows) != len(targets) or not len(rows):
        raise ValueError(f"x has {len(rows)} rows and y {len(targets)}; both need the same number, at least 1")
    follow = (recipe or Recipe()).under(plan)
    rng = np.random.default_rng((seed, plan.seed))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.SGD(trained, lr=follow.learning_rate)
    losses = []
    for batch in follow.batches(len(rows), rng):
        optimiser.zero_grad()
        target = targets[batch].astype(np.int64 if module.task == "classification" else np.float32)
        loss = module.loss(torch.from_numpy(rows[batch]), torch.from_numpy(target))
        loss.backward()  # type: ignore[no-untyped-call]
        if follow.proximal:
            for parameter, origin in zip(trained, start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - origin, alpha=follow.proximal)
        optimiser.step()
        losses.append(float(loss.detach()))
    mean = sum(losses) / len(losses)
    return Fit(arrays(module), len(rows), len(losses), {"loss": mean} if isfinite(mean) else {})


def seeded_state(make: Callable[[], nn.Module], seed: int) -> dict[str, npt.NDArray[Any]]:
    """The state of a new module, initialised from a seed without disturbing torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return arrays(make())


def predict(module: nn.Module, parameters: Parameters, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The module's outputs for inputs, with these parameters and in evaluation mode."""
    load(module, parameters)
    module.eval()
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(x)).numpy(), np.float32)
