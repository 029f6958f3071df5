"""Convergence of every preset on small problems with known answers, and its time relative to the default.

    python -m benchmarks.presets [--quick] [--devices 2,10,50,200]

Devices train in one second in the median, in lock-step or with log-normal speeds (σ = 1.2). Linear and logistic
regression must come within 0.1 of the pooled solution in each weight, digits to 90 %, and stay there for two seconds;
the run continues for ten more. A preset is stuck if it does not get there in time, and wild if it is ever further off
than twice its initial distance. Its multiple is its time over the default's in the same fleet.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import midge
from benchmarks.learning_methods import HELD
from benchmarks.learning_problems import digits
from midge.aggregator.core.strategy import Strategy
from midge.iot_client.training.fit import Parameters, TrainingPlan
from midge.sensor_fleet.simulation.simulate import simulate

RESULTS = Path(__file__).parent / "results" / "presets.json"
HORIZON = 120.0
EVERY = 0.5
BEYOND = 10.0
"""Seconds that a run continues after it has settled, in which it may turn wild."""
TRUE = np.array([0.6, -0.6, 0.5])
NEAR = 0.1
ACCURATE = 0.90
SPREADS = {"lock-step": 0.0, "log-normal": 1.2}
PROBLEMS = ("linear", "logistic", "digits")
PRESETS: dict[str, Callable[[], Strategy]] = {
    "balanced": midge.balanced,
    "fedasync": midge.fedasync,
    "fedasync, constant": lambda: midge.fedasync(staleness=midge.constant()),
    "fedasync, hinge": lambda: midge.fedasync(staleness=midge.hinge()),
    "fedasync, delta": lambda: midge.fedasync(form="delta"),
    "fedbuff": midge.fedbuff,
    "fedbuff of 2": lambda: midge.fedbuff(2),
    "ca2fl": midge.ca2fl,
    "fadas": midge.fadas,
    "fedavg": lambda: midge.fedavg(5),
}

Row = dict[str, Any]


class Regression:
    """A trainer of one device: ten passes of gradient descent over a hundred rows of its own."""

    def __init__(self, seed: int, *, logistic: bool) -> None:
        rng = np.random.default_rng(seed)
        self.logistic = logistic
        self.x = rng.standard_normal((100, 3))
        score = self.x @ TRUE
        self.y = (
            (rng.random(100) < 1 / (1 + np.exp(-score))).astype(float)
            if logistic
            else score + 0.1 * rng.standard_normal(100)
        )

    def gradient(self, w: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Gradient of the mean loss."""
        score = self.x @ w
        found: npt.NDArray[np.float64] = self.x.T @ ((1 / (1 + np.exp(-score)) if self.logistic else score) - self.y)
        return found / len(self.y)

    def __call__(self, parameters: Parameters, _: TrainingPlan) -> midge.Fit:
        w = parameters["w"].astype(np.float64)
        for _step in range(10):
            w = w - 0.2 * self.gradient(w)
        return midge.Fit({"w": w.astype(np.float32)}, len(self.y), 10)


def pooled(devices: list[Regression]) -> npt.NDArray[np.float64]:
    """The weights at which the mean gradient over all devices is zero."""
    w = np.zeros(3)
    for _ in range(2000):
        w = w - 0.5 * np.mean([device.gradient(w) for device in devices], axis=0)
    return w


def run(case: tuple[str, str, int, str]) -> Row:
    """One federation: a preset, a problem, a number of devices and their speeds."""
    name, problem, devices, speeds = case
    spread = SPREADS[speeds]
    seconds = np.exp(spread * np.random.default_rng(devices).standard_normal(devices))
    shared: dict[str, Any] = {
        "strategy": PRESETS[name](),
        "seconds": HORIZON,
        "speeds": list(seconds / np.median(seconds)),
        "jitter": 0.2,
        "every": EVERY,
    }
    if problem == "digits":
        dealt = digits(0, correlated=False, devices=devices)
        ends = _Settled(lambda metrics: metrics["accuracy"] >= ACCURATE)
        simulate(dealt.model, data=dealt.data, evaluate=dealt.evaluate, stop=ends, **shared)
        wild = False
    else:
        trainers = [Regression(number, logistic=problem == "logistic") for number in range(devices)]
        answer = pooled(trainers)
        ends = _Settled(lambda metrics: metrics["far"] <= NEAR)
        found = simulate(
            trainers,
            initial={"w": np.zeros(3, np.float32)},
            evaluate=lambda parameters: {"far": float(np.abs(parameters["w"] - answer).max())},
            stop=ends,
            **shared,
        )
        far = found.metrics["far"]
        wild = bool(not np.isfinite(far).all() or far.max() > 2 * far[0])
    return {
        "preset": name,
        "problem": problem,
        "devices": devices,
        "speeds": speeds,
        "seconds": ends.settled,
        "wild": wild,
    }


class _Settled:
    """Ends a run a while after the model has settled."""

    def __init__(self, inside: Callable[[Mapping[str, float]], bool]) -> None:
        self._inside = inside
        self._since: float | None = None
        self.settled: float | None = None
        """When it settled: came within bounds and stayed for `HELD` seconds."""

    def __call__(self, now: float, metrics: Mapping[str, float]) -> bool:
        if not self._inside(metrics):
            self._since = None
        elif self._since is None:
            self._since = now
        if self.settled is None and self._since is not None and now - self._since >= HELD:
            self.settled = self._since
        return self.settled is not None and now - self.settled >= BEYOND


def with_multiples(rows: list[Row]) -> list[Row]:
    """The rows, each with its time over the default's in the same fleet."""
    default = {_fleet(row): row["seconds"] for row in rows if row["preset"] == "balanced"}
    for row in rows:
        mine, its = row["seconds"], default.get(_fleet(row))
        row["multiple"] = None if mine is None or its is None else round(max(mine, EVERY) / max(its, EVERY), 2)
    return rows


def _fleet(row: Row) -> tuple[str, int, str]:
    return row["problem"], row["devices"], row["speeds"]


def main() -> None:
    """Run the requested cases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the regressions with 2 and 20 devices; nothing is stored")
    parser.add_argument("--devices", default="2,5,10,20,50,100,200")
    given = parser.parse_args()
    devices = [2, 20] if given.quick else [int(count) for count in given.devices.split(",")]
    problems = PROBLEMS[:2] if given.quick else PROBLEMS
    cases = [
        (name, problem, count, speeds)
        for problem in problems
        for count in devices
        for speeds in SPREADS
        for name in PRESETS
    ]
    with ProcessPoolExecutor(2) as pool:
        rows = with_multiples(list(pool.map(run, cases)))
    if not given.quick:
        RESULTS.write_text(json.dumps({"benchmark": "presets", "quick": False, "rows": rows}, indent=1) + "\n")
    for row in rows:
        if row["seconds"] is None or row["wild"]:
            sys.stderr.write(f"{row}\n")
    print(json.dumps({"benchmark": "presets", "quick": given.quick, "rows": rows}))


if __name__ == "__main__":
    main()
