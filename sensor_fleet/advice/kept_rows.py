"""Rows that each device keeps out of training, and how a model does on them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from midge.iot_client.training.fit import Parameters
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.fleet_run import value_of
from midge.sensor_fleet.models import FleetModel

SHARE: Final = 0.2
"""Of a device's rows."""
RUNS: Final = 10
"""Runs of neighbouring rows, some of which are kept."""
DEVICES: Final = 200
"""Maximum number of devices that a model is measured on, evenly spaced over all."""
WORST: Final = 0.1
"""Share of the devices that count as the worst."""


def split(data: FleetData, seed: int = 0) -> tuple[FleetData, dict[str, Rows]]:
    """The data without the kept rows, and these rows by device. A device of one row keeps none out.

    Rows are kept in runs: neighbours in time are alike, and among them a device alone would seem to do well.
    """
    rng = np.random.default_rng(seed)
    training, kept = {}, {}
    for name, rows in data.devices.items():
        runs = np.array_split(np.arange(len(rows)), min(RUNS, len(rows)))
        out = set(rng.permutation(len(runs))[: min(len(runs) - 1, math.ceil(SHARE * len(runs)))].tolist())
        left, taken = (
            np.concatenate([run for place, run in enumerate(runs) if (place in out) == which] or [runs[0][:0]])
            for which in (False, True)
        )
        training[name] = Rows(rows.x[left], rows.y[left])
        if out:
            kept[name] = Rows(rows.x[taken], rows.y[taken])
    return replace(data, devices=training), kept


def chosen(kept: Mapping[str, Rows]) -> list[str]:
    """The devices that are measured."""
    names = list(kept)
    places = np.unique(np.linspace(0, len(names) - 1, min(len(names), DEVICES)).round().astype(int))
    return [names[place] for place in places]


def own_scores(
    model: FleetModel, kept: Mapping[str, Rows], parameters: Callable[[str], Parameters], sign: int
) -> tuple[float, float]:
    """Mean over the devices, and over the worst of them, of `parameters(device)` on its kept rows."""
    return mean_and_worst([value_of(model.evaluate(parameters(name), kept[name])) for name in chosen(kept)], sign)


def mean_and_worst(values: list[float], sign: int) -> tuple[float, float]:
    """The mean of all values, and of the worst tenth of them; `sign` is 1 if higher is better. NaN without values."""
    if not values:
        return math.nan, math.nan
    ordered = sorted(values, key=lambda value: sign * value)
    worst = ordered[: max(1, math.ceil(WORST * len(ordered)))]
    return float(np.mean(ordered)), float(np.mean(worst))
