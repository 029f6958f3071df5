"""One federation in virtual time: its aggregator, its devices, and what connects them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import numpy as np

from midge.aggregator.config import CHUNK
from midge.aggregator.core.strategy import Strategy
from midge.gateway.config import site_strategy
from midge.gateway.pace import SitePace
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.environment import Environment, Noise
from midge.sensor_fleet.simulation.fleet_progress import REPORTS, FleetProgress
from midge.sensor_fleet.simulation.incidents import Incidents
from midge.sensor_fleet.simulation.learners import Learner
from midge.sensor_fleet.simulation.participant import Participant
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.sensor_fleet.simulation.result import AcceptedUpdates, Simulated
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.server_setup import ONE_CHUNK, DeviceCalls, ServerSetup, Tamper
from midge.sensor_fleet.simulation.shards import Carrier, Pool, Start, Task, shards_of
from midge.sensor_fleet.simulation.sites import SiteGateways, SiteServer, VirtualGateway, site_of
from midge.sensor_fleet.simulation.usage import BoardCosts, board_costs
from midge.wire import frames
from midge.wire.messages import Grant, Settled, Trouble
from midge.wire.schema import Parameters, Schema

Evaluate = Callable[[Parameters], Mapping[str, float]]
Stop = Callable[[float, Mapping[str, float]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationSetup:
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
    sites: int = 0
    """Number of gateways, to which the devices are dealt; 0 connects all devices to the root."""
    pace: SitePace = field(default_factory=SitePace)
    """When gateways send sums."""


class VirtualFederation:
    """The aggregator and the devices of a simulation, until its end."""

    def __init__(self, setup: FederationSetup) -> None:
        names, world, population = setup.names, setup.world, setup.population
        self.clock = Clock()
        self._stream = setup.stream
        self.population = population
        self.troubles: Counter[str] = Counter()
        shard_of = shards_of(names, world.seed)
        self._members: list[list[Participant]] = [[] for _ in range(max(shard_of, default=0) + 1)]
        pool = Pool(setup.carrier, shard_of, self._predicted)
        self.environment = self._environment(setup, pool, lambda: self.server)
        server = ServerSetup(
            strategy=setup.strategy,
            initial=setup.initial,
            schema=setup.schema,
            seed=world.seed,
            places=dict(zip(names, range(len(names)), strict=True)),
            framed=population is not None,
            chunk=ONE_CHUNK if population is None else CHUNK,
            largest=None if population is None else population.largest,
            checkpoint=setup.incidents.checkpoint if setup.incidents and setup.incidents.crashes else None,
        )
        self.sites = SiteGateways(setup.sites)
        """The gateways; empty if all devices are the root's own."""
        calls = self._calls(self.environment) if not setup.sites else self.sites.calls
        server = server if not setup.sites else replace(server, places=self.sites.places, sites=("site-*",))
        self.server = Server(self.clock, server, calls, setup.tamper)
        environments = [self.environment]
        if setup.sites:
            root, environments = server, []
            for number in range(setup.sites):
                mine = [name for place, name in enumerate(names) if site_of(place, setup.sites) == number]
                places = {name: place for place, name in enumerate(names)}
                strategy = replace(
                    site_strategy(weigh_examples=setup.strategy.weigh_examples, robust=setup.strategy.robust),
                    release_interval=setup.strategy.release_interval,
                    plan=setup.strategy.plan,
                )
                below = replace(root, places={name: places[name] for name in mine}, strategy=strategy, sites=())
                environments.append(self._site(setup, pool, below, number))
        if setup.tamper is not None:
            setup.tamper.begin(self.server, self.clock)
        self.participants = {
            name: Participant(environments[number % len(environments)], number, name)
            for number, name in enumerate(names)
        }
        self.environments = environments
        for participant, shard in zip(self.participants.values(), shard_of, strict=True):
            self._members[shard].append(participant)
        if population is not None:  # a profile's devices join an aggregator that has been running
            self.clock.now = -self.server.core.strategy.release_interval
        self.clock.at(self.clock.now, self.server.start)
        for gateway in self.sites.gateways:
            self.clock.at(self.clock.now, gateway.start)
        if setup.incidents is not None:
            self._schedule(setup.incidents)

    def _environment(self, setup: FederationSetup, pool: Pool, server: Callable[[], Server]) -> Environment:
        return Environment(
            self.clock,
            server,
            pool,
            setup.learner,
            setup.world,
            noise=setup.noise,
            stream=setup.stream,
            incidents=setup.incidents,
        )

    def _calls(self, environment: Environment) -> DeviceCalls:
        return DeviceCalls(
            reply=self._reply,
            granted=self._grant,
            released=environment.released,
            status=environment.deliver_status,
            trouble=self._trouble,
        )

    def _site(self, setup: FederationSetup, pool: Pool, below: ServerSetup, number: int) -> Environment:
        """Make one site, and return what its devices share."""
        made: list[SiteServer] = []
        environment = self._environment(setup, pool, lambda: made[0])
        online = self.server.devices_online
        made.append(SiteServer(self.clock, below, self._calls(environment), self.sites.accepted, online))
        gateway = VirtualGateway(
            self.clock,
            self.sites.names[number],
            number,
            root=lambda: self.server,
            site=made[0],
            pace=setup.pace,
            seed=setup.world.seed,
        )
        self.sites.add(gateway)
        return environment

    def _predicted(self, shard: int) -> Iterator[tuple[Task, Start]]:
        """Trainings that the devices of a shard will probably start."""
        members = self._members[shard]
        if len(self.environments) == 1:
            return self.environments[0].predicted(members)
        return chain.from_iterable(
            environment.predicted([one for one in members if one.environment is environment])
            for environment in self.environments
        )

    @property
    def accepted(self) -> AcceptedUpdates:
        """The accepted updates of devices."""
        return self.sites.accepted if self.sites.gateways else self.server.accepted

    def _schedule(self, incidents: Incidents) -> None:
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
        self.participants[device].link.receive_answer(len(frames.encode(trouble)), lambda: None)

    def run(
        self,
        seconds: float,
        evaluate: Evaluate,
        every: float,
        stop: Callable[[float, Mapping[str, float]], bool] | None,
        watch: Callable[[FleetProgress], None] | None,
    ) -> Simulated:
        rows: list[tuple[float, int, int, Mapping[str, float], tuple[float, float]]] = []
        last: tuple[PublishedVersion, Mapping[str, float]] | None = None

        def evaluate_now() -> None:
            nonlocal last
            newest = self.server.publisher.published[-1]
            if last is None or last[0] is not newest or self._stream is not None:
                last = newest, evaluate(self.server.serving())
            rows.append((self.clock.now, self.server.core.version, len(self.accepted), last[1], self._traffic()))
            report(evaluated=True)
            if stop is not None and stop(self.clock.now, last[1]):
                self.clock.stop()
            else:
                self.clock.at(len(rows) * every, evaluate_now)

        def report(*, evaluated: bool = False) -> None:
            if watch is not None:
                watch(self._progress(seconds, last[1] if last else {}, evaluated=evaluated))

        def report_at(number: int = 1) -> None:
            report()
            self.clock.at((number + 1) * seconds / REPORTS, partial(report_at, number + 1))

        self.clock.at(0.0, lambda: self.clock.at(0.0, evaluate_now))  # after the first release
        if watch is not None:
            self.clock.at(seconds / REPORTS, report_at)
        self.clock.run(seconds)
        return self._result(rows)

    def _progress(self, until: float, metrics: Mapping[str, float], *, evaluated: bool) -> FleetProgress:
        return FleetProgress(
            now=self.clock.now,
            until=until,
            version=self.server.core.version,
            trainings=self.environment.pool.begun,
            updates=len(self.accepted),
            events=self.clock.events,
            metrics=metrics,
            live=self.server.core.steering.live,
            evaluated=evaluated,
        )

    def _traffic(self) -> tuple[float, float]:
        """Payload bytes that all devices have sent and received."""
        up = sum(environment.up for environment in self.environments)
        publishers = [environment.server.publisher for environment in self.environments]
        down = sum(environment.down for environment in self.environments)
        return up, down + sum(publisher.received_bytes for publisher in publishers)

    def _result(self, rows: Sequence[tuple[float, int, int, Mapping[str, float], tuple[float, float]]]) -> Simulated:
        server, members = self.server, list(self.participants.values())
        places, accepted, population = self.participants, self.accepted, self.population
        for each in members:
            each.link.count_announcements()
        up = np.array([each.link.bytes_up for each in members], np.float64)
        down = np.array([each.link.bytes_down for each in members], np.float64)
        steps = np.array([each.steps for each in members], np.int64)
        trainings = np.array([each.trainings for each in members], np.int64)
        joules = np.zeros(len(members))
        boards: Mapping[str, BoardCosts] = {}
        if population is None:
            down = np.zeros_like(down)
        else:
            factor = self.environment.world.factor
            usages = [each.usage.until(self.clock.now, factor) for each in members]
            joules = population.joules(steps, up + down, np.array([each.trained for each in usages]))
            boards = board_costs(population, usages, joules, trainings)
        return Simulated(
            times=np.array([row[0] for row in rows]),
            metrics={name: np.array([row[3][name] for row in rows]) for name in (rows[0][3] if rows else ())},
            versions=np.array([row[1] for row in rows], np.int64),
            updates=np.array([row[2] for row in rows], np.int64),
            **accepted.arrays(len(places)),
            devices=tuple(places),
            seconds=np.array([each.seconds for each in members]),
            bytes_up=np.rint(up).astype(np.int64),
            bytes_down=np.rint(down).astype(np.int64),
            trainings_of=trainings,
            steps_of=steps,
            classes=() if population is None else population.classes,
            class_of=np.zeros(len(members), np.int64) if population is None else population.class_of,
            joules=joules,
            boards=boards,
            left_out=() if population is None else population.left_out,
            bytes_at=np.rint(np.array([row[4] for row in rows]).reshape(-1, 2)).astype(np.int64),
            refused=dict(sum((environment.server.refused for environment in self.environments), Counter[str]())),
            sites=self.sites.ledger(server),
            troubles=dict(self.troubles),
            trainings=sum(each.trainings for each in members),
            events=self.clock.events,
            took=0.0,
            parameters=server.serving(),
            privacy={} if server.core.spent is None else server.core.spent.packed(),
        )
