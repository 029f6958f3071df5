"""Batched training: trainings of many devices are stacked and run by `iot_client.training.numpy_models`.

Training a model of five thousand parameters takes a few hundred NumPy calls with little work in each; on a stack, the
same calls train many devices.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.iot_client.training import numpy_models
from midge.iot_client.training.fit import Parameters, Recipe, TrainingPlan
from midge.iot_client.training.numpy_models import Array, Batch, Network, standardise
from midge.wire.schema import Schema, Vector

AT_ONCE = numpy_models.AT_ONCE
"""Maximum number of devices in a stack; networks with large intermediate values set less (`Network.at_once`)."""
FEWEST = 2
"""Minimum number of devices in a stack: a lone one is duplicated, since some kernels give other bits for a stack of
one."""
KEPT = 2**29
"""Maximum bytes of prepared rows that are cached."""
KEPT_OF_STREAMS = 2**25
"""The same for rows of a stream, which differ at the next training."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """A device's rows: inputs of shape (n, …), targets of shape (n,), and the seed of its trainer."""

    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic]
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """One training: the device, its initial values, and the plan."""

    device: int
    start: Vector
    plan: TrainingPlan
    seen: int = 0
    """Slots of its stream when it begins; 0 for fixed data."""


class Stack:
    """The rows of all devices, loaded when a device trains, and the network that they train.

    If rows arrive over time, `held` returns a device's rows after a number of slots of its stream. The frozen tensors
    must not change while a stack is in use.
    """

    def __init__(
        self,
        net: Network,
        schema: Schema,
        frozen: Parameters,
        recipe: Recipe,
        devices: Sequence[TrainingRows],
        *,
        held: Callable[[int, int], TrainingRows] | None = None,
    ) -> None:
        self.net, self.schema, self.recipe = net, schema, recipe
        self._devices, self._frozen, self._held = devices, frozen, held
        self._room = KEPT if held is None else KEPT_OF_STREAMS
        self._ready: OrderedDict[int, tuple[Array, npt.NDArray[Any], int, int]] = OrderedDict()
        self._bytes = 0
        self._places: Mapping[str, slice] = {tensor.name: place for _, tensor, place in schema.shared}

    @cached_property
    def counts(self) -> list[int]:
        """Number of rows of each device."""
        return [len(rows.y) for rows in self._devices]

    def count(self, device: int, seen: int = 0) -> int:
        """Number of rows of a device, after `seen` slots if they arrive over time."""
        return len(self._of(device, seen)[1])

    def _of(self, device: int, seen: int) -> tuple[Array, npt.NDArray[Any], int]:
        """A device's standardised inputs, targets and seed."""
        if (ready := self._ready.get(device)) is not None:
            if ready[3] == seen:
                self._ready.move_to_end(device)
                return ready[:3]
            self._bytes -= self._ready.pop(device)[0].nbytes
        rows = self._devices[device] if self._held is None else self._held(device, seen)
        ready = standardise(rows.x, self._frozen), self.net.targets(self._frozen, rows.y), rows.seed, seen
        self._ready[device] = ready
        self._bytes += ready[0].nbytes
        while self._bytes > self._room and len(self._ready) > AT_ONCE:
            self._bytes -= self._ready.popitem(last=False)[1][0].nbytes
        return ready[:3]

    def steps(self, job: Job) -> int:
        """Number of optimiser steps of a training."""
        return self.recipe.under(job.plan).steps(self.count(job.device, job.seen))

    def train(self, jobs: Sequence[Job]) -> list[Vector]:
        """Train all jobs; return flat vectors of parameters, which are not finite where a training diverged."""
        found: list[Vector] = []
        most = min(AT_ONCE, self.net.at_once)
        for start in range(0, len(jobs), most):
            some = jobs[start : start + most]
            found += self._train(some) if len(some) >= min(FEWEST, most) else self._train([*some, *some])[:1]
        return found

    def _train(self, jobs: Sequence[Job]) -> list[Vector]:
        recipes = [self.recipe.under(job.plan) for job in jobs]
        rows_of = {(job.device, job.seen): self._of(job.device, job.seen) for job in jobs}
        offsets = dict(zip(rows_of, np.cumsum([0, *(len(rows) for rows, _, _ in rows_of.values())]), strict=False))
        inputs = np.concatenate([rows for rows, _, _ in rows_of.values()])
        targets = np.concatenate([labels for _, labels, _ in rows_of.values()])
        drawn = [
            self._drawn(job, recipe, int(offsets[job.device, job.seen]))
            for job, recipe in zip(jobs, recipes, strict=True)
        ]
        order = sorted(range(len(jobs)), key=lambda place: -len(drawn[place]))  # most steps first
        lengths = [len(drawn[place]) for place in order]
        sizes = [drawn[place].shape[1] for place in order]
        rows = np.zeros((lengths[0], len(jobs), max(sizes)), np.intp)
        for row, place in enumerate(order):
            rows[: lengths[row], row, : sizes[row]] = drawn[place]
        values = np.stack([jobs[place].start for place in order])

        def batches() -> Iterator[Batch]:
            active = len(order)
            for number in range(lengths[0]):
                while lengths[active - 1] <= number:
                    active -= 1
                yield inputs[rows[number, :active]], targets[rows[number, :active]]

        self.net.descend(values, self._places, [recipes[place] for place in order], sizes, batches())
        found: list[Vector] = [values[0]] * len(jobs)
        for row, place in enumerate(order):
            found[place] = values[row]
        return found

    def _drawn(self, job: Job, recipe: Recipe, offset: int) -> npt.NDArray[np.intp]:
        """Row numbers of all batches, of shape (steps, batch), drawn by `Recipe.batches`."""
        _, targets, seed = self._of(job.device, job.seen)
        rng = np.random.default_rng((seed, job.plan.seed))
        drawn = list(recipe.batches(len(targets), rng))
        return np.concatenate(drawn, dtype=np.intp).reshape(len(drawn), -1) + offset
