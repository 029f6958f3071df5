"""The trial: one model and one budget, trained in every way.

The federation comes first, on the virtual fleet of a profile. The steps that its devices took together are the budget
of pooled, data-parallel and lone trainings, with the same recipe and batches, on the same rows. The hybrid has the same
days, in which its sites may take more or fewer steps; each row says how many. What a device keeps out of training, no
way trains on.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from midge.iot_client.training.fit import Parameters
from midge.sensor_fleet.advice.kept_rows import mean_and_worst, own_scores, split
from midge.sensor_fleet.advice.ways import Name, Score, WayRow
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.fleet_run import value_of
from midge.sensor_fleet.models import Engine, FleetModel, NumpyModel, initial_model
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import Profile
from midge.sensor_fleet.progress import HELD, METRICS
from midge.sensor_fleet.simulation.result import MONTH, Simulated
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.clocks import DAY
from midge.wire.messages import Plan

STAGES: Final = 20
"""Points at which a model is measured during training."""
ALONE: Final = 40
"""Maximum number of devices that train alone, evenly spaced over all."""
NINTH: Final = 0.9
"""Share of the devices whose rows have arrived when a pooled training begins."""
Curve = list[tuple[float, Parameters]]
"""Seconds of training, and the model then."""


@dataclass(frozen=True, slots=True)
class MeasuredWay:
    """One way with one seed."""

    score: float
    own: float
    worst: float
    seconds: float
    bytes: float
    inside: float
    joules: float
    monthly_bytes: float
    monthly_joules: float
    steps: float


@dataclass(frozen=True)
class WaysTrial:
    """The setting that all ways share."""

    data: FleetData
    make: Callable[[FleetData, int], FleetModel]
    """Makes the model for the data, with a seed for its initial values."""
    profile: Profile
    days: float = 4.0
    seeds: int = 3
    sites: int | None = None
    """Of the hybrid; the square root of the number of devices by default."""
    processes: int = 2
    data_days: float = 30.0
    """Days in which a device records the rows of the data."""
    tell: Callable[[str], None] = field(default=lambda _: None)

    def run(self) -> tuple[list[WayRow], dict[str, str], int]:
        """All rows; why a way is missing, by its name; and the budget in steps, a mean over the seeds.

        Raises:
            ValueError: the fleet cannot be simulated, or no device took part.
        """
        data, kept = split(self.data)
        found: dict[Name, list[MeasuredWay]] = {}
        missing: dict[str, str] = {}
        budgets = []
        for seed in range(self.seeds):
            one = _OneSeed(self, data, kept, self.make(data, seed), seed)
            federated = one.federated()
            budgets.append(one.budget)
            found.setdefault("federated", []).append(federated)
            for way, measure in one.others():
                self.tell(f"seed {seed + 1} of {self.seeds}: {way}")
                try:
                    found.setdefault(way, []).append(measure())
                except (RuntimeError, _Missing) as error:
                    missing[way] = str(error)
        order: Sequence[Name] = ("pooled", "data-parallel", "federated", "hybrid", "alone")
        rows = [_row(way, found[way]) for way in order if found.get(way) and way not in missing]
        return rows, missing, round(sum(budgets) / len(budgets))


class _Missing(Exception):
    """A way cannot be measured here."""


class _OneSeed:
    def __init__(self, trial: WaysTrial, data: FleetData, kept: dict[str, Rows], model: FleetModel, seed: int) -> None:
        self._trial, self._data, self._kept, self._model, self._seed = trial, data, kept, model, seed
        self._sign = METRICS["accuracy" if data.task == "classification" else "rmse"]
        self._start, _ = initial_model(model, data)
        self._values = sum(int(array.size) for array in model.initial.values())
        recipe = model.recipe
        self._population = Population(
            trial.profile, list(data.devices), seed, samples=recipe.local_steps * recipe.batch_size, values=self._values
        )
        self.budget = 0

    def others(self) -> Iterator[tuple[Name, Callable[[], MeasuredWay]]]:
        yield "pooled", partial(self._central, "pooled", 1)
        if self._seed == 0:  # its steps are those of the pooled training: another seed shows only the pooled spread
            yield "data-parallel", partial(self._central, "data-parallel", self._trial.processes)
        yield "hybrid", self._hybrid
        yield "alone", self._alone

    # ------------------------------------------------------------- over the virtual fleet

    def federated(self) -> MeasuredWay:
        self._trial.tell(f"seed {self._seed + 1} of {self._trial.seeds}: federated")
        result = self._simulated(self._model, self._data, self._trial.profile)
        self.budget = int(result.steps_of.sum())
        if not self.budget or not result.updates[-1]:
            raise ValueError(
                f"no device took part in {self._trial.days:g} days of the profile {self._trial.profile.name}: give "
                "more days, or another profile."
            )
        return self._of_simulation(result, 0.0)

    def _hybrid(self) -> MeasuredWay:
        """Sites instead of devices: each trains on the rows of its members, every step split evenly among them."""
        names = list(self._data.devices)
        number = self._trial.sites or max(2, round(math.sqrt(len(names))))
        if not 2 <= number < len(names):
            raise _Missing(f"{len(names)} devices do not form {number} sites: give another --sites.")
        members = [[names[place] for place in part] for part in np.array_split(np.arange(len(names)), number)]
        rows = self._data.devices
        sites = {
            f"site-{place:02d}": Rows(
                np.concatenate([rows[name].x for name in each]), np.concatenate([rows[name].y for name in each])
            )
            for place, each in enumerate(members)
        }
        factor = round(len(names) / number)
        model = copy.copy(self._model)
        model.recipe = replace(model.recipe, local_steps=model.recipe.local_steps * factor)
        faster = [
            one.model_copy(
                update={} if one.samples_per_second is None else {"samples_per_second": factor * one.samples_per_second}
            )
            for one in self._trial.profile.classes
        ]
        profile = self._trial.profile.model_copy(update={"classes": tuple(faster)})
        result = self._simulated(model, replace(self._data, devices=sites), profile)
        shared = sum(self._raw(each) for each in sites.values()) * (factor - 1) / factor
        inside = float(result.steps_of.sum()) * self._all_reduce(factor) + shared
        return self._of_simulation(result, inside)

    def _simulated(self, model: FleetModel, data: FleetData, profile: Profile) -> Simulated:
        seconds = self._trial.days * DAY
        return simulate(
            model,
            data=data,
            strategy=profile.strategy(),
            seed=self._seed,
            seconds=seconds,
            profile=profile,
            every=seconds / (5 * STAGES),
        )

    def _of_simulation(self, result: Simulated, inside: float) -> MeasuredWay:
        metric = next(iter(result.metrics))
        curve = result.metrics[metric]
        own, worst = self._own(lambda _: result.parameters)
        moved = float(result.bytes_at[-1].sum())
        month, joules = MONTH / float(result.times[-1]), float(result.joules.sum())
        devices = len(self._data.devices)
        return MeasuredWay(
            float(np.mean(curve[-HELD:])),
            own,
            worst,
            self._settled(result.times.tolist(), curve.tolist()),
            moved,
            inside,
            joules,
            moved * month / devices,
            joules * month / devices,
            float(result.steps_of.sum()),
        )

    # -------------------------------------------------------------------- rows in one place

    def _central(self, way: Name, processes: int) -> MeasuredWay:
        curve = self._trained(way, processes)
        values = [self._value(parameters) for _, parameters in curve]
        own, worst = self._own(lambda _: curve[-1][1])
        names = list(self._data.devices)
        sent = np.array([self._raw(self._data.devices[name]) for name in names])
        received = np.full(len(names), model_bytes(self._values))
        links = [self._population.link(name) for name in names]
        arrival = [each / link.bandwidth + link.latency for each, link in zip(sent, links, strict=True)]
        moved = sent + received
        nothing = np.zeros(len(names), np.int64)
        joules = float(self._population.joules(nothing, moved, np.zeros(len(names))).sum())
        month = 30.0 / self._trial.data_days
        return MeasuredWay(
            values[-1],
            own,
            worst,
            float(np.quantile(arrival, NINTH)) + self._settled([at for at, _ in curve], values),
            float(moved.sum()),
            self.budget * self._all_reduce(processes),
            joules,
            float(moved.mean()) * month,
            joules * month / len(names),
            float(self.budget),
        )

    def _trained(self, way: Name, processes: int) -> Curve:
        """The model during training, with the seconds of training that it took on this machine."""
        pooled = self._data.pooled()
        if find_spec("torch") is None:
            if way == "data-parallel":
                raise _Missing('it needs torch: pip install "midge[torch]"')
            return self._in_numpy(pooled)
        from midge.iot_client.training.data_parallel import ParallelJob, data_parallel  # noqa: PLC0415 - torch is an extra

        module = self._twin(way)
        if module is None:
            return self._in_numpy(pooled)
        job = ParallelJob(
            module,
            self._model.prepare(pooled.x),
            pooled.y,
            [(self._start, self._seed)],
            self._model.recipe,
            self.budget,
            STAGES,
        )
        (stages,) = data_parallel(job, processes)
        return [(stage.seconds, stage.parameters) for stage in stages]

    def _twin(self, way: Name) -> Any:
        try:
            return self._model.twin()
        except ValueError as error:
            if way == "data-parallel":
                raise _Missing(str(error)) from error
            return None

    def _in_numpy(self, rows: Rows) -> Curve:
        trainer = self._model.trainer(rows, "numpy", seed=self._seed)
        parameters: Parameters = self._start
        spent, curve = 0.0, Curve()
        for stage in range(STAGES):
            began = time.perf_counter()
            steps = self.budget * (stage + 1) // STAGES - self.budget * stage // STAGES
            parameters = trainer(parameters, Plan(local_steps=max(1, steps), seed=stage)).parameters
            spent += time.perf_counter() - began
            curve.append((spent, parameters))
        return curve

    # ---------------------------------------------------------------------------- alone

    def _alone(self) -> MeasuredWay:
        names = list(self._kept or self._data.devices)
        some = [names[n] for n in np.unique(np.linspace(0, len(names) - 1, min(len(names), ALONE)).astype(int))]
        steps = max(1, self.budget // len(self._data.devices))
        models = {name: self._trained_alone(name, steps) for name in some}
        scores = [self._value(parameters) for parameters in models.values()]
        own = [value_of(self._model.evaluate(models[name], self._kept[name])) for name in some if name in self._kept]
        mean, worst = mean_and_worst(own, self._sign)
        local = self._model.recipe.local_steps
        spent = np.array([self._population.seconds(name) * steps / local for name in self._data.devices])
        count = len(spent)
        joules = float(self._population.joules(np.full(count, steps), np.zeros(count), spent).sum())
        monthly = joules * 30.0 / self._trial.days / count
        return MeasuredWay(
            float(np.mean(scores)),
            mean,
            worst,
            float(np.quantile(spent, NINTH)),
            0.0,
            0.0,
            joules,
            0.0,
            monthly,
            float(steps * count),
        )

    def _trained_alone(self, name: str, steps: int) -> Parameters:
        rows = self._data.devices[name]
        engine: Engine = "numpy" if isinstance(self._model, NumpyModel) else "torch"
        start = {**self._model.initial, **self._model.freeze(self._model.moments(rows))}
        trainer = self._model.trainer(rows, engine, seed=self._seed)
        return trainer(start, Plan(local_steps=steps, seed=0)).parameters

    # ---------------------------------------------------------------------------- parts

    def _own(self, parameters: Callable[[str], Parameters]) -> tuple[float, float]:
        return own_scores(self._model, self._kept, parameters, self._sign)

    def _value(self, parameters: Parameters) -> float:
        return value_of(self._model.evaluate(parameters, self._data.test))

    def _settled(self, times: Sequence[float], values: Sequence[float]) -> float:
        """When the score was first within a point of its last mean, or within 2 % of an error."""
        last = float(np.mean(values[-HELD:]))
        aim = last - 0.01 if self._sign > 0 else 1.02 * last
        return next(at for at, value in zip(times, values, strict=True) if self._sign * (value - aim) >= 0)

    def _all_reduce(self, machines: int) -> float:
        """Bytes that all machines of a ring send in one step (Patarasuk and Yuan, J. Parallel Distr. Comput. 2009)."""
        return 8.0 * (machines - 1) * self._values

    def _raw(self, rows: Rows) -> float:
        """Bytes of rows as stored, with a byte for each label, or four for each target."""
        return float(rows.x.nbytes + len(rows) * (1 if (self._data.classes or 257) <= 256 else 4))


def model_bytes(values: int) -> float:
    """Bytes of a model of this number of values, as float32."""
    return 4.0 * values


def _row(way: Name, found: list[MeasuredWay]) -> WayRow:
    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in found]))

    score, own, worst = (Score.of([getattr(one, name) for one in found]) for name in ("score", "own", "worst"))
    names = ("seconds", "bytes", "inside", "joules", "monthly_bytes", "monthly_joules", "steps")
    return WayRow(way, score, own, worst, *map(mean, names))
