"""Baselines of a federation: the same model trained on all rows pooled, and by each device alone.

Both use the devices' own trainer and recipe. Pooling is what the federation avoids, and training alone is what each
device achieves without it: a run should end near the first and above the second. The pooled model is trained until it
no longer improves on held-out training rows. All measurements are bounded in time, so that they do not delay the end of
a run; the result says whether the pooled model had converged.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from midge.iot_client.training.fit import Parameters, Trainer
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.models import FleetModel
from midge.sensor_fleet.progress import METRICS
from midge.wire.messages import Plan

POOLED_SECONDS: Final = 5.0
"""Approximate time for pooled training, unless another bound is given: digits take under 1 s, 8,000 windows 5 s."""
SECONDS: Final = 2.5
"""Approximate time for each of the other two measurements."""
POOLED_ROWS: Final = 100_000
STRETCH: Final = (100, 500)
"""Bounds of the steps between two validations, which are otherwise those of one pass."""
PATIENCE: Final = 5
"""Validations without improvement after which the rate is halved; on a large set, those of one pass."""
HALVINGS: Final = 2
"""Number of halvings of the rate; if patience runs out once more, the model has converged."""
KEEP: Final = 0.8
"""Decay of the running average of the parameters at each validation: it averages out the noise of the last batches, as
averaging over the devices of a federation does (Polyak and Juditsky, SIAM J. Control Optim. 1992)."""
VALIDATION: Final = 0.1
"""Share of the pooled rows that is held out."""
VALIDATION_ROWS: Final = 2_000
"""Maximum number of validation rows, drawn by the seed."""
ALONE_STEPS: Final = (500, 2_000)
DEVICES: Final = 20
"""Maximum number of devices that train alone, drawn by the seed."""
TEST_ROWS: Final = 2_000
"""Maximum number of test rows for the models of single devices, drawn by the seed."""

Engine = Literal["numpy", "torch"]


@dataclass(frozen=True, slots=True)
class Baselines:
    """Measures the baselines of a run. `trainings` is the number of updates in the fleet's model."""

    data: FleetData
    model: FleetModel
    plan: Plan
    engine: Engine = "numpy"
    seed: int = 0
    trainings: int = 0
    pooled_seconds: float = POOLED_SECONDS
    clock: Callable[[], float] = time.monotonic

    def measure(self, parameters: Parameters | None) -> dict[str, Any]:
        """All three measurements as plain values; `parameters` is the fleet's model, None if there is none.

        Numbers that are not finite become None, since JSON has no others.
        """
        return {
            "metric": "accuracy" if self.data.task == "classification" else "rmse",
            "central": self.central(),
            "alone": self.alone(),
            "own": None if parameters is None else self.own(parameters),
        }

    def central(self) -> dict[str, Any]:
        """Train on all rows pooled until there is no more improvement, or `pooled_seconds` have passed.

        Improvement is judged by the running average of the parameters, on the held-out rows. After convergence the
        model is retrained on all rows, with the rates and the number of passes that led to the best average
        (Goodfellow, Bengio and Courville, Deep Learning, algorithm 7.2); if time runs out first, the value is that of
        the best average.
        """
        began = self.clock()
        until = began + self.pooled_seconds
        rows, held_out = self._held_out()
        recipe = self.model.recipe.under(self.plan)
        a_pass = -(-len(rows) // min(recipe.batch_size, len(rows)))
        stretch = _within(STRETCH, a_pass)
        patience = max(PATIENCE, -(-a_pass // stretch))
        course = _Course(self._start(rows), recipe.learning_rate)
        trainer = self.model.trainer(rows, self.engine, seed=self.seed)
        while not course.converged and (not course.number or self.clock() < until):
            trained = self._train(trainer, course.parameters, stretch, course.number, course.rate)
            course.record(trained, lambda average: self._score(average, held_out), patience)
        again = self._on_all_rows(course, stretch / len(rows), until) if course.converged else None
        everything = sum(len(rows) for rows in self.data.devices.values())
        steps = stretch * course.number
        return {
            "value": _finite(self._value(again or course.best, self.data.test)),
            "steps": steps,
            "steps_asked": steps,
            "rows": min(POOLED_ROWS, everything),
            "of_rows": everything,
            "converged": course.converged,
            "seconds": self.clock() - began,
        }

    def alone(self) -> dict[str, Any]:
        """Train each device's model on its own rows and normalisation, and evaluate it on the test rows of all."""
        until = self.clock() + SECONDS
        names = self._shuffled(len(self.data.devices))
        each = _within(ALONE_STEPS, self.trainings * self._local_steps // len(names))
        test = self._test()
        values: dict[str, float | None] = {}
        for name in names[:DEVICES]:
            if values and self.clock() > until:
                break
            rows = self.data.devices[name]
            trainer = self.model.trainer(rows, self.engine, seed=self.seed)
            parameters = self._train(trainer, self._start(rows), each, 0)
            values[name] = _finite(self._value(parameters, test))
        return {**_summary(values), "steps": each, "of": len(names), "test_rows": len(test)}

    def own(self, parameters: Parameters) -> dict[str, Any]:
        """Evaluate the fleet's model on each device's own training rows."""
        until = self.clock() + SECONDS
        names = self._shuffled(len(self.data.devices))
        values: dict[str, float | None] = {}
        for name in names:
            if values and self.clock() > until:
                break
            values[name] = _finite(self._value(parameters, self.data.devices[name]))
        return {**_summary(values), "of": len(names)}

    # ------------------------------------------------------------------- parts

    @property
    def _local_steps(self) -> int:
        return self.model.recipe.under(self.plan).local_steps

    def _start(self, rows: Rows) -> Parameters:
        return {**self.model.initial, **self.model.freeze(self.model.moments(rows))}

    def _train(
        self, trainer: Trainer, parameters: Parameters, steps: int, number: int, rate: float | None = None
    ) -> Parameters:
        asked = {"local_steps": steps, "seed": number, **({} if rate is None else {"learning_rate": rate})}
        return trainer(parameters, self.plan.model_copy(update=asked)).parameters

    def _held_out(self) -> tuple[Rows, Rows]:
        """Split training from held-out rows: whole devices, drawn by the seed, as in a test of new devices.

        Single rows are held out instead if there are few devices, or if held-out devices had most rows of a class.
        """
        pooled, sizes = self.data.pooled(), [len(rows) for rows in self.data.devices.values()]
        if len(pooled) == 1:
            return pooled, pooled
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(sizes))
        taken = order[: np.searchsorted(np.cumsum(np.array(sizes)[order]), VALIDATION * len(pooled)) + 1]
        held = np.repeat(np.isin(np.arange(len(sizes)), taken), sizes)
        labels = pooled.y if self.data.task == "classification" else np.zeros(len(pooled), np.int64)
        counts, left = (np.bincount(labels[chosen], minlength=self.data.classes or 1) for chosen in (held, ~held))
        if held.mean() > 2 * VALIDATION or np.any(counts > left):
            held = rng.permutation(len(pooled)) < max(1, round(VALIDATION * len(pooled)))
        rows, held_out = (Rows(pooled.x[chosen], pooled.y[chosen]) for chosen in (~held, held))
        return self._sample(rows, POOLED_ROWS), self._sample(held_out, VALIDATION_ROWS)

    def _on_all_rows(self, course: "_Course", share: float, until: float) -> Parameters | None:
        """Repeat the schedule of the best average on all rows, `share` steps a row each time; None if time runs out."""
        rows = self._sample(self.data.pooled(), POOLED_ROWS)
        trainer, average = self.model.trainer(rows, self.engine, seed=self.seed), self._start(rows)
        parameters = average
        for number, (rate, from_average) in enumerate(course.way):
            if self.clock() >= until:
                return None
            start = average if from_average else parameters
            parameters = self._train(trainer, start, round(share * len(rows)), number, rate)
            average = _mixed(average, parameters) if number else parameters
        return average

    def _score(self, parameters: Parameters, rows: Rows) -> float:
        """The metric, with a sign such that higher is better."""
        value = self._value(parameters, rows)
        return value if self.data.task == "classification" else -value

    def _value(self, parameters: Parameters, rows: Rows) -> float:
        metrics = self.model.evaluate(parameters, rows)
        return next(metrics[name] for name in METRICS if name in metrics)

    def _test(self) -> Rows:
        return self._sample(self.data.test, TEST_ROWS)

    def _sample(self, rows: Rows, most: int) -> Rows:
        if len(rows) <= most:
            return rows
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:most])
        return Rows(rows.x[chosen], rows.y[chosen])

    def _shuffled(self, number: int) -> list[str]:
        """All devices in an order drawn by the seed."""
        names = list(self.data.devices)
        return [names[place] for place in np.random.default_rng(self.seed).permutation(number)]


class _Course:
    """The schedule of pooled training: when patience runs out, it halves the rate and resumes from the best average."""

    def __init__(self, start: Parameters, rate: float) -> None:
        self.parameters = self.best = self._average = start
        self.rate, self.number, self.converged = rate, 0, False
        self.way: list[tuple[float, bool]] = []
        """The rates that led to the best average, and whether each training began from the average before it."""
        self._since: list[tuple[float, bool]] = []
        self._score, self._halvings, self._halved = -math.inf, 0, False

    def record(self, trained: Parameters, score: Callable[[Parameters], float], patience: int) -> None:
        """Record the result of one more training."""
        self.parameters = trained
        self._average = _mixed(self._average, trained) if self.number else trained
        self._since.append((self.rate, self._halved))
        self.number, self._halved = self.number + 1, False
        if (found := score(self._average)) > self._score:
            self.best, self._score = self._average, found
            self.way, self._since = self.way + self._since, []
        elif len(self._since) == patience:
            self.converged = self._halvings == HALVINGS
            self.parameters = self._average = self.best
            self.rate, self._halvings, self._halved, self._since = self.rate / 2, self._halvings + 1, True, []


def _mixed(average: Parameters, newest: Parameters) -> Parameters:
    """The running average of the parameters; of integer counters the newest value."""
    return {
        name: (KEEP * average[name] + (1 - KEEP) * array).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in newest.items()
    }


def _within(bounds: tuple[int, int], steps: int) -> int:
    least, most = bounds
    return min(most, max(least, steps))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _summary(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Values by device; mean, standard deviation, minimum and maximum of the finite ones."""
    known = [value for value in values.values() if value is not None]
    if not known:
        return {"values": dict(values), "mean": None, "deviation": None, "least": None, "most": None}
    return {
        "values": dict(sorted(values.items())),
        "mean": statistics.fmean(known),
        "deviation": statistics.pstdev(known),
        "least": min(known),
        "most": max(known),
    }
