"""Simulation of a federation in virtual time, with the production aggregator core and device sessions."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from midge.aggregator.config import Rules
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.strategy import Strategy
from midge.gateway.pace import SitePace
from midge.iot_client.training.fit import Recipe, Trainer
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.lazily import names_of
from midge.sensor_fleet.models import FleetModel, initial_model
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import Profile, load
from midge.sensor_fleet.profiles.time_scaling import scaled_strategy
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.simulation.environment import Noise
from midge.sensor_fleet.simulation.federation import Evaluate, FederationSetup, Stop, VirtualFederation
from midge.sensor_fleet.simulation.fleet_progress import FleetProgress, Watch
from midge.sensor_fleet.simulation.incidents import Incidents
from midge.sensor_fleet.simulation.learners import Learner, learner_for
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.server_setup import Tamper
from midge.sensor_fleet.simulation.shards import Carrier, LocalCarrier, ShardWorker
from midge.sensor_fleet.simulation.standstill import refuse_standstill
from midge.sensor_fleet.simulation.workers import Processes
from midge.sensor_fleet.world import World
from midge.wire.field_checks import check_value
from midge.wire.schema import Parameters, Schema

CALM = World(spread=0.0, median=1.0).calm()
"""Identical devices on ideal links."""


def simulate(
    train: Trainer | Sequence[Trainer] | FleetModel,
    *,
    devices: int | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    seconds: float = 100.0,
    initial: Any = None,
    roles: Mapping[str, str] | None = None,
    data: FleetData | None = None,
    recipe: Recipe | None = None,
    world: World | None = None,
    profile: Profile | str | None = None,
    workers: int = 1,
    speeds: Sequence[float] | None = None,
    loss: float = 0.0,
    jitter: float = 0.0,
    overhead: float = 0.0,
    evaluate: Evaluate | None = None,
    every: float | None = None,
    stop: Stop | None = None,
    watch: Watch | None = None,
    carry: Callable[[Callable[[], ShardWorker]], Carrier] | None = None,
    speed_up: float = 1.0,
    tamper: Tamper | None = None,
    incidents: Incidents | None = None,
    sites: int = 0,
    pace: SitePace | None = None,
) -> Simulated:
    """Simulate a federation for a number of virtual seconds.

    The aggregator's decisions and arithmetic and the devices' sessions are those of production. A device trains from
    the published model bit for bit, and its delta goes through the plan's codec. Only what does not affect learning is
    left out: disk writes, message serialisation and checksums; without a profile, also chunking.

    Args:
        train: a trainer that all devices share, a sequence with one trainer for each device, or a fleet model (with
            `data`).
        devices: number of devices; by default that of the data or of the trainers.
        strategy: the aggregation strategy; by default the profile's, or `balanced()`.
        seed: of all randomness except that of the data.
        seconds: virtual duration.
        initial: the initial model, as a dict of arrays or a torch module, unless `train` provides it.
        roles: of tensors that are not trained.
        data: the devices' rows. Those of a `sensor_fleet.sensors.Stream` arrive as virtual time passes: a device trains
            once enough of its rows are new, and the model is evaluated under the conditions of the time.
        recipe: how a fleet model is trained, instead of its own recipe. With plain trainers: the defaults of a plan, by
            which the duration of a training scales with its steps.
        world: speeds, links and availability of the devices. By default all are alike and nothing fails.
        profile: the devices' hardware, links and availability, instead of `world`: a `Profile`, the name of a shipped
            one, or a TOML file.
        workers: number of processes that train; 1 trains in this process. The result does not depend on it.
        speeds: seconds of one training on each device, instead of the world's.
        loss: probability that a message is lost.
        jitter: σ of the logarithm of the duration of each training.
        overhead: seconds added to each training, such as for starting a process.
        evaluate: metrics of a model; by default those of the fleet model on the test rows.
        every: virtual seconds between evaluations; by default `seconds / 100`.
        stop: called after each evaluation with its time and metrics; True ends the run.
        watch: called with progress reports.
        carry: makes the carrier of the trainings, instead of `workers`.
        speed_up: run a profile's fleet in scaled time, as a live one (`sensor_fleet.profiles.time_scaling`). Reported
            times are the profile's.
        tamper: intercepts updates before the aggregator, to simulate attackers.
        incidents: restarts, pauses, outages, delays and clock errors.
        sites: number of gateways between the devices and the aggregator; 0 connects the devices to it.
        pace: when gateways send sums.

    Raises:
        ValueError: arguments that contradict each other or are out of range.

    Examples:
        >>> def train(parameters, plan):
        ...     return midge.Fit({"w": 0.5 * (parameters["w"] + 1)}, examples=10)
        >>> found = midge.simulate(
        ...     train, devices=5, initial={"w": np.zeros(3)}, seconds=60.0,
        ...     evaluate=lambda parameters: {"error": float(abs(1 - parameters["w"]).max())},
        ... )
        >>> bool(found.metrics["error"][-1] < 0.01)
        True
    """
    began = time.perf_counter()
    check_value("strategy", strategy, Rules | None)
    if speed_up != 1 and (profile is None or isinstance(data, Stream)):
        raise ValueError(f"speed_up={speed_up:g}: only a profile's fleet can be scaled, without streaming data.")
    if sites and (tamper is not None or incidents is not None):
        raise ValueError("sites= simulates no attackers and no incidents: leave tamper= and incidents= out.")
    names = _names(train, devices, data)
    if not 0 <= sites <= len(names):
        raise ValueError(f"sites={sites}: give at most one for each of the {len(names)} devices, or 0.")
    stream = data if isinstance(data, Stream) and isinstance(train, FleetModel) else None
    if speeds is not None and len(speeds) != len(names):
        raise ValueError(f"speeds has {len(speeds)} numbers for {len(names)} devices.")
    if workers < 1:
        raise ValueError(f"workers={workers}: give at least 1 process.")
    first, known = _initial(train, initial, data)
    schema = Schema.of(first, {**known, **(roles or {})})
    if schema.site:
        raise ValueError(
            f"roles: {schema.site[0].name} is a tensor of a site, which no simulation averages: leave it out."
        )
    frozen = schema.thaw(schema.freeze(first))
    if recipe is None and isinstance(train, FleetModel):
        recipe = train.recipe
    make = partial(learner_for, train, data, schema, recipe, frozen=frozen, seed=seed)
    population = None
    if profile is not None:
        if world is not None or loss:
            raise ValueError("a profile describes the links itself: remove world= and loss=.")
        profile = load(profile) if isinstance(profile, str) else profile
        usual = recipe or Recipe()
        samples, constants = usual.local_steps * usual.batch_size, len(schema.freeze(first))
        population = Population(profile, names, seed, samples=samples, values=schema.size, frozen=constants)
    work = partial(_work, make, schema, names)
    carrier = carry(work) if carry is not None else LocalCarrier(work()) if workers == 1 else Processes(work, workers)
    try:
        fleet = (population or replace(world or CALM, seed=seed).population(names)).scaled(speed_up)
        seconds_of = fleet.seconds if speeds is None else dict(zip(names, speeds, strict=True)).__getitem__
        setup = FederationSetup(
            names=names,
            learner=make(),
            carrier=carrier,
            strategy=scaled_strategy(
                strategy or (profile.strategy() if isinstance(profile, Profile) else balanced()), speed_up
            ),
            initial=first,
            schema=schema,
            world=fleet,
            population=population,
            noise=Noise(loss, jitter, seconds_of, overhead),
            stream=stream,
            tamper=tamper,
            incidents=incidents,
            sites=sites,
            pace=pace or SitePace(),
        )
        simulation = VirtualFederation(setup)
        if strategy is not None:
            # A profile's aggregator has been running, and may release at once.
            refuse_standstill(strategy, len(names), schema.size, seconds if population is None else math.inf)
        if evaluate is None and isinstance(train, FleetModel) and data is not None:
            clock, model, rows = simulation.clock, train, data
            evaluate = lambda parameters: evaluate_at(model, rows, clock.now, parameters)  # noqa: E731
        if speed_up != 1:
            stop, watch = _unscaled(stop, watch, speed_up)
        length = seconds / speed_up
        found = simulation.run(length, evaluate or (lambda _: {}), (every or seconds / 100) / speed_up, stop, watch)
    finally:
        carrier.close()
    times = {name: getattr(found, name) * speed_up for name in ("times", "update_times", "seconds")}
    return replace(found, took=time.perf_counter() - began, **times)


def _unscaled(stop: Stop | None, watch: Watch | None, factor: float) -> tuple[Stop | None, Watch | None]:
    """Wrap both callbacks so that they get times in the profile's seconds."""

    def report(moment: FleetProgress) -> None:
        assert watch is not None
        watch(replace(moment, now=moment.now * factor, until=moment.until * factor))

    def ends(now: float, metrics: Mapping[str, float]) -> bool:
        assert stop is not None
        return stop(now * factor, metrics)

    return None if stop is None else ends, None if watch is None else report


def evaluate_at(model: FleetModel, data: FleetData, now: float, parameters: Parameters) -> Mapping[str, float]:
    """Evaluate a model on the test rows; of a stream, on those that apply at `now`, overall and for each class."""
    if not isinstance(data, Stream):
        return model.evaluate(parameters, data.test)
    whole, *classes = data.tests(now).items()
    found = model.evaluate(parameters, whole[1])
    return found | {name: value for name, rows in classes for value in model.evaluate(parameters, rows).values()}


def _work(make: Callable[[], Learner], schema: Schema, names: Sequence[str]) -> ShardWorker:
    return ShardWorker(make(), schema, names)


def _names(train: Any, devices: int | None, data: FleetData | None) -> Sequence[str]:
    if data is not None:
        names = list(data.devices)
        if devices is not None and devices != len(names):
            raise ValueError(f"the data has {len(names)} devices, not {devices}: load it for that number.")
        return names
    count = len(train) if devices is None and isinstance(train, Sequence) else devices
    if count is None or count < 1:
        raise ValueError("give the number of devices: devices=…")
    if isinstance(train, Sequence) and len(train) != count:
        raise ValueError(f"there are {len(train)} trainers for {count} devices.")
    return names_of(count)


def _arrays(model: Any) -> tuple[dict[str, Any] | None, Mapping[str, str]]:
    """Arrays by name of a dict or a torch module, and the roles of its tensors."""
    if hasattr(model, "state_dict"):
        from midge.iot_client.training.torch_state import state  # noqa: PLC0415 - torch is here, for there is a module

        return state(model)
    return None if model is None else {name: np.asarray(value) for name, value in model.items()}, {}


def _initial(train: Any, initial: Any, data: FleetData | None) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The initial model, normalised if it is a fleet model, and the roles that it declares."""
    given, roles = _arrays(initial)
    if isinstance(train, FleetModel):
        if data is None:
            raise ValueError("a fleet model needs its data: data=…")
        return initial_model(train, data, given)
    if given is None:
        given, roles = _arrays(getattr(train, "module", None))
    if given is not None:
        return given, roles
    raise ValueError("give the initial model: initial=…, a dict of arrays by name or a torch module.")
