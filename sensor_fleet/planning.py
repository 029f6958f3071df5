"""Planning: how long a fleet would take, and how many bytes and how much energy, for which accuracy.

The fleet is simulated with several seeds, because one run is a single observation. Reported is the worst seed beside
the best.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from midge.sensor_fleet.fleet_run import FleetRun
from midge.sensor_fleet.progress import HELD, METRICS
from midge.sensor_fleet.simulation.fleet_progress import FleetProgress
from midge.sensor_fleet.simulation.result import MONTH
from midge.sensor_fleet.simulation.usage import BoardCosts
from midge.sensor_fleet.virtual import ProfileFleet

_SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Levels without a target: shares of the way from the first model to the best that all seeds reach."""

Span = tuple[float, float]
"""Best and worst over the seeds."""


@dataclass(frozen=True, slots=True)
class Level:
    """The cost of reaching a score. Bytes and joules are means over the devices; spans are over the seeds."""

    score: float
    reached: int
    """Number of seeds that reached it; the spans are over these."""
    seconds: Span | None
    sent: Span | None
    received: Span | None
    joules: Span | None

    def packed(self) -> dict[str, Any]:
        """The level as plain values."""
        names = ("seconds", "sent", "received", "joules")
        spans = {name: None if (span := getattr(self, name)) is None else list(span) for name in names}
        return {"score": self.score, "reached": self.reached, **spans}


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The answer for a fleet."""

    metric: str
    seeds: int
    levels: tuple[Level, ...]
    monthly: dict[str, tuple[float, float, float]]
    """For each class: payload bytes sent and received, and joules, of a device in thirty days at this pace."""
    final: Span
    boards: dict[str, BoardCosts]
    """Costs of each class of microcontrollers, for the seed with the highest energy per device."""
    left_out: tuple[str, ...]
    """A sentence for each class that is left out because the model does not fit into its memory."""

    def packed(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "metric": self.metric,
            "seeds": self.seeds,
            "final": list(self.final),
            "levels": [level.packed() for level in self.levels],
            "monthly": {name: list(costs) for name, costs in self.monthly.items()},
            "boards": {name: asdict(costs) for name, costs in self.boards.items()},
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, slots=True)
class _Curve:
    """One seed, by evaluation."""

    seconds: list[float]
    means: list[float]
    sent: list[float]
    received: list[float]
    joules: list[float]


def plan(fleet: ProfileFleet, seeds: int = 3, watch: Callable[[int, FleetProgress], None] | None = None) -> FleetPlan:
    """Simulate a fleet with several seeds and summarise its costs.

    Raises:
        ValueError: the fleet cannot be simulated.
    """
    found: list[FleetRun] = []
    for number in range(seeds):
        setting = replace(fleet.setting, seed=fleet.setting.seed + number)
        report = None if watch is None else lambda moment, number=number: watch(number, moment)
        found.append(replace(fleet, setting=setting, stop_at_target=False).run(report))
    return answer(found, fleet.target)


def answer(found: Sequence[FleetRun], target: float | None) -> FleetPlan:
    """Summarise simulations of one fleet."""
    metric = found[0].metric
    sign = METRICS[metric]
    curves = [_curve(one) for one in found]
    ends = [max(curve.means, key=lambda value: sign * value) for curve in curves]
    scores = [target] if target is not None else _scores([curve.means[0] for curve in curves], ends, sign)
    finals = [one.value for one in found]
    best, worst = max(finals, key=lambda value: sign * value), min(finals, key=lambda value: sign * value)
    boards: dict[str, BoardCosts] = {}
    for one in found:
        for name, costs in one.result.boards.items():
            boards[name] = max(costs, boards.get(name, costs), key=lambda each: each.joules_per_day)
    levels = tuple(_level(curves, score, sign) for score in scores)
    left_out = tuple(dict.fromkeys(sentence for one in found for sentence in one.result.left_out))
    return FleetPlan(metric, len(found), levels, _monthly(found), (best, worst), boards, left_out)


def _curve(found: FleetRun) -> _Curve:
    result = found.result
    values = result.metrics[found.metric]
    devices = len(result.devices)
    moved = result.bytes_at / devices
    # Energy is proportional to training and traffic, of which the updates so far are recorded.
    share = result.updates / max(int(result.updates[-1]), 1)
    joules = share * float(result.joules.sum()) / devices
    means = [float(np.mean(values[max(0, end - HELD) : end])) for end in range(1, len(values) + 1)]
    return _Curve(result.times.tolist(), means, moved[:, 0].tolist(), moved[:, 1].tolist(), joules.tolist())


def _scores(first: Sequence[float], last: Sequence[float], sign: int) -> list[float]:
    """Scores between the worst start and the worst end."""
    start, end = sign * min(sign * value for value in first), sign * min(sign * value for value in last)
    return [start + share * (end - start) for share in _SHARES]


def _level(curves: Sequence[_Curve], score: float, sign: int) -> Level:
    places = [
        (curve, place)
        for curve in curves
        if (place := next((n for n, mean in enumerate(curve.means) if sign * mean >= sign * score - 1e-12), None))
        is not None
    ]

    def span(name: str) -> Span | None:
        values = [getattr(curve, name)[place] for curve, place in places]
        return (min(values), max(values)) if values else None

    return Level(score, len(places), span("seconds"), span("sent"), span("received"), span("joules"))


def _monthly(found: Sequence[FleetRun]) -> dict[str, tuple[float, float, float]]:
    """Monthly costs by class, of the most expensive seed."""
    costs: dict[str, tuple[float, float, float]] = {}
    for one in found:
        month = MONTH / float(one.result.times[-1])
        for name, summary in one.result.by_class().items():
            new = summary.bytes_up * month, summary.bytes_down * month, summary.monthly_joules
            before = costs.get(name, (0.0, 0.0, 0.0))
            costs[name] = (max(before[0], new[0]), max(before[1], new[1]), max(before[2], new[2]))
    return costs
