"""Federations by the hundred, each drawn from its seed: does any stop learning, and is any model ruined?

    python -m benchmarks.stalls --worlds 1000 --seed 1 [--quick]

A world has a preset, 2 to 100 devices with unlike speeds, rows that are partly noise, and some of: a change of the
world (labels scaled by 0.01 to 1,000, or moved), devices that join late or leave, links that break, and, under the
default, up to one device in five that lies at up to its full rate. The problem is a linear regression in three inputs,
whose answer is known.

- *Stalled*: for three training intervals (and the strategy's own deadline) with enough honest devices there, no honest
  update was accepted.
- *Late*: the model ends not finite, or further off than `SLACK` of what knowing nothing costs, beside the same world in
  which no device lies. Without liars it must end no worse than a model that knows nothing, before or after the change:
  slow presets and federations of two have not learned everything new by the end.
- *Broken*: it still is after three times as long.

Presets other than the default promise nothing against liars, and get none.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.liars import ATTACKS, Liars
from midge.aggregator.core import presets
from midge.aggregator.core.staleness import constant, hinge
from midge.aggregator.core.strategy import Strategy, sgd
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.coding import Said
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.simulate import simulate
from midge.sensor_fleet.world import World
from midge.wire.messages import Update

INTERVALS = 3.0
SLACK = 0.25
LONGER = 3
"""Times its length that a world is played for before it counts as broken: small fleets are slow to unlearn."""
TRUE = np.array([0.6, -0.6, 0.5])
ROWS = 60
STEPS, RATE = 10, 0.15

PRESETS: dict[str, Callable[[int], Strategy]] = {
    "balanced": lambda _: presets.balanced(),
    "balanced, buffer": lambda n: presets.balanced(max(2, n // 4)),
    "fedasync": lambda _: presets.fedasync(),
    "fedasync, constant": lambda _: presets.fedasync(staleness=constant()),
    "fedasync, hinge": lambda _: presets.fedasync(staleness=hinge()),
    "fedasync, delta": lambda _: presets.fedasync(form="delta"),
    "fedbuff": lambda _: presets.fedbuff(),
    "fedbuff, 2": lambda _: presets.fedbuff(2),
    "fedbuff, momentum": lambda _: presets.fedbuff(5, optimizer=sgd(0.5)),
    "ca2fl": lambda _: presets.ca2fl(),
    "fadas": lambda _: presets.fadas(),
    "fedavg": lambda n: presets.fedavg(max(2, n // 3)),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One world."""

    seed: int
    preset: str
    devices: int
    spread: float
    noise: float
    jitter: float
    change: str
    """`none`, `scale` or `shift` of the labels."""
    factor: float
    at: float
    """When it changes, in median trainings."""
    late: float
    leave: float
    online: float
    liars: int
    kind: str
    seconds: float = 30.0

    @classmethod
    def of(cls, seed: int) -> "Drawn":
        rng = np.random.default_rng((seed, 5))
        devices = round(float(np.exp(rng.uniform(math.log(2), math.log(100)))))
        # Half of the worlds are of the default: it is what most users run, and what promises most.
        preset = "balanced" if rng.random() < 0.5 else str(rng.choice(list(PRESETS)))
        change = str(rng.choice(["none", "scale", "shift"]))
        liars = int(rng.integers(0, devices // 5 + 1)) if preset.startswith("balanced") and devices >= 5 else 0
        kinds = [kind for kind in ATTACKS if kind != "label flip"]
        return cls(
            seed=seed,
            preset=preset,
            devices=devices,
            spread=float(rng.choice([0.0, 0.6, 1.2])),
            noise=float(rng.uniform(0, 1)),
            jitter=float(rng.choice([0.0, 0.3])),
            change=change,
            factor=_factor(change, rng),
            at=float(rng.uniform(6, 14)),
            late=float(rng.choice([0.0, 0.3])),
            leave=float(rng.choice([0.0, 0.2])),
            online=float(rng.choice([0.0, 15.0])),
            liars=liars,
            kind=str(rng.choice(kinds)) if liars else "",
        )


def _factor(change: str, rng: np.random.Generator) -> float:
    """By how much labels change."""
    return (
        float(np.exp(rng.uniform(math.log(0.01), math.log(1000)))) if change == "scale" else float(rng.uniform(-5, 5))
    )


class Sensors:
    """The rows of all devices, whose labels change at a time, and what stands between devices and the aggregator."""

    def __init__(self, world: Drawn, liars: Liars | None) -> None:
        self._world, self._liars = world, liars
        self._clock: Clock | None = None
        rng = np.random.default_rng((world.seed, 6))
        self.x: npt.NDArray[np.float64] = rng.standard_normal((world.devices, ROWS, 3))
        self.y: npt.NDArray[np.float64] = self.x @ TRUE + world.noise * rng.standard_normal((world.devices, ROWS))

    def begin(self, server: Server, clock: Clock) -> None:
        self._clock = clock
        if self._liars is not None:
            self._liars.begin(server, clock)

    def sent(self, device: str, update: Update, said: Said) -> Said | None:
        return said if self._liars is None else self._liars.sent(device, update, said)

    def labels(self, now: float) -> npt.NDArray[np.float64]:
        if self._world.change == "none" or now < self._world.at:
            return self.y
        return self.y * self._world.factor if self._world.change == "scale" else self.y + self._world.factor

    def trainer(self, place: int) -> Callable[[Parameters, TrainingPlan], Fit]:
        def train(parameters: Parameters, _: TrainingPlan) -> Fit:
            assert self._clock is not None
            x, y = self.x[place], self.labels(self._clock.now)[place]
            w, b = parameters["w"].astype(np.float64), float(parameters["b"][0])
            for _step in range(STEPS):
                error = x @ w + b - y
                w, b = w - RATE * (x.T @ error) / ROWS, b - RATE * error.mean()
            return Fit({"w": w.astype(np.float32), "b": np.array([b], np.float32)}, ROWS, STEPS)

        return train

    def rmse(self, parameters: Parameters, now: float) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = self.x @ np.asarray(parameters["w"], np.float64) + float(parameters["b"][0])
            return float(np.sqrt(np.mean((outputs - self.labels(now)) ** 2)))


def play(drawn: Drawn) -> tuple[float, float, str]:
    """RMSE at the end, that of knowing nothing, and why it stalled (empty if it did not)."""
    names = [f"device-{number:0{len(str(drawn.devices - 1))}d}" for number in range(drawn.devices)]
    liars = frozenset(names[: drawn.liars])
    sensors = Sensors(drawn, Liars(drawn.kind, liars, drawn.seed) if liars else None)
    rng = np.random.default_rng((drawn.seed, 8))
    speeds = np.exp(drawn.spread * rng.standard_normal(drawn.devices))
    speeds /= np.median(speeds)
    world = replace(
        World(seed=drawn.seed, median=1.0, spread=0.0).calm(),
        late=drawn.late,
        leave=drawn.leave,
        online=drawn.online,
        offline=3.0 if drawn.online else 0.0,
    )
    strategy = PRESETS[drawn.preset](drawn.devices)
    found = simulate(
        [sensors.trainer(place) for place in range(drawn.devices)],
        strategy=strategy,
        seed=drawn.seed,
        seconds=drawn.seconds,
        initial={"w": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)},
        speeds=list(speeds),
        jitter=drawn.jitter,
        world=world,
        tamper=sensors,
        evaluate=lambda parameters: {"rmse": sensors.rmse(parameters, drawn.seconds)},
        every=drawn.seconds / 4,
    )
    nothing = sensors.rmse({"w": np.zeros(3), "b": np.zeros(1)}, drawn.seconds)
    return (
        float(found.metrics["rmse"][-1]),
        nothing,
        _stalled(drawn, strategy, found, liars, speeds, world.population(names), names),
    )


def _stalled(  # noqa: PLR0917 - what there is to look at
    drawn: Drawn,
    strategy: Strategy,
    found: Any,
    liars: frozenset[str],
    speeds: npt.NDArray[np.float64],
    population: Population,
    names: list[str],
) -> str:
    honest = [place for place, name in enumerate(names) if name not in liars]
    leaves = {place: (gone.at if (gone := population.leaves(names[place])) else math.inf) for place in honest}
    interval = float(np.quantile(speeds[honest], 0.75 if len(honest) >= 10 else 1.0)) * math.exp(2 * drawn.jitter)
    broken = 3.0 if drawn.online else 0.0
    limit = INTERVALS * (interval + broken) + (strategy.deadline or 0.0)
    times = [float(at) for at, place in zip(found.update_times, found.senders, strict=True) if int(place) in leaves]
    enough = max(strategy.release_floor, 3 if len(honest) > 2 else 2)
    since = max((population.joins(names[place]) for place in honest), default=0.0)
    for begin, end in zip([since, *times], [*times, drawn.seconds], strict=True):
        there = sum(leaves[place] > end for place in honest)
        if end - max(begin, since) > limit and there >= enough:
            return f"no honest update from {begin:.1f} to {end:.1f} s, limit {limit:.1f}: {dict(found.refused)}"
    return ""


def judge(seed: int) -> dict[str, Any]:
    """The verdict on the world of a seed."""
    return verdict(Drawn.of(seed))


def verdict(drawn: Drawn) -> dict[str, Any]:
    """One world, and the same without its liars if it has any; both go on for longer if it ends beyond its bound."""
    end, bound, stalled = _ends(drawn)
    late = "" if end <= bound else f"ends at {end:.3g}, beyond {bound:.3g}"
    broken = ""
    if late:
        end, bound, later = _ends(replace(drawn, seconds=LONGER * drawn.seconds))
        stalled = stalled or later
        broken = "" if end <= bound else f"ends at {end:.3g}, beyond {bound:.3g}"
    return {
        "seed": drawn.seed,
        "stalled": stalled,
        "broken": broken,
        "late": late,
        "over": end / bound if bound else 0.0,
        "world": repr(drawn),
    }


def _ends(drawn: Drawn) -> tuple[float, float, str]:
    """RMSE at the end, its bound, and why it stalled (empty if it did not)."""
    end, nothing, stalled = play(drawn)
    if not drawn.liars:
        return end, 1.05 * max(nothing, drawn.noise + float(np.linalg.norm(TRUE))), stalled
    honest, _, _ = play(replace(drawn, liars=0, kind=""))
    return end, honest + SLACK * nothing, stalled


def main() -> None:
    """Play what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="100 worlds, under 90 seconds on two cores")
    given = parser.parse_args()
    worlds, began = 100 if given.quick else given.worlds, time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(judge, range(given.seed * 100_000, given.seed * 100_000 + worlds), chunksize=1))
    for row in found:
        if row["stalled"] or row["late"]:
            told = f"stalled: {row['stalled']} broken: {row['broken']} late: {row['late']}"
            sys.stderr.write(f"{row['seed']}: {told} {row['world']}\n")
    worst = max(found, key=lambda row: row["over"] if math.isfinite(row["over"]) else math.inf)
    counts = Counter(name for row in found for name in ("stalled", "broken", "late") if row[name])
    sys.stdout.write(
        json.dumps(
            {
                "benchmark": "stalls",
                "quick": given.quick,
                "worlds": worlds,
                "stalled": counts["stalled"],
                "broken": counts["broken"],
                "late": counts["late"],
                "worst": {"seed": worst["seed"], "why": worst["broken"] or worst["stalled"] or worst["world"]},
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
