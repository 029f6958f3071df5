"""What devices train with: a trainer each, or all of them in a stack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from midge.iot_client.training.fit import Recipe, Trainer, TrainingPlan
from midge.iot_client.training.update_encoder import covered
from midge.sensor_fleet.models import NumpyModel
from midge.sensor_fleet.simulation.stacked import Job, Stack, TrainingRows
from midge.wire.schema import Parameters, Schema, Vector


class TrainingResult(NamedTuple):
    """What a training comes to."""

    values: Vector
    examples: int
    steps: int
    """Of the optimiser."""
    tensors: tuple[int, ...] | None = None
    """Indices of those that were trained; None is all."""


class Learner(Protocol):
    """Does trainings for the devices of a fleet, by their numbers."""

    def train(self, jobs: Sequence[Job]) -> list[TrainingResult]:
        """What each training comes to."""

    def load(self, device: int, plan: TrainingPlan, seen: int = 0) -> float:
        """How much longer than usual a training takes for the steps that its plan asks for: 1 is as usual.

        `seen` is how many slots of its stream the device has seen, where its rows come while time goes on.
        """


class Each:
    """A trainer for each device, called one by one.

    `recipe` is what the trainers follow where a plan asks for nothing: without it, every training takes as long as any.
    `count` is how many rows a device has, for a recipe or a plan in epochs.
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
    """All devices with one model in NumPy, many at once. `rows` are their inputs as the model takes them."""

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
