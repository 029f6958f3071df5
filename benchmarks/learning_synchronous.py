"""The upper bound of synchronous rounds: all devices start at once, the first m of n count, a deadline ends a round.

The server is ideal: it takes no time between rounds and gets exact deltas; late devices drop their work at once and
join the next round (over-selection, Bonawitz et al., arXiv:1902.01046). With m = n it is federated averaging that waits
for all (McMahan et al., AISTATS 2017).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.simulation.stacked import Job, Stack
from midge.sensor_fleet.world import World
from midge.wire.messages import Plan
from midge.wire.schema import Vector


@dataclass(frozen=True, slots=True)
class Rounds:
    """A synchronous rule."""

    share: float = 1.0
    """m / n: a round ends when this share of the devices has arrived."""
    deadline: float = math.inf
    """Seconds after which it ends anyway, with at least one update."""
    rate: float = 1.0
    """The server's rate."""
    momentum: float = 0.0
    """β of the server's heavy ball: v ← β·v + Δ, x ← x + rate·v."""
    average: float = 0.0
    """Decay of the served moving average over rounds; 0 serves the newest model."""
    by_examples: bool = False
    """Whether updates are weighted by their devices' number of rows."""


def run(
    rule: Rounds,
    stack: Stack,
    x: Vector,
    seconds: Sequence[float],
    *,
    world: World,
    names: Sequence[str],
    until: float,
    plan: Plan,
    overhead: float = 0.0,
) -> Iterator[tuple[float, Vector, int]]:
    """Time, model and updates after each round. `overhead` is added to each training, in seconds."""
    now, number = 0.0, 0
    population = world.population(names)
    links = [_Link(population.outages(name)) for name in names]
    m = max(1, round(rule.share * len(names)))
    used, velocity = x, np.zeros_like(x)
    yield now, used, 0
    while now < until:
        arrivals = []
        for device, (each, link) in enumerate(zip(seconds, links, strict=True)):
            begin = link.online_from(now)
            arrivals.append((link.online_from(begin + overhead + each), device))
        arrivals.sort()
        end = min(arrivals[m - 1][0], max(now + rule.deadline, arrivals[0][0]))
        taken = [device for at, device in arrivals if at <= end][:m]
        number += 1
        jobs = [Job(device, x, plan.model_copy(update={"seed": number * 100_003 + device})) for device in taken]
        trained = stack.train(jobs)
        weights = np.array([stack.counts[device] if rule.by_examples else 1 for device in taken], np.float64)
        total = np.zeros_like(x)
        for weight, values in zip(weights / weights.sum(), trained, strict=True):
            total += np.float32(weight) * (values - x)
        velocity = np.float32(rule.momentum) * velocity + total
        x = x + np.float32(rule.rate) * velocity
        # As in `aggregator.model`: bias correction of the average over few rounds.
        used = x + np.float32(min(rule.average, number / (number + 9))) * (used - x)
        now = end
        yield now, used, len(taken)


class _Link:
    """The availability of a device; queried in ascending order of time, except for one training ahead."""

    def __init__(self, outages: Iterator[tuple[float, float]]) -> None:
        self._outages = outages
        self._known: list[tuple[float, float]] = []

    def online_from(self, time: float) -> float:
        """The first time from `time` on at which the link works."""
        while not self._known or self._known[-1][1] <= time:
            pair = next(self._outages, None)
            if pair is None:
                return time
            self._known.append(pair)
        for broken, back in reversed(self._known):
            if broken <= time < back:
                return back
            if back <= time:
                break
        return time


def evaluated(
    rounds: Iterator[tuple[float, Vector, int]],
    grid: npt.NDArray[np.float64],
    evaluate: Callable[[Vector], Mapping[str, float]],
) -> list[Mapping[str, float]]:
    """Metrics on a grid of times: of the model after the last round that had ended by then."""
    found: list[Mapping[str, float]] = []
    _, x, _ = next(rounds)
    known: Mapping[str, float] | None = None
    for time, newer, _ in rounds:
        while len(found) < len(grid) and grid[len(found)] < time:
            known = evaluate(x) if known is None else known
            found.append(known)
        x, known = newer, None
        if len(found) == len(grid):
            return found
    known = evaluate(x)
    return found + [known] * (len(grid) - len(found))
