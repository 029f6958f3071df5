"""What a federation is to be measured by: the same model trained on all rows pooled, and by each device alone.

Both use the devices' own trainer and recipe, and no more training than is said in the result. Pooling is what the
federation avoids, and alone is what each device has without it: the run should end near the one and above the other.
Everything here is bounded, in steps and in seconds, so that the end of a run is not delayed.
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
from midge.sensor_fleet.progress import HELD, METRICS
from midge.wire.messages import Plan

SECONDS: Final = 2.5
"""For each of the three measurements, about."""
POOLED_STEPS: Final = (2_000, 20_000)
"""At least and at most: below, the model is not trained; beyond, a small one gains nothing."""
ALONE_STEPS: Final = (500, 2_000)
POOLED_ROWS: Final = 20_000
DEVICES: Final = 20
"""How many devices train alone; a larger fleet has this many drawn by the seed."""
TEST_ROWS: Final = 2_000
"""What the models of single devices are evaluated on at most, drawn by the seed."""
_STRETCHES: Final = 25
"""Number of trainings that the pooled one is cut into, to look at the clock in between."""

Engine = Literal["numpy", "torch"]


@dataclass(frozen=True, slots=True)
class Baselines:
    """What to measure with. `trainings` is how many updates the fleet's model is made of."""

    data: FleetData
    model: FleetModel
    plan: Plan
    engine: Engine = "numpy"
    seed: int = 0
    trainings: int = 0
    clock: Callable[[], float] = time.monotonic

    def measure(self, parameters: Parameters | None) -> dict[str, Any]:
        """All three as plain values; `parameters` is the fleet's model, None where there is none.

        Numbers that are not finite become None, for JSON has no others.
        """
        return {
            "metric": "accuracy" if self.data.task == "classification" else "rmse",
            "central": self.central(),
            "alone": self.alone(),
            "own": None if parameters is None else self.own(parameters),
        }

    def central(self) -> dict[str, Any]:
        """The model trained on all rows pooled, with as many steps as the fleet did altogether.

        Its value is the mean of the last evaluations, as the run's is.
        """
        until = self.clock() + SECONDS
        pooled = self._some(self.data.pooled(), POOLED_ROWS)
        trainer = self.model.trainer(pooled, self.engine, seed=self.seed)
        asked = _within(POOLED_STEPS, self.trainings * self._local_steps)
        stretch = -(-asked // _STRETCHES)
        parameters, steps, values = self._start(pooled), 0, []
        for number in range(_STRETCHES):
            late = self.clock() > until
            parameters, done = self._train(trainer, parameters, stretch, number)
            steps += done
            if late or number >= _STRETCHES - HELD:
                values.append(self._value(parameters, self.data.test))
            if late:
                break
        return {
            "value": _finite(statistics.fmean(values)),
            "steps": steps,
            "steps_asked": stretch * _STRETCHES,
            "rows": len(pooled),
            "of_rows": sum(len(rows) for rows in self.data.devices.values()),
        }

    def alone(self) -> dict[str, Any]:
        """Each device's model from its own rows and its own normalisation, evaluated on the test rows of all."""
        until = self.clock() + SECONDS
        names = self._drawn(len(self.data.devices))
        each = _within(ALONE_STEPS, self.trainings * self._local_steps // len(names))
        test = self._test()
        values: dict[str, float | None] = {}
        for name in names[:DEVICES]:
            if values and self.clock() > until:
                break
            rows = self.data.devices[name]
            trainer = self.model.trainer(rows, self.engine, seed=self.seed)
            parameters, _ = self._train(trainer, self._start(rows), each, 0)
            values[name] = _finite(self._value(parameters, test))
        return {**_spread(values), "steps": each, "of": len(names), "test_rows": len(test)}

    def own(self, parameters: Parameters) -> dict[str, Any]:
        """The fleet's model on each device's own training rows."""
        until = self.clock() + SECONDS
        names = self._drawn(len(self.data.devices))
        values: dict[str, float | None] = {}
        for name in names:
            if values and self.clock() > until:
                break
            values[name] = _finite(self._value(parameters, self.data.devices[name]))
        return {**_spread(values), "of": len(names)}

    # ------------------------------------------------------------------- parts

    @property
    def _local_steps(self) -> int:
        return self.model.recipe.under(self.plan).local_steps

    def _start(self, rows: Rows) -> Parameters:
        return {**self.model.initial, **self.model.freeze(self.model.moments(rows))}

    def _train(self, trainer: Trainer, parameters: Parameters, steps: int, number: int) -> tuple[Parameters, int]:
        plan = self.plan.model_copy(update={"local_steps": steps, "seed": number})
        return trainer(parameters, plan).parameters, steps

    def _value(self, parameters: Parameters, rows: Rows) -> float:
        metrics = self.model.evaluate(parameters, rows)
        return next(metrics[name] for name in METRICS if name in metrics)

    def _test(self) -> Rows:
        return self._some(self.data.test, TEST_ROWS)

    def _some(self, rows: Rows, most: int) -> Rows:
        if len(rows) <= most:
            return rows
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:most])
        return Rows(rows.x[chosen], rows.y[chosen])

    def _drawn(self, number: int) -> list[str]:
        """All devices in an order drawn by the seed: which are left out is random."""
        names = list(self.data.devices)
        return [names[place] for place in np.random.default_rng(self.seed).permutation(number)]


def _within(bounds: tuple[int, int], steps: int) -> int:
    least, most = bounds
    return min(most, max(least, steps))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(values: Mapping[str, float | None]) -> dict[str, Any]:
    """The values by device, and of those which are finite the mean, the standard deviation and both ends."""
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
