"""Simulation of a federation in virtual time, with the production aggregator core and device sessions."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from midge.aggregator.config import CHUNK
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.strategy import Strategy
from midge.iot_client.training.fit import Recipe, Trainer
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.lazily import numbered
from midge.sensor_fleet.models import FleetModel, NumpyModel
from midge.sensor_fleet.profiles.hastened import hastened
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import Profile, load
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.simulation import stacked
from midge.sensor_fleet.simulation.air import Air, Noise
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.incidents import Incidents
from midge.sensor_fleet.simulation.learners import Each, Learner, Stacked
from midge.sensor_fleet.simulation.participant import Participant
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.server_setup import ONE_CHUNK, DeviceCalls, ServerSetup, Tamper
from midge.sensor_fleet.simulation.shards import Carrier, Here, Pool, ShardWorker, shards_of
from midge.sensor_fleet.simulation.usage import BoardCosts, board_costs
from midge.sensor_fleet.simulation.workers import Processes
from midge.sensor_fleet.world import World
from midge.wire import frames
from midge.wire.messages import Grant, Settled, Trouble
from midge.wire.moments import pool
from midge.wire.schema import Parameters, Schema

Evaluate = Callable[[Parameters], Mapping[str, float]]
CALM = World(spread=0.0, median=1.0).calm()
"""Identical devices on ideal links."""
MOMENTS = 256
"""Devices whose statistics are pooled, at most, evenly spaced over all devices."""
LOOKS = 400
"""Progress reports to `watch` in one run."""


@dataclass(frozen=True, slots=True)
class FleetProgress:
    """A progress report of a simulation."""

    now: float
    """Virtual seconds."""
    until: float
    version: int
    trainings: int
    updates: int
    events: int
    metrics: Mapping[str, float]
    """Of the last evaluation, by name."""
    live: int
    """Devices that are connected."""
    evaluated: bool
    """Whether an evaluation has just been done."""
    doing: str = ""
    """What is being prepared before the run starts; empty during the run."""


Stop = Callable[[float, Mapping[str, float]], bool]
Watch = Callable[[FleetProgress], None]


def simulate(
    train: Trainer | Sequence[Trainer] | FleetModel,
    *,
    devices: int | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    seconds: float = 100.0,
    initial: Parameters | None = None,
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
        initial: the initial model, unless `train` provides it.
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
        speed_up: run a profile's fleet in scaled time, as a live one (`sensor_fleet.profiles.hastened`). Reported times
            are the profile's.
        tamper: intercepts updates before the aggregator, to simulate attackers.
        incidents: restarts, pauses, outages, delays and clock errors.

    Raises:
        ValueError: arguments that contradict each other or are out of range.
    """
    began = time.perf_counter()
    if speed_up != 1 and (profile is None or isinstance(data, Stream)):
        raise ValueError(f"speed_up={speed_up:g}: only a profile's fleet can be scaled, without streaming data.")
    names = _names(train, devices, data)
    stream = data if isinstance(data, Stream) and isinstance(train, FleetModel) else None
    if speeds is not None and len(speeds) != len(names):
        raise ValueError(f"speeds has {len(speeds)} numbers for {len(names)} devices.")
    if workers < 1:
        raise ValueError(f"workers={workers}: give at least 1 process.")
    first, known = _initial(train, initial, data)
    schema = Schema.of(first, {**known, **(roles or {})})
    frozen = schema.thaw(schema.freeze(first))
    if recipe is None and isinstance(train, FleetModel):
        recipe = train.recipe
    make = partial(_learner, train, data, schema, recipe, frozen=frozen, seed=seed)
    population = None
    if profile is not None:
        if world is not None or loss:
            raise ValueError("a profile describes the links itself: remove world= and loss=.")
        profile = load(profile) if isinstance(profile, str) else profile
        usual = recipe or Recipe()
        samples, constants = usual.local_steps * usual.batch_size, len(schema.freeze(first))
        population = Population(profile, names, seed, samples=samples, values=schema.size, frozen=constants)
    work = partial(_work, make, schema, names)
    carrier = carry(work) if carry is not None else Here(work()) if workers == 1 else Processes(work, workers)
    try:
        fleet = (population or replace(world or CALM, seed=seed).population(names)).scaled(speed_up)
        seconds_of = fleet.seconds if speeds is None else dict(zip(names, speeds, strict=True)).__getitem__
        setup = _Setup(
            names=names,
            learner=make(),
            carrier=carrier,
            strategy=hastened(
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
        )
        simulation = _Simulation(setup)
        _refuse_idle(strategy, len(names))
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

    def tell(moment: FleetProgress) -> None:
        assert watch is not None
        watch(replace(moment, now=moment.now * factor, until=moment.until * factor))

    def ends(now: float, metrics: Mapping[str, float]) -> bool:
        assert stop is not None
        return stop(now * factor, metrics)

    return None if stop is None else ends, None if watch is None else tell


def evaluate_at(model: FleetModel, data: FleetData, now: float, parameters: Parameters) -> Mapping[str, float]:
    """Evaluate a model on the test rows; of a stream, on those that apply at `now`, overall and for each class."""
    if not isinstance(data, Stream):
        return model.evaluate(parameters, data.test)
    whole, *classes = data.tests(now).items()
    found = model.evaluate(parameters, whole[1])
    return found | {name: value for name, rows in classes for value in model.evaluate(parameters, rows).values()}


def _work(make: Callable[[], Learner], schema: Schema, names: Sequence[str]) -> ShardWorker:
    return ShardWorker(make(), schema, names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """The checked inputs of a simulation."""

    names: Sequence[str]
    learner: Learner
    carrier: Carrier
    strategy: Strategy
    initial: Parameters
    schema: Schema
    world: Population
    population: Population | None
    """The population in unscaled time; None without a profile."""
    noise: Noise
    stream: Stream | None
    tamper: Tamper | None
    incidents: Incidents | None


class _Simulation:
    def __init__(self, setup: _Setup) -> None:
        names, world, population = setup.names, setup.world, setup.population
        self.clock = Clock()
        self._stream = setup.stream
        self.population = population
        self.troubles: Counter[str] = Counter()
        shard_of = shards_of(names, world.seed)
        self._members: list[list[Participant]] = [[] for _ in range(max(shard_of, default=0) + 1)]
        self.air = Air(
            self.clock,
            lambda: self.server,
            Pool(setup.carrier, shard_of, lambda shard: self.air.expected(self._members[shard])),
            setup.learner,
            world,
            noise=setup.noise,
            stream=setup.stream,
            incidents=setup.incidents,
        )
        self.server = Server(
            self.clock,
            ServerSetup(
                strategy=setup.strategy,
                initial=setup.initial,
                schema=setup.schema,
                seed=world.seed,
                places=dict(zip(names, range(len(names)), strict=True)),
                framed=population is not None,
                chunk=ONE_CHUNK if population is None else CHUNK,
                largest=None if population is None else population.largest,
                checkpoint=setup.incidents.checkpoint if setup.incidents and setup.incidents.crashes else None,
            ),
            DeviceCalls(
                reply=self._reply,
                granted=self._grant,
                released=self.air.released,
                status=self.air.tell,
                trouble=self._trouble,
            ),
            setup.tamper,
        )
        if setup.tamper is not None:
            setup.tamper.begin(self.server, self.clock)
        self.participants = {name: Participant(self.air, number, name) for number, name in enumerate(names)}
        for participant, shard in zip(self.participants.values(), shard_of, strict=True):
            self._members[shard].append(participant)
        if population is not None:  # a profile's devices join an aggregator that has been running
            self.clock.now = -self.server.core.strategy.release_interval
        self.clock.at(self.clock.now, self.server.start)
        if setup.incidents is not None:
            self._expect(setup.incidents)

    def _expect(self, incidents: Incidents) -> None:
        """Schedule the aggregator's crashes, restarts and pauses."""
        for crash in incidents.crashes:
            self.clock.at(crash.at, partial(self.server.crash, crash))
            self.clock.at(crash.until, partial(self.server.restart, crash.clock))
        for start, end in incidents.pauses:
            self.clock.at(start, partial(self.server.pause, "the operator has paused"))
            self.clock.at(end, partial(self.server.pause, None))

    def _grant(self, device: str, outbox: int, hi: int, grant: Grant) -> None:
        self.participants[device].grant(outbox, hi, grant)

    def _reply(self, device: str, outbox: int, hi: int, settled: tuple[Settled, ...]) -> None:
        self.participants[device].reply(outbox, hi, settled)

    def _trouble(self, device: str, trouble: Trouble) -> None:
        """Count a trouble message; it needs no reaction of the device."""
        self.troubles[trouble.why] += 1
        self.participants[device].link.answered(len(frames.encode(trouble)), lambda: None)

    def run(
        self,
        seconds: float,
        evaluate: Evaluate,
        every: float,
        stop: Callable[[float, Mapping[str, float]], bool] | None,
        watch: Callable[[FleetProgress], None] | None,
    ) -> Simulated:
        rows: list[tuple[float, int, int, Mapping[str, float], tuple[float, float]]] = []
        seen: tuple[PublishedVersion, Mapping[str, float]] | None = None

        def look() -> None:
            nonlocal seen
            newest = self.server.publisher.published[-1]
            if seen is None or seen[0] is not newest or self._stream is not None:
                seen = newest, evaluate(self.server.serving())
            rows.append((self.clock.now, self.server.core.version, len(self.server.taken), seen[1], self._moved()))
            tell(evaluated=True)
            if stop is not None and stop(self.clock.now, seen[1]):
                self.clock.stop()
            else:
                self.clock.at(len(rows) * every, look)

        def tell(*, evaluated: bool = False) -> None:
            if watch is not None:
                watch(self._moment(seconds, seen[1] if seen else {}, evaluated=evaluated))

        def glance(number: int = 1) -> None:
            tell()
            self.clock.at((number + 1) * seconds / LOOKS, partial(glance, number + 1))

        self.clock.at(0.0, lambda: self.clock.at(0.0, look))  # after the first release
        if watch is not None:
            self.clock.at(seconds / LOOKS, glance)
        self.clock.run(seconds)
        return self._result(rows)

    def _moment(self, until: float, metrics: Mapping[str, float], *, evaluated: bool) -> FleetProgress:
        return FleetProgress(
            now=self.clock.now,
            until=until,
            version=self.server.core.version,
            trainings=self.air.pool.begun,
            updates=len(self.server.taken),
            events=self.clock.events,
            metrics=metrics,
            live=self.server.core.steering.live,
            evaluated=evaluated,
        )

    def _moved(self) -> tuple[float, float]:
        """Payload bytes that all devices have sent and received."""
        return self.air.up, self.air.down + self.server.publisher.received_bytes

    def _result(self, rows: Sequence[tuple[float, int, int, Mapping[str, float], tuple[float, float]]]) -> Simulated:
        server, everybody = self.server, list(self.participants.values())
        places, taken, population = self.participants, server.taken, self.population
        for each in everybody:
            each.link.count_heard()
        up = np.array([each.link.bytes_up for each in everybody], np.float64)
        down = np.array([each.link.bytes_down for each in everybody], np.float64)
        steps = np.array([each.steps for each in everybody], np.int64)
        trainings = np.array([each.trainings for each in everybody], np.int64)
        joules = np.zeros(len(everybody))
        boards: Mapping[str, BoardCosts] = {}
        if population is None:
            down = np.zeros_like(down)
        else:
            factor = self.air.world.factor
            usages = [each.usage.until(self.clock.now, factor) for each in everybody]
            joules = population.joules(steps, up + down, np.array([each.trained for each in usages]))
            boards = board_costs(population, usages, joules, trainings)
        return Simulated(
            times=np.array([row[0] for row in rows]),
            metrics={name: np.array([row[3][name] for row in rows]) for name in (rows[0][3] if rows else ())},
            versions=np.array([row[1] for row in rows], np.int64),
            updates=np.array([row[2] for row in rows], np.int64),
            **taken.arrays(len(places)),
            devices=tuple(places),
            seconds=np.array([each.seconds for each in everybody]),
            bytes_up=np.rint(up).astype(np.int64),
            bytes_down=np.rint(down).astype(np.int64),
            trainings_of=trainings,
            steps_of=steps,
            classes=() if population is None else population.classes,
            class_of=np.zeros(len(everybody), np.int64) if population is None else population.class_of,
            joules=joules,
            boards=boards,
            left_out=() if population is None else population.left_out,
            bytes_at=np.rint(np.array([row[4] for row in rows]).reshape(-1, 2)).astype(np.int64),
            refused=dict(server.refused),
            troubles=dict(self.troubles),
            trainings=sum(each.trainings for each in everybody),
            events=self.clock.events,
            took=0.0,
            parameters=server.serving(),
        )


def _refuse_idle(strategy: Strategy | None, devices: int) -> None:
    """Refuse a strategy whose steps need more distinct devices than there are."""
    if strategy is None or strategy.privacy is None or strategy.deadline is not None:
        return
    if (needed := strategy.size(devices)) > devices:
        raise ValueError(
            f"a private step takes the updates of {needed} distinct devices, and there are {devices}: no step would "
            "ever be made. Give a smaller buffer_size, or more devices."
        )


def _names(train: Any, devices: int | None, data: FleetData | None) -> list[str]:
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
    width = len(str(count - 1))
    return [f"device-{number:0{width}d}" for number in range(count)]


def _initial(
    train: Any, initial: Parameters | None, data: FleetData | None
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The initial model, normalised if it is a fleet model, and the roles that it declares."""
    if isinstance(train, FleetModel):
        if data is None:
            raise ValueError("a fleet model needs its data: data=…")
        return beginning(train, data, initial)
    if initial is not None:
        return {name: np.asarray(value) for name, value in initial.items()}, {}
    module = getattr(train, "module", None)
    if module is not None:
        from midge.iot_client.training.torch_state import state  # noqa: PLC0415 - torch is here, for there is a module

        return state(module)
    raise ValueError("give the initial model: initial=…, a dict of arrays by name.")


def beginning(
    model: FleetModel, data: FleetData, initial: Parameters | None = None
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The initial model of a fleet, normalised by pooled statistics of some devices, and its tensors' roles."""
    rows_of, number = numbered(data.devices), len(data.devices)
    chosen = np.unique(np.linspace(0, number - 1, min(number, MOMENTS)).round().astype(int))
    moments = [model.moments(rows_of(int(place))) for place in chosen]
    pooled = {name: pool([each[name] for each in moments]) for name in model.channels}
    return {**(initial or model.initial), **model.freeze(pooled)}, model.roles


class _Prepared(Sequence[stacked.TrainingRows]):
    """Training rows of all devices in the model's input format, made on access."""

    def __init__(self, model: NumpyModel, data: FleetData, seed: int) -> None:
        self._model, self._rows, self._count, self._seed = model, numbered(data.devices), len(data.devices), seed
        self._data = data

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if number >= self._count:
            raise IndexError(number)
        return self._prepared(number, self._rows(number))

    def held(self, number: int, seen: int) -> stacked.TrainingRows:
        """The rows that a device of a stream holds after `seen` slots."""
        assert isinstance(self._data, Stream)
        return self._prepared(number, self._data.flow.rows(number, seen))

    def _prepared(self, number: int, rows: Rows) -> stacked.TrainingRows:
        return stacked.TrainingRows(self._model.prepare(rows.x), rows.y, self._seed + number)


def _learner(
    train: Any, data: FleetData | None, schema: Schema, recipe: Recipe | None, *, frozen: Parameters, seed: int
) -> Learner:
    if isinstance(train, FleetModel):
        assert data is not None
        if isinstance(train, NumpyModel):
            prepared = _Prepared(train, data, seed)
            held = prepared.held if isinstance(data, Stream) else None
            return Stacked(train, prepared, schema, recipe or train.recipe, frozen, held=held)
        trainers = _Trainers(train, data, seed)
        return Each(trainers, schema, frozen, recipe=train.recipe, count=trainers.count)
    if isinstance(train, Sequence):
        return Each(lambda number, _: train[number], schema, frozen, recipe=recipe)
    return Each(lambda _, __: train, schema, frozen, recipe=recipe)


class _Trainers:
    """One torch trainer for each device, made at its first training; for a stream, remade for each training."""

    def __init__(self, model: FleetModel, data: FleetData, seed: int) -> None:
        self._model, self._data, self._seed = model, data, seed
        self._rows_of = numbered(data.devices)
        self._made: dict[int, Trainer] = {}

    def __call__(self, number: int, seen: int) -> Trainer:
        if isinstance(self._data, Stream):
            return self._trainer(number, self._rows(number, seen))
        if number not in self._made:
            self._made[number] = self._trainer(number, self._rows(number, seen))
        return self._made[number]

    def count(self, number: int, seen: int) -> int:
        """Number of rows of a device."""
        return len(self._rows(number, seen).y)

    def _rows(self, number: int, seen: int) -> Rows:
        return self._data.flow.rows(number, seen) if isinstance(self._data, Stream) else self._rows_of(number)

    def _trainer(self, number: int, rows: Rows) -> Trainer:
        return self._model.trainer(rows, "torch", self._seed + number)
