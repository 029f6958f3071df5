"""Many small perceptrons trained at once: the arithmetic of `iot_client.numpy_models` over a stack of devices.

A training of five thousand parameters is a few hundred NumPy calls that each do next to nothing; done for a stack of
devices, the same calls do the work of all. Batches, loss and gradients are those of `MLP.trainer`, one by one: a test
holds both to the same result up to rounding.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from iot_client.fit import Parameters, Recipe, TrainingPlan
from iot_client.numpy_models import MLP, Array, standardise
from wire.schema import Schema, Vector

AT_ONCE = 16
"""Devices in a stack at most: with five thousand parameters each, a stack then stays in a processor's cache."""
FEWEST = 2
"""Devices in a stack at least: a lone one is trained twice, for some kernels give other bits for a stack of one."""
KEPT = 2**29
"""Bytes of rows that are kept ready, at most: those of devices that trained long ago are made again."""
KEPT_OF_STREAMS = 2**25
"""The same of rows that are others at the next training."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A device's rows: inputs of shape (n, inputs), targets of shape (n,), and the seed of its trainer."""

    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic]
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """One training: which device, from which values, under which plan."""

    device: int
    start: Vector
    plan: TrainingPlan
    seen: int = 0
    """Slots of a stream that there had been when it began; 0 where data stands still."""


class Stack:
    """The rows of all devices, to be trained on. They are asked for when a device trains, one by one.

    If rows come while time goes on, `held` says what a device holds after a number of slots of its stream.
    The frozen tensors must stay as they are for as long as a stack is used.
    """

    def __init__(
        self,
        net: MLP,
        schema: Schema,
        frozen: Parameters,
        recipe: Recipe,
        devices: Sequence[Rows],
        *,
        held: Callable[[int, int], Rows] | None = None,
    ) -> None:
        self.net, self.schema, self.recipe = net, schema, recipe
        self._devices, self._frozen, self._held = devices, frozen, held
        self._room = KEPT if held is None else KEPT_OF_STREAMS
        self._ready: OrderedDict[int, tuple[Array, npt.NDArray[Any], int, int]] = OrderedDict()
        self._bytes = 0
        self._places: Mapping[str, slice] = {tensor.name: place for _, tensor, place in schema.shared}

    @cached_property
    def counts(self) -> list[int]:
        """How many rows each device has."""
        return [len(rows.y) for rows in self._devices]

    def count(self, device: int, seen: int = 0) -> int:
        """How many rows this device has, or had after a number of slots of its stream."""
        return len(self._of(device, seen)[1])

    def _of(self, device: int, seen: int) -> tuple[Array, npt.NDArray[Any], int]:
        """A device's rows as the arithmetic takes them, and its trainer's seed."""
        if (ready := self._ready.get(device)) is not None:
            if ready[3] == seen:
                self._ready.move_to_end(device)
                return ready[:3]
            self._bytes -= self._ready.pop(device)[0].nbytes
        rows = self._devices[device] if self._held is None else self._held(device, seen)
        targets = rows.y
        if self.net.task == "regression":
            targets = (targets.astype(np.float32) - self._frozen["target_mean"]) / self._frozen["target_scale"]
        ready = standardise(rows.x, self._frozen), targets, rows.seed, seen
        self._ready[device] = ready
        self._bytes += ready[0].nbytes
        while self._bytes > self._room and len(self._ready) > AT_ONCE:
            self._bytes -= self._ready.popitem(last=False)[1][0].nbytes
        return ready[:3]

    def steps(self, job: Job) -> int:
        """How many optimiser steps a training takes."""
        return steps_of(self.recipe.under(job.plan), self.count(job.device, job.seen))

    def train(self, jobs: Sequence[Job]) -> list[Vector]:
        """What each training comes to, as a flat vector; one that diverges holds what is not finite."""
        found: list[Vector] = []
        for start in range(0, len(jobs), AT_ONCE):
            some = jobs[start : start + AT_ONCE]
            found += self._train(some) if len(some) >= FEWEST else self._train([*some, *some])[:1]
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
        order = sorted(range(len(jobs)), key=lambda place: -len(drawn[place]))  # who has the most steps first
        lengths = [len(drawn[place]) for place in order]
        sizes = np.array([drawn[place].shape[1] for place in order])
        rows = np.zeros((lengths[0], len(jobs), int(sizes.max())), np.intp)
        for row, place in enumerate(order):
            rows[: lengths[row], row, : sizes[row]] = drawn[place]
        padded = None if (sizes == sizes[0]).all() else np.arange(rows.shape[2]) >= sizes[:, None]
        values = np.stack([jobs[place].start for place in order])
        base = values.copy()
        rates = np.array([recipes[place].learning_rate for place in order], np.float32)
        pulls = np.array([recipes[place].proximal for place in order], np.float32)
        shares = sizes.astype(np.float32)[:, None, None]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            active = len(order)
            for number in range(lengths[0]):
                while lengths[active - 1] <= number:
                    active -= 1
                batch = rows[number, :active]
                gradient = self._gradient(
                    values[:active],
                    inputs[batch],
                    targets[batch],
                    shares[:active],
                    None if padded is None else padded[:active],
                )
                if pulls[:active].any():
                    gradient += pulls[:active, None] * (values[:active] - base[:active])
                gradient *= rates[:active, None]
                values[:active] -= gradient
        found: list[Vector] = [values[0]] * len(jobs)
        for row, place in enumerate(order):
            found[place] = values[row]
        return found

    def _drawn(self, job: Job, recipe: Recipe, offset: int) -> npt.NDArray[np.intp]:
        """Row numbers of all batches, of shape (steps, batch): those of `Recipe.batches`, a pass after the other."""
        _, targets, seed = self._of(job.device, job.seen)
        rows = len(targets)
        size = min(recipe.batch_size, rows)
        steps = steps_of(recipe, rows)
        rng = np.random.default_rng((seed, job.plan.seed))
        passes = [rng.permutation(rows) for _ in range(-(-steps * size // rows))]
        drawn: npt.NDArray[np.intp] = np.concatenate(passes)[: steps * size].reshape(steps, size)
        return drawn + offset

    def _gradient(
        self,
        values: Array,
        inputs: Array,
        targets: npt.NDArray[Any],
        sizes: Array,
        padded: npt.NDArray[np.bool_] | None,
    ) -> Array:
        """The gradients of a stack, as its values of shape (devices, size); `inputs` is (devices, batch, inputs)."""
        gradient = np.empty_like(values)  # every shared tensor is a weight or a bias
        hidden = [inputs]
        weights = []
        for index, (weight, bias, fan_in, fan_out) in enumerate(self.net.layers):
            if index:
                np.maximum(hidden[-1], 0, out=hidden[-1])
            weights.append(values[:, self._places[weight]].reshape(-1, fan_out, fan_in))
            output = np.matmul(hidden[-1], weights[-1].transpose(0, 2, 1))
            output += values[:, None, self._places[bias]]
            hidden.append(output)
        output = hidden.pop()
        slope = _of_classes(output, targets) if self.net.task == "classification" else _of_numbers(output, targets)
        slope /= sizes
        if padded is not None:
            slope[padded] = 0
        for index in reversed(range(len(self.net.layers))):
            weight, bias, fan_in, fan_out = self.net.layers[index]
            gradient[:, self._places[weight]] = np.matmul(slope.transpose(0, 2, 1), hidden[index]).reshape(
                -1, fan_out * fan_in
            )
            gradient[:, self._places[bias]] = slope.sum(axis=1)
            if index:
                slope = np.matmul(slope, weights[index])
                slope *= hidden[index] > 0
        return gradient


def steps_of(recipe: Recipe, rows: int) -> int:
    """Optimiser steps of a training on a number of rows."""
    if recipe.epochs is None:
        return recipe.local_steps
    return -(-recipe.epochs * rows // min(recipe.batch_size, rows))


def _of_classes(logits: Array, labels: npt.NDArray[Any]) -> Array:
    """The slope of softmax and cross-entropy, summed; in place of the logits."""
    logits -= logits.max(axis=2, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=2, keepdims=True)
    flat = logits.reshape(-1, logits.shape[2])
    flat[np.arange(len(flat)), labels.reshape(-1)] -= 1
    return logits


def _of_numbers(output: Array, targets: npt.NDArray[Any]) -> Array:
    """The slope of the squared error, summed; in place of the output."""
    output[:, :, 0] -= targets
    output *= 2
    return output
