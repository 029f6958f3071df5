"""Cost of robustness without attackers: the default compared with its predecessor, on the same fleets.

    python -m benchmarks.learning_honest [--quick] [--seeds N]

Differences are paired by seed, with a one-sided 95 % bootstrap bound over seeds. Crossings of 93 % are on a grid of
0.05 virtual seconds. Results are kept in `benchmarks/results/honest.json`; rows that are there are not run again.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.learning_methods import Run
from benchmarks.learning_poisoned import RULES
from benchmarks.learning_problems import digits
from benchmarks.learning_worlds import WORLDS
from benchmarks.resumed import Row, resumed
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.strategy import Strategy

RESULTS = Path(__file__).parent / "results" / "honest.json"
SECONDS = 30.0
EVERY = 0.05
FIRST_SEED = 800
TARGET = 0.93
NEVER = 2 * SECONDS
"""Seconds assigned to a run that does not hold the target."""
FLEETS = (("uneven", 10), ("uneven", 20), ("uneven", 50), ("correlated", 20), ("correlated", 50))
BEFORE = RULES["as before"]
FIELDS = ("final", "worst_class", "slow_half")


def run(case: tuple[str, int, int]) -> Row:
    """Both defaults in one fleet."""
    world, devices, seed = case
    fleet = Run(digits(seed, correlated=WORLDS[world].correlated, devices=devices), WORLDS[world], seed, SECONDS)
    return {
        "world": world,
        "devices": devices,
        "seed": seed,
        "default": _course(fleet, balanced),
        "before": _course(fleet, BEFORE),
    }


def _course(fleet: Run, make: Callable[[], Strategy]) -> dict[str, float | None]:
    course = fleet.asynchronous(make(), 1.0, every=EVERY)
    ends = course.ends()
    return {
        "seconds": course.seconds_to(TARGET),
        "final": ends["metric"],
        "worst_class": ends["worst"],
        "slow_half": ends["slow"],
    }


def summary(rows: list[Row]) -> list[Row]:
    """Mean differences for each kind of fleet, in points and as a share of the time, each with its 95 % bound."""
    found = []
    for world, devices in FLEETS:
        some = [row for row in rows if (row["world"], row["devices"]) == (world, devices)]
        if not some:
            continue
        entry: Row = {"world": world, "devices": devices, "seeds": len(some)}
        for name in FIELDS:
            differences = np.array([100 * (row["default"][name] - row["before"][name]) for row in some])
            entry[name] = [round(float(differences.mean()), 2), round(_bound(differences, 0.05), 2)]
        ratios = np.array(
            [np.log((row["default"]["seconds"] or NEVER) / (row["before"]["seconds"] or NEVER)) for row in some]
        )
        entry["time"] = [round(float(np.expm1(value)), 3) for value in (ratios.mean(), _bound(ratios, 0.95))]
        found.append(entry)
    return found


def _bound(differences: npt.NDArray[np.float64], quantile: float) -> float:
    draws = np.random.default_rng(0).integers(0, len(differences), (5_000, len(differences)))
    return float(np.quantile(differences[draws].mean(axis=1), quantile))


def report(rows: Iterable[Row]) -> dict[str, Any]:
    """What is stored: the rows in a fixed order, and their summary."""
    ordered = sorted(rows, key=lambda row: (FLEETS.index((row["world"], row["devices"])), row["seed"]))
    return {"benchmark": "learning_honest", "quick": False, "summary": summary(ordered), "rows": ordered}


def _case(row: Row) -> tuple[str, int, int]:
    return row["world"], row["devices"], row["seed"]


def main() -> None:
    """Run the requested cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_honest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="twenty devices and four seeds; nothing is stored")
    parser.add_argument("--seeds", type=int, default=30)
    given = parser.parse_args()
    seeds = 4 if given.quick else given.seeds
    cases = [
        (world, devices, FIRST_SEED + seed)
        for world, devices in FLEETS
        if devices == 20 or not given.quick
        for seed in range(seeds)
    ]
    entries = summary(resumed(cases, run, _case, report, None if given.quick else RESULTS))
    for entry in entries:
        sys.stderr.write(f"{entry}\n")
    sys.stdout.write(json.dumps({"benchmark": "learning_honest", "quick": given.quick, "summary": entries}) + "\n")


if __name__ == "__main__":
    main()
