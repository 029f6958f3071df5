"""The interface of a trainer: a callable that takes parameters and a plan, and returns a fit.

Any function of that form can be a device's trainer; those of this package differ only in the engine. They follow a plan
in the same way, so that two engines with the same seed see the same rows in the same order.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midge.wire.field_checks import Count, NotNegative, Positive, check_fields
from midge.wire.schema import Parameters

__all__ = ["Fit", "Parameters", "Recipe", "Trainer", "TrainingKilled", "TrainingPlan", "whole"]

log = logging.getLogger("iot_client")


class TrainingPlan(Protocol):
    """The announcement's plan for a training. None leaves the choice to the trainer."""

    @property
    def learning_rate(self) -> float | None: ...
    @property
    def local_steps(self) -> int | None: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def proximal(self) -> float:
        """The weight ρ of the local term (ρ/2)·|x − x_v|², where x_v is what the training started from."""

    @property
    def seed(self) -> int:
        """Different for each training, so that each sees other batches."""


class TrainingKilled(Exception):
    """The training process was killed, or ran out of memory: its training is lost, and nothing else."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of a training.

    Examples:
        >>> midge.Fit({"w": np.ones(3)}, examples=200, steps=10, metrics={"loss": 0.25}).metrics["loss"]
        0.25
    """

    parameters: Parameters
    """All tensors of the model after the training, by name."""
    examples: int
    """Rows of the device's data set: the weight of the update if the strategy uses it. With 0 nothing is sent."""
    steps: int = 0
    """Optimiser steps; 0 if the trainer does not count them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name, for the log. Other values are left out."""
    tensors: Collection[str] | None = None
    """Names of the trained tensors; None means all. The others are not sent."""

    def __post_init__(self) -> None:
        for name in ("examples", "steps"):
            if type(value := getattr(self, name)) is not int:
                if (number := whole(value)) is None:
                    raise ValueError(f"a fit has {value!r} {name}: it must be a whole number")
                object.__setattr__(self, name, number)
        if self.examples < 0 or self.steps < 0:
            raise ValueError(f"a fit has {self.examples} examples and {self.steps} steps; neither can be negative")
        if self.metrics or not isinstance(self.metrics, dict):
            object.__setattr__(self, "metrics", _numbers(self.metrics))


def whole(value: Any) -> int | None:
    """An integer, of Python, NumPy or torch; None if it is none."""
    value = _scalar(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _scalar(value: Any) -> Any:
    """The single number in an array or a tensor; anything else unchanged."""
    with suppress(ValueError, RuntimeError):
        return value.item() if hasattr(value, "item") else value
    return value


def _numbers(metrics: Any) -> dict[str, float]:
    found, others = {}, []
    given = {} if metrics is None else metrics if isinstance(metrics, Mapping) else {"metrics": metrics}
    for name, value in given.items():
        if isinstance(number := _scalar(value), int | float):
            found[str(name)] = float(number)
        else:
            others.append(f"{name} ({type(value).__name__})")
    if others:
        log.warning("Metrics that are no numbers are left out: %s.", ", ".join(others))
    return found


Trainer = Callable[[Parameters, TrainingPlan], Fit]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters of mini-batch SGD: the trainer's defaults, which the plan overrides.

    Examples:
        >>> midge.Recipe(learning_rate=0.05).under(midge.Plan(local_steps=40)).local_steps
        40
    """

    learning_rate: Positive = 0.1
    batch_size: Count = 16
    local_steps: Count = 10
    proximal: NotNegative = 0.0
    epochs: Count | None = None
    """Passes over the device's rows, in place of `local_steps`."""

    def __post_init__(self) -> None:
        check_fields(self, "recipe")

    def under(self, plan: TrainingPlan) -> "Recipe":
        """This recipe with the plan's overrides; local steps take precedence over epochs if it has both."""
        return Recipe(
            learning_rate=plan.learning_rate or self.learning_rate,
            batch_size=plan.batch_size or self.batch_size,
            local_steps=plan.local_steps or self.local_steps,
            proximal=plan.proximal or self.proximal,
            epochs=None if plan.local_steps else plan.epochs or self.epochs,
        )

    def steps(self, rows: int) -> int:
        """Optimiser steps of a training on a number of rows."""
        return self.local_steps if self.epochs is None else -(-self.epochs * rows // min(self.batch_size, rows))

    def batches(self, rows: int, rng: "np.random.Generator") -> Iterator[npt.NDArray[np.int64]]:
        """Row numbers of one mini-batch after another, drawn without replacement in each pass.

        All batches have the same size: one begun at the end of a pass is filled from the next, so that a device with
        one row more than a batch takes no step on that row alone.
        """
        size = min(self.batch_size, rows)
        waiting = np.empty(0, np.int64)
        for _ in range(self.steps(rows)):
            if len(waiting) < size:
                waiting = np.concatenate([waiting, rng.permutation(rows)])
            yield waiting[:size]
            waiting = waiting[size:]
