"""Trainers of simulated devices: one trainer each, or all devices in a stack."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from midge.iot_client.training.fit import Recipe, Trainer, TrainingPlan
from midge.iot_client.training.update_encoder import covered
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.lazily import numbered
from midge.sensor_fleet.models import FleetModel, NumpyModel
from midge.sensor_fleet.sensors.stream import Stream
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


class TrainerPerDevice:
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


class StackedLearner:
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


class _Prepared(Sequence[TrainingRows]):
    """Training rows of all devices in the model's input format, made on access."""

    def __init__(self, model: NumpyModel, data: FleetData, seed: int) -> None:
        self._model, self._rows, self._count, self._seed = model, numbered(data.devices), len(data.devices), seed
        self._data = data

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if number >= self._count:
            raise IndexError(number)
        return self._prepared(number, self._rows(number))

    def held(self, number: int, seen: int) -> TrainingRows:
        """The rows that a device of a stream holds after `seen` slots."""
        assert isinstance(self._data, Stream)
        return self._prepared(number, self._data.flow.rows(number, seen))

    def _prepared(self, number: int, rows: Rows) -> TrainingRows:
        return TrainingRows(self._model.prepare(rows.x), rows.y, self._seed + number)


class _TorchTrainers:
    """One torch trainer for each device, made at its first training; for a stream, remade for each training."""

    def __init__(self, model: FleetModel, data: FleetData, seed: int) -> None:
        self._model, self._data, self._seed = model, data, seed
        self._rows_of = numbered(data.devices)
        self._made: dict[int, Trainer] = {}

    def __call__(self, number: int, seen: int) -> Trainer:
        if isinstance(self._data, Stream):
            return self._trainer(number, self._rows(number, seen))
        if number not in self._made:
            self._made[number] = self._trainer(number, self._rows(number, seen))
        return self._made[number]

    def count(self, number: int, seen: int) -> int:
        """Number of rows of a device."""
        return len(self._rows(number, seen).y)

    def _rows(self, number: int, seen: int) -> Rows:
        return self._data.flow.rows(number, seen) if isinstance(self._data, Stream) else self._rows_of(number)

    def _trainer(self, number: int, rows: Rows) -> Trainer:
        return self._model.trainer(rows, "torch", self._seed + number)


def learner_for(
    train: Any, data: FleetData | None, schema: Schema, recipe: Recipe | None, *, frozen: Parameters, seed: int
) -> Learner:
    """The learner for trainers, or for a fleet model and its data, by the first argument of `midge.simulate`."""
    if isinstance(train, FleetModel):
        assert data is not None
        if isinstance(train, NumpyModel):
            prepared = _Prepared(train, data, seed)
            held = prepared.held if isinstance(data, Stream) else None
            return StackedLearner(train, prepared, schema, recipe or train.recipe, frozen, held=held)
        trainers = _TorchTrainers(train, data, seed)
        return TrainerPerDevice(trainers, schema, frozen, recipe=train.recipe, count=trainers.count)
    if isinstance(train, Sequence):
        return TrainerPerDevice(lambda number, _: train[number], schema, frozen, recipe=recipe)
    return TrainerPerDevice(lambda _, __: train, schema, frozen, recipe=recipe)
