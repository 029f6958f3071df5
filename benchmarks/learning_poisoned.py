"""Poisoning: one device in ten sends an attack's updates (`benchmarks.liars`), under the default and other rules.

    python -m benchmarks.learning_poisoned [--quick] [--seeds N] [--devices 10,20,50] [--kinds …] [--rules …]

Digits by Dirichlet(0.3), speeds with σ = 1.2, 30 virtual seconds. All runs of a seed have the same fleet, so that the
column `alone`, the honest devices by themselves, is the reference for an attack. Results are kept in
`benchmarks/results/poisoned.json`; rows that are there are not run again.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.learning_methods import EVERY, TAIL, Run
from benchmarks.learning_problems import digits
from benchmarks.learning_worlds import WORLDS
from benchmarks.liars import ATTACKS, Liars, flipped
from benchmarks.resumed import Row, resumed
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet.simulation.simulate import simulate

RESULTS = Path(__file__).parent / "results" / "poisoned.json"
LIARS = 0.1
SECONDS = 30.0
FIRST_SEED = 700
ALONE, HONEST = "alone", "honest"
"""No attack: the honest devices by themselves, and all devices, all honest."""
KINDS = (*ATTACKS, ALONE, HONEST)
HARD = ("-10 times", "sign flip", "IPM 10", "Min-Max", "full rate", ALONE)
"""The attacks on which rules are compared: each of them defeats at least one rule."""

RULES: dict[str, Callable[[], Strategy]] = {
    "balanced": balanced,
    "as before": lambda: balanced(clip=10.0, robust=False, staleness=constant()),
    "clip at the median": lambda: balanced(clip=1.0, robust=False),
    "trimmed mean": lambda: balanced(10, clip=None, robust=False, combine="trimmed", trim=0.2),
    "centred clipping": lambda: balanced(10, clip=None, robust=False, combine="centred"),
    "no history": lambda: balanced(robust=False),
}
"""The default is `balanced`. `as before` is its predecessor without robustness; `no history` is the default without its
memory of devices."""


def run(case: tuple[str, str, int, int]) -> Row:
    """Simulate one federation: a rule, a kind of attack, a number of devices and a seed."""
    rule, kind, devices, seed = case
    made = Run(digits(seed, correlated=False, devices=devices), WORLDS["uneven"], seed, SECONDS)
    data, speeds = made.problem.data, list(made.speeds)
    names = list(data.devices)
    count = max(1, round(LIARS * devices))
    liars = frozenset(names[:count])
    tamper = None
    if kind == ALONE:
        data = replace(data, devices={name: rows for name, rows in data.devices.items() if name not in liars})
        speeds = speeds[count:]
    elif kind != HONEST:
        tamper = Liars(kind, liars, seed)
        if kind == "label flip":
            data = flipped(data, liars)
    found = simulate(
        made.problem.model,
        data=data,
        strategy=RULES[rule](),
        seed=seed,
        seconds=SECONDS,
        speeds=speeds,
        world=made.conditions.world(seed),
        evaluate=made.problem.evaluate,
        every=EVERY,
        tamper=tamper,
    )
    tail = found.times >= (1 - TAIL) * found.times[-1]
    ends = {name: float(found.metrics[name][tail].mean()) for name in ("accuracy", "worst", "slow")}
    return {
        "dataset": "digits",
        "world": "poisoned",
        "kind": kind,
        "rule": rule,
        "default": rule == "balanced",
        "devices": devices,
        "liars": count,
        "seed": seed,
        "final": round(ends["accuracy"], 4) if math.isfinite(ends["accuracy"]) else None,
        "worst_class": round(ends["worst"], 4),
        "slow_class": round(ends["slow"], 4),
    }


def _case(row: Row) -> tuple[str, str, int, int]:
    return row["rule"], row["kind"], row["devices"], row["seed"]


def report(found: Iterable[Row]) -> dict[str, Any]:
    """The rows in a fixed order, with median, minimum and maximum over seeds."""
    ordered = sorted(found, key=lambda row: (row["devices"], _place(row), row["seed"]))
    return {"benchmark": "learning_poisoned", "quick": False, "summary": list(summary(ordered)), "rows": ordered}


def _place(row: Row) -> tuple[int, int]:
    return list(RULES).index(row["rule"]), KINDS.index(row["kind"])


def summary(found: Iterable[Row]) -> Iterator[Row]:
    """Each rule under each kind of attack."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        groups.setdefault((row["devices"], row["rule"], row["kind"]), []).append(row)
    for (devices, rule, kind), group in groups.items():
        finals = [row["final"] or 0.0 for row in group]
        yield {
            "devices": devices,
            "rule": rule,
            "kind": kind,
            "default": rule == "balanced",
            "seeds": len(group),
            "final": [round(median(finals), 4), min(finals), max(finals)],
            "worst_class": round(median(row["worst_class"] for row in group), 4),
        }


def cases(seeds: int, devices: Sequence[int], kinds: Sequence[str], rules: Sequence[str]) -> Iterator[Any]:
    """The default under all requested kinds, the other rules under the hard ones."""
    for count in devices:
        for rule in rules:
            for kind in kinds if rule == "balanced" else [kind for kind in kinds if kind in HARD]:
                yield from ((rule, kind, count, FIRST_SEED + seed) for seed in range(seeds))


def main() -> None:
    """Run the requested cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_poisoned", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="twenty devices, two seeds, the hard kinds; nothing is stored"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--devices", default="10,20,50")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--rules", default=",".join(RULES))
    given = parser.parse_args()
    if given.quick:
        found = resumed(list(cases(2, [20], HARD, ["balanced"])), run, _case, report, None)
    else:
        devices = [int(count) for count in given.devices.split(",")]
        chosen = cases(given.seeds, devices, given.kinds.split(","), given.rules.split(","))
        found = resumed(list(chosen), run, _case, report, RESULTS)
    for entry in summary(found):
        middle, low, high = entry["final"]
        sys.stderr.write(
            f"{entry['devices']:3} {entry['rule']:20} {entry['kind']:18} {middle:.4f} ({low:.4f} to {high:.4f})"
            f"  worst class {entry['worst_class']:.3f}\n"
        )
    sys.stdout.write(json.dumps({"benchmark": "learning_poisoned", "quick": given.quick, "rows": found}) + "\n")


if __name__ == "__main__":
    main()
