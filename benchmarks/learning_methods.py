"""The strategies that `benchmarks.learning` compares, their tuning grids, and one run of one of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.learning_problems import Problem
from benchmarks.learning_synchronous import Rounds, evaluated, run
from benchmarks.learning_worlds import Conditions
from midge.aggregator.core import presets
from midge.aggregator.core.optimizers import sgd
from midge.aggregator.core.staleness import constant
from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet.simulation.simulate import simulate
from midge.sensor_fleet.simulation.stacked import Job, Stack, TrainingRows
from midge.wire.messages import Plan
from midge.wire.moments import pool
from midge.wire.schema import Schema, Vector

HELD = 2.0
"""Virtual seconds for which a target must be held: two trainings of the median device."""
EVERY = 0.25
TAIL = 0.2
"""Last part of a run, over which final metrics are averaged."""
SLOWER = 2.0
"""How many times longer synchronous runs may last: they are cheap to simulate."""
LOCAL = (1.0, 3.0)
"""Factors of the model's own local rate."""


def buffer_of(devices: int) -> int:
    """K of every buffered method: that of the default."""
    return max(2, round(devices / 5))


@dataclass(frozen=True, slots=True)
class Method:
    """Asynchronous strategies, by number of devices and server rate (0: its own). None are never tuned."""

    name: str
    make: Callable[[int, float], Strategy]
    rates: tuple[float, ...] = ()
    default: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("balanced", lambda _n, _rate: presets.balanced(), default=True),
        Method("balanced, tuned", lambda _n, rate: presets.balanced(server_rate=rate or None), (0.0, 1.0)),
        Method(
            "fedbuff by weight", lambda n, rate: presets.fedbuff(buffer_of(n), rate, normalise="weight"), (0.4, 1.0)
        ),
        Method("fedbuff by count", lambda n, rate: presets.fedbuff(buffer_of(n), rate), (0.4, 1.0)),
        Method(
            "fedbuff averaged",
            lambda n, rate: presets.fedbuff(buffer_of(n), rate, constant(), "weight", serve_decay=0.9),
            (0.4, 1.0),
        ),
        Method("fedasync delta", lambda _, rate: presets.fedasync(rate, form="delta", bounded=False), (0.1, 0.6)),
        Method("fedasync mixing", lambda _, rate: presets.fedasync(rate, form="mixing"), (0.1, 0.6)),
        Method("ca2fl", lambda n, rate: presets.ca2fl(buffer_of(n), rate), (0.4, 1.0)),
        Method("fadas", lambda _, rate: presets.fadas(5, rate), (1e-3, 1e-2)),
        Method(
            "server momentum",
            lambda n, rate: presets.fedbuff(buffer_of(n), rate, constant(), "weight", optimizer=sgd(0.9)),
            (0.03, 0.1),
        ),
    )
}
RIVALS = 5
SYNCHRONOUS, EVERYBODY = "best synchronous", "fedavg, waits for all"
SHARES = (0.3, 0.5, 0.65, 0.8, 0.9, 1.0)
RATES = (0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0)
LOCAL_RATES = (1.0, 2.0, 4.0, 7.0, 10.0)
DEADLINES = (math.inf, 8.0, 4.0, 2.0)
STEPS = (1, 2, 3, 5, 10, 20)
MOMENTA = (0.0, 0.5, 0.8, 0.9)
AVERAGES = (0.0, 0.5, 0.8)


@dataclass(frozen=True, slots=True)
class Course:
    """A run: metrics at ascending times."""

    times: npt.NDArray[np.float64]
    metric: npt.NDArray[np.float64]
    worst: npt.NDArray[np.float64]
    slow: npt.NDArray[np.float64]
    lower: bool

    def seconds_to(self, target: float) -> float | None:
        """When the target was first reached and then held for `held` seconds."""
        since: float | None = None
        for time, value in zip(self.times, self.metric, strict=True):
            if not (value <= target if self.lower else value >= target):
                since = None
                continue
            since = float(time) if since is None else since
            if time - since >= HELD:
                return since
        return None

    def ends(self) -> dict[str, float | None]:
        """Means over the tail."""
        tail = self.times >= (1 - TAIL) * self.times[-1]
        means = {name: float(getattr(self, name)[tail].mean()) for name in ("metric", "worst", "slow")}
        return {name: round(value, 4) if math.isfinite(value) else None for name, value in means.items()}

    def score(self, target: float) -> float:
        """Seconds to the target; if missed, beyond all times by the size of the miss."""
        reached = self.seconds_to(target)
        if reached is not None:
            return reached
        end = self.ends()["metric"]
        missed = abs(end - target) / abs(target) if end is not None else 10.0
        return 1e4 * (1 + missed)


@dataclass(frozen=True, eq=False)
class Run:
    """A fleet with its data in a world, on which any method can be run."""

    problem: Problem
    conditions: Conditions
    seed: int
    horizon: float

    @cached_property
    def speeds(self) -> npt.NDArray[np.float64]:
        return self.conditions.speeds(self.seed, self.problem.slow)

    def asynchronous(
        self, strategy: Strategy, local: float, limit: float = math.inf, stop_at: float = 0, every: float = EVERY
    ) -> Course:
        """Simulate a federation until the limit, or until a target, if given, is held."""
        problem = self.problem
        if local != 1:
            rate = local * problem.model.recipe.learning_rate
            strategy = replace(strategy, plan=strategy.plan.model_copy(update={"learning_rate": rate}))
        reached: list[float] = []
        name = problem.metric

        def stop(now: float, metrics: object) -> bool:
            value = metrics[name]  # type: ignore[index]
            if stop_at and (value <= stop_at if problem.lower else value >= stop_at):
                reached.append(now)
            else:
                reached.clear()
            return bool(reached) and now - reached[0] > HELD

        found = simulate(
            problem.model,
            data=problem.data,
            strategy=strategy,
            seed=self.seed,
            seconds=min(limit, self.horizon),
            speeds=list(self.speeds),
            world=self.conditions.world(self.seed),
            jitter=self.conditions.jitter,
            overhead=self.conditions.overhead,
            evaluate=problem.evaluate,
            every=every,
            stop=stop if stop_at else None,
        )
        each = found.metrics
        return Course(found.times, each[name], each["worst"], each["slow"], problem.lower)

    def synchronous(self, rule: Rounds, local: float, steps: int, limit: float = math.inf) -> Course:
        """Ideal rounds with a number of local steps."""
        problem, until = self.problem, min(limit, SLOWER * self.horizon)
        stack, schema, first, frozen = self.stacked
        plan = Plan(learning_rate=local * problem.model.recipe.learning_rate, local_steps=steps)
        part = steps / problem.model.recipe.local_steps
        rounds = run(
            rule,
            stack,
            first,
            (part * self.speeds).tolist(),
            world=self.conditions.world(self.seed),
            names=list(problem.data.devices),
            until=until,
            plan=plan,
            overhead=self.conditions.overhead,
        )
        times = np.arange(0, until + EVERY / 2, EVERY)
        rows = evaluated(rounds, times, lambda x: problem.evaluate({**schema.views(x.copy()), **frozen}))
        metric, worst, slow = (np.array([row[name] for row in rows]) for name in (problem.metric, "worst", "slow"))
        return Course(times, metric, worst, slow, problem.lower)

    @cached_property
    def stacked(self) -> tuple[Stack, Schema, Vector, dict[str, npt.NDArray[np.float32]]]:
        model, data = self.problem.model, self.problem.data
        moments = [model.moments(rows) for rows in data.devices.values()]
        frozen = model.freeze({name: pool([each[name] for each in moments]) for name in model.channels})
        first = {**model.initial, **frozen}
        schema = Schema.of(first, model.roles)
        rows = [
            TrainingRows(model.prepare(part.x), part.y, self.seed + n) for n, part in enumerate(data.devices.values())
        ]
        return Stack(model.net, schema, frozen, model.recipe, rows), schema, schema.flatten(first), frozen


def references(run: Run, steps: int) -> tuple[float, float]:
    """The metric of pooled training of a number of optimiser steps, and the mean of devices that train alone.

    Both use the fleet's normalisation. Pooled training is averaged over its last fifth; a device alone takes a tenth of
    the steps, which is more than its rows need.
    """
    problem = run.problem
    _, schema, first, frozen = run.stacked
    model, pooled = problem.model, problem.data.pooled()
    whole = Stack(model.net, schema, frozen, model.recipe, [TrainingRows(model.prepare(pooled.x), pooled.y, run.seed)])
    values, x = [], first
    for number in range(_STRETCHES):
        (x,) = whole.train([Job(0, x, Plan(local_steps=steps // _STRETCHES, seed=number))])
        if number >= _STRETCHES - _STRETCHES // 5:
            values.append(_metric(run, x))
    plan = Plan(local_steps=steps // 10)
    alone = run.stacked[0].train([Job(device, first, plan) for device in range(len(problem.slow))])
    return float(np.mean(values)), float(np.mean([_metric(run, x) for x in alone]))


def _metric(run: Run, x: Vector) -> float:
    _, schema, _, frozen = run.stacked
    return run.problem.evaluate({**schema.views(x.copy()), **frozen})[run.problem.metric]


_STRETCHES = 25

Setting = dict[str, Any]


class Search:
    """Scores settings over the same runs, in seconds; a setting that is already slower than the best is abandoned."""

    def __init__(
        self, runs: Sequence[Run], target: float, play: Callable[[Run, tuple[float, ...], float], Course]
    ) -> None:
        self._runs, self._target, self._play = runs, target, play
        self.known: dict[tuple[float, ...], float] = {}
        self._best = math.inf

    def score(self, place: tuple[float, ...]) -> float:
        """The mean over the runs."""
        if place not in self.known:
            total = 0.0
            for each in self._runs:
                left = self._best - total
                if left <= 0:
                    total = math.inf
                    break
                total += self._play(each, place, left + HELD + EVERY).score(self._target)
            self._best = min(self._best, total)
            self.known[place] = total / len(self._runs)
        return self.known[place]


def tuned(method: Method, runs: Sequence[Run], target: float) -> Setting:
    """The best point of an asynchronous strategy's grid."""
    if not method.rates:
        return {"local": 1.0, "rate": None}
    devices = len(runs[0].problem.slow)

    def play(run: Run, place: tuple[float, ...], limit: float) -> Course:
        return run.asynchronous(method.make(devices, place[1]), place[0], limit, target)

    search = Search(runs, target, play)
    local, rate = min(((local, rate) for local in LOCAL for rate in method.rates), key=search.score)
    return {"local": local, "rate": rate, "score": _rounded(search.score((local, rate))), "tried": len(search.known)}


def tuned_rounds(runs: Sequence[Run], target: float, *, whole_cohort: bool, quick: bool = False) -> Setting:
    """The best synchronous rule, by coordinate search until nothing improves, from three starting points.

    If devices keep their speed and no link breaks, a deadline is equivalent to a share, so it is not searched there.
    """
    axes: dict[str, tuple[float, ...]] = {
        "share": (1.0,) if whole_cohort else (0.5, 0.8, 1.0) if quick else SHARES,
        "deadline": DEADLINES if runs[0].conditions.online and not whole_cohort else (math.inf,),
        "local": LOCAL_RATES[1:4] if quick else LOCAL_RATES,
        "rate": RATES[3:] if quick else RATES,
        "local_steps": STEPS[1:] if quick else STEPS,
        "momentum": MOMENTA[:1] if quick else MOMENTA,
        "average": AVERAGES[:1] if quick else AVERAGES,
    }

    def play(run: Run, place: tuple[float, ...], limit: float) -> Course:
        return _rounds(run, place, limit)

    search = Search(runs, target, play)
    for begin in _BEGINNINGS[: 1 if quick or whole_cohort else None]:
        point: tuple[float, ...] = (1.0, *begin[1:]) if whole_cohort else begin
        before = math.inf
        while (now := search.score(point)) < before and not (quick and len(search.known) > 1):
            before = now
            for axis, values in enumerate(axes.values()):
                point = min(((*point[:axis], value, *point[axis + 1 :]) for value in values), key=search.score)
    place = min(search.known, key=search.score)
    edges = [
        name
        for (name, values), value in zip(axes.items(), place, strict=True)
        if len(values) > 1 and _at_edge(values, value)
    ]
    found: Setting = dict(zip(axes, _plain(place), strict=True))
    rivals = [list(_plain(each)) for each in sorted(search.known, key=search.score)[:RIVALS]]
    return {
        **found,
        "rivals": rivals,
        "score": _rounded(search.score(place)),
        "tried": len(search.known),
        "edge": ", ".join(edges),
    }


def _rounds(run: Run, place: Sequence[float | None], limit: float = math.inf) -> Course:
    """A synchronous rule, from its grid point."""
    share, deadline, local, rate, steps, momentum, average = (math.inf if each is None else each for each in place)
    return run.synchronous(Rounds(share, deadline, rate, momentum, average), local, round(steps), limit)


_BEGINNINGS = (
    (0.8, math.inf, 2.0, 0.3, 3, 0.8, 0.0),
    (0.5, math.inf, 2.0, 1.0, 5, 0.0, 0.0),
    (0.8, math.inf, 4.0, 1.5, 20, 0.0, 0.0),
)
"""m/n, deadline, local rate, server rate, local steps, server momentum, served average."""


def _rounded(score: float) -> float:
    """Seconds; for missed targets, beyond all runs by the size of the miss."""
    return round(score, 2)


def _at_edge(values: tuple[float, ...], value: float) -> bool:
    """Whether the optimum could lie beyond the grid; a share of all and no deadline are natural ends."""
    return value in {values[0], values[-1]} and value not in {1.0, math.inf}


def _plain(place: tuple[float, ...]) -> tuple[float | None, ...]:
    """The value, or None for infinity, which JSON lacks."""
    return tuple(None if value == math.inf else value for value in place)


def courses(name: str, setting: Setting, runs: Sequence[Run], targets: Sequence[float]) -> Iterator[Course]:
    """A method on each of the reported runs; each gets its best of the best synchronous rules."""
    for each, target in zip(runs, targets, strict=True):
        if name not in {SYNCHRONOUS, EVERYBODY}:
            yield each.asynchronous(
                METHODS[name].make(len(each.problem.slow), setting["rate"] or 0.0), setting["local"]
            )
            continue
        found = [_rounds(each, place) for place in setting["rivals"]]
        yield min(found, key=lambda course: course.score(target))
