"""Trainers of simulated devices: one trainer each, or all devices in a stack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from midge.iot_client.training.fit import Recipe, Trainer, TrainingPlan
from midge.iot_client.training.update_encoder import covered
from midge.sensor_fleet.models import NumpyModel
from midge.sensor_fleet.simulation.stacked import Job, Stack, TrainingRows
from midge.wire.schema import Parameters, Schema, Vector


class TrainingResult(NamedTuple):
    """The outcome of one training."""

    values: Vector
    examples: int
    steps: int
    """Optimiser steps."""
    tensors: tuple[int, ...] | None = None
    """Indices of the trained tensors; None is all."""


class Learner(Protocol):
    """Trains devices of a fleet, by number."""

    def train(self, jobs: Sequence[Job]) -> list[TrainingResult]:
        """Train all jobs, in order."""

    def load(self, device: int, plan: TrainingPlan, seen: int = 0) -> float:
        """The duration of a training relative to a usual one.

        `seen` is the number of slots of its stream that the device has seen, if its rows arrive over time.
        """


class Each:
    """One trainer for each device, called one by one.

    `recipe` holds the defaults of a plan; without it, all trainings take equally long. `count` returns a device's
    number of rows, for a recipe or plan in epochs.
    """

    def __init__(
        self,
        trainers: Callable[[int, int], Trainer],
        schema: Schema,
        frozen: Parameters,
        *,
        recipe: Recipe | None = None,
        count: Callable[[int, int], int] | None = None,
    ) -> None:
        self._trainers, self._schema, self._frozen = trainers, schema, frozen
        self._recipe, self._count = recipe, count

    def train(self, jobs: Sequence[Job]) -> list[TrainingResult]:
        return [self._train(job) for job in jobs]

    def _train(self, job: Job) -> TrainingResult:
        start = {**self._schema.views(job.start.copy()), **self._frozen}
        fit = self._trainers(job.device, job.seen)(start, job.plan)
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._schema.flatten(fit.parameters)
        return TrainingResult(values, fit.examples, fit.steps, covered(fit.tensors, self._schema))

    def load(self, device: int, plan: TrainingPlan, seen: int = 0) -> float:
        if self._recipe is None:
            return 1.0
        recipe = self._recipe.under(plan)
        if recipe.epochs is None:
            return recipe.local_steps / self._recipe.local_steps
        return 1.0 if self._count is None else recipe.steps(self._count(device, seen)) / self._recipe.local_steps


class Stacked:
    """All devices with one NumPy model, trained in stacks. `rows` are their inputs in the model's input format."""

    def __init__(
        self,
        model: NumpyModel,
        rows: Sequence[TrainingRows],
        schema: Schema,
        recipe: Recipe,
        frozen: Parameters,
        *,
        held: Callable[[int, int], TrainingRows] | None = None,
    ) -> None:
        self._stack = Stack(model.net, schema, frozen, recipe, rows, held=held)
        self._recipe = recipe

    def train(self, jobs: Sequence[Job]) -> list[TrainingResult]:
        trained = self._stack.train(jobs)
        return [
            TrainingResult(values, self._stack.count(job.device, job.seen), self._stack.steps(job))
            for job, values in zip(jobs, trained, strict=True)
        ]

    def load(self, device: int, plan: TrainingPlan, seen: int = 0) -> float:
        recipe = self._recipe.under(plan)
        rows = 0 if recipe.epochs is None else self._stack.count(device, seen)
        return recipe.steps(rows) / self._recipe.local_steps
