"""A run of a live fleet: a broker, an aggregator and thousands of devices, with the same results as a virtual one."""

import asyncio
import gc
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from midge.broker import Endpoint, connector
from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.mqtt.waiting import happened
from midge.iot_client.training.fit import Fit, TrainingPlan
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.fleet_run import FleetRun, held, sign_of, value_of
from midge.sensor_fleet.lazily import numbered
from midge.sensor_fleet.live import limits
from midge.sensor_fleet.live.device import FleetContext
from midge.sensor_fleet.live.federation import LocalFederation
from midge.sensor_fleet.live.fleet import LiveFleet
from midge.sensor_fleet.live.server import SERVED
from midge.sensor_fleet.live.watching import Watching
from midge.sensor_fleet.models import FleetModel, initial_model
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.time_scaling import scaled_strategy
from midge.sensor_fleet.sensors.stream import Stream
from midge.sensor_fleet.setting import BrokerAddress
from midge.sensor_fleet.simulation.fleet_progress import REPORTS, FleetProgress
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import evaluate_at
from midge.sensor_fleet.virtual import EVALUATIONS, ProfileFleet
from midge.wire.lineage import State
from midge.wire.schema import Parameters, Schema
from midge.wire.topics import Topics

_TOO_LATE: Final = 0.5
"""Lateness in seconds of the slowest 1 % of timers above which the user is warned."""
_REPORT_EVERY: Final = 0.5
"""Seconds between two reports of the number of connected devices."""
_MEASURE_EVERY: Final = 0.2
"""Seconds between two measurements of the timers' lateness."""
_LONGEST_WAIT: Final = 10.0
"""Maximum seconds that the fleet waits for the aggregator's first release interval to pass: the first step sets the
scale of many later ones."""
_Evaluate = Callable[[float, Parameters], Mapping[str, float]]
"""Evaluates a model at a time of the profile."""
_DISCONNECT_TIMEOUT: Final = 30.0
"""Seconds that all devices have to disconnect cleanly."""


def profile_fleet(
    fleet: ProfileFleet, data: FleetData, model: FleetModel, population: Population, endpoint: Endpoint
) -> LiveFleet:
    """Build the fleet of a profile: rows and trainers are made for each training and not kept."""
    stream = data if isinstance(data, Stream) else None
    rows_of, seed = numbered(data.devices), fleet.setting.seed

    def train(number: int, parameters: Parameters, plan: TrainingPlan, seen: int) -> tuple[Fit, float]:
        rows = rows_of(number) if stream is None else stream.flow.rows(number, seen)
        fit = model.trainer(rows, seed=seed + number)(parameters, plan)
        return fit, model.recipe.under(plan).steps(len(rows)) / model.recipe.local_steps

    context = FleetContext(
        connector=connector(endpoint),
        topics=Topics(fleet.federation),
        population=population.scaled(fleet.speed_up),
        train=train,
        stream=stream,
        speed_up=fleet.speed_up,
    )
    return LiveFleet(context, tuple(data.devices))


class LiveRun:
    """One run. Await `serve`; then `found` has the results.

    Args:
        fleet: what runs.
        directory: of the run's files.
        broker: a running one; None starts one here.
        aggregates: whether to start the aggregator; otherwise another process must.
        watch: called with progress reports.
        say: called with messages for the user.
    """

    def __init__(
        self,
        fleet: ProfileFleet,
        directory: Path,
        *,
        broker: BrokerAddress | None = None,
        aggregates: bool = True,
        watch: Callable[[FleetProgress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._fleet, self._directory = fleet, directory
        self._broker, self._aggregates = broker, aggregates
        self._watch, self._say = watch, say
        self._stop = asyncio.Event()
        self.found: FleetRun | None = None
        self.members: LiveFleet | None = None
        self._metrics: Mapping[str, float] = {}
        self._version = 0
        self._departures: Counter[str] = Counter()
        """Number of devices that the aggregator reported as lost (Last Will) or disconnected."""
        self._counts: Mapping[str, int] = {}
        self._rows: list[tuple[float, int, int, Mapping[str, float], tuple[int, int]]] = []
        self._evaluated = asyncio.Event()
        self._streams = False
        """Whether the test rows follow the fleet's time, which the aggregator does not know: then evaluation is done
        here."""
        self._lags: list[float] = []
        self._resident = {"before": resident()}

    def stop(self) -> None:
        """End `serve` cleanly, with the results so far. To be called from its event loop."""
        self._stop.set()

    async def serve(self) -> None:
        """Run until the time is over, the target is held if that ends the run, or `stop()` is called.

        Raises:
            ValueError: the fleet cannot run here; the message says what to change.
            BrokerError: no broker could be reached or started.
            DemoError: the aggregator's process ended.
        """
        began = time.time()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(os.cpu_count() or 1, "encode"))
        fleet = self._fleet
        profile, data, model, strategy = await asyncio.to_thread(fleet.loaded)
        self._streams = isinstance(data, Stream)
        self._settling = min(scaled_strategy(strategy, fleet.speed_up).release_interval, _LONGEST_WAIT)
        first = initial_model(model, data)[0]
        schema = Schema.of(first, model.roles)
        samples = model.recipe.local_steps * model.recipe.batch_size
        drawn = profile, tuple(data.devices), fleet.setting.seed
        constants = len(schema.freeze(first))
        population = Population(*drawn, samples=samples, values=schema.size, frozen=constants)
        for sentence in population.left_out:
            self._say(sentence)
        self._check(schema.size)
        task = {"fleet": fleet.words()} if self._aggregates else None
        topics = Topics(fleet.federation)
        federation = LocalFederation(topics, self._directory, self._broker or "auto", task, self._handle_event)
        async with federation.reach_broker() as broker:
            if federation.local is not None:
                self._say(f"Over {federation.local.describe()}.")
            members = self.members = profile_fleet(fleet, data, model, population, broker.endpoint())
            self._resident["made"] = resident()
            watching = Watching(broker.endpoint(), topics)
            async with federation.start_aggregator(broker):
                await self._until_the_end(federation, members, watching, partial(evaluate_at, model, data))
                result, departures = self._result(members, population), self._departures.copy()
                await self._disconnect(members)
            parameters = self._served(members, watching, first)
        self._resident["end"] = resident()
        result = replace(result, parameters=parameters, took=time.time() - began)
        about = self._about(members, departures)
        self.found = FleetRun(fleet, profile, data, model, result, about)
        if (late := about["lag"]["p99"]) > _TOO_LATE:
            self._say(
                f"This machine was behind: one timer in a hundred was {late:.1f} s late or more, and the fleet slower "
                "than its profile by that. Take fewer --devices, or a lower --speed-up."
            )

    def _check(self, values: int) -> None:
        """Refuse a fleet that exceeds this machine's limits.

        Raises:
            ValueError: with a remedy.
        """
        near, devices = self._broker is None, self._fleet.devices
        embedded = near and find_mosquitto() is None
        found = limits.problems(limits.measured(), devices, values, embedded=embedded, near=near)
        if found:
            raise ValueError(" ".join(found))
        if not near:
            self._say(limits.advice(devices))

    # ------------------------------------------------------------------------- running

    async def _until_the_end(
        self, federation: LocalFederation, members: LiveFleet, watching: Watching, evaluate: _Evaluate
    ) -> None:
        async def ready() -> None:
            if not self._aggregates:
                self._say("Waiting for the aggregator.")
            await watching.announced.wait()
            await asyncio.sleep(self._settling)  # like a virtual fleet, it joins an aggregator that has been running
            if self._aggregates:
                await self._evaluated.wait()
            self._resident["connected"] = resident()
            gc.collect()
            gc.freeze()  # the devices' objects stay alive: scanning them takes a second with thousands of devices

        async def act() -> None:
            """Report progress while devices connect, then evaluate until the end."""
            while members.context.origin is None:
                met, expected = members.gathered
                self._report(members, f"{met:,} of {expected:,} devices are connected")
                await happened(members.begun, _REPORT_EVERY)
            await self._evaluate_until_the_end(
                members, watching, None if self._aggregates and not self._streams else evaluate
            )

        self._serving = asyncio.create_task(members.serve(ready))
        tasks = [
            asyncio.create_task(work) for work in (act(), watching.serve(), self._stop.wait(), self._measure_lag())
        ]
        try:
            await federation.run_beside(self._serving, *tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gc.unfreeze()

    async def _evaluate_until_the_end(self, members: LiveFleet, watching: Watching, evaluate: _Evaluate | None) -> None:
        fleet = self._fleet
        origin = members.context.origin
        assert origin is not None
        loop, every = asyncio.get_running_loop(), fleet.seconds / fleet.speed_up / EVALUATIONS
        curve: list[tuple[float, float]] = []
        number, glances = 0, max(1, round(REPORTS / EVALUATIONS))
        while number <= EVALUATIONS * glances:
            await asyncio.sleep(origin + number * every / glances - loop.time())
            # On an overloaded machine some reports are skipped, so that the run still ends on time.
            number = max(number, min(int((loop.time() - origin) * glances / every), EVALUATIONS * glances))
            evaluated = number // glances >= len(curve)
            if evaluated:
                if evaluate is not None:
                    await self._evaluate(members, watching, evaluate)
                now = min(members.context.profile_time(), fleet.seconds)
                self._rows.append((now, self._version, len(members.accepted), self._metrics, members.payloads))
                curve += [(now, value_of(self._metrics))] * (number // glances + 1 - len(curve))
            self._report(members, evaluated=evaluated)
            if fleet.stop_at_target and held(curve, fleet.target, sign_of(self._metrics)) is not None:
                return
            number += 1

    @staticmethod
    def _newest(members: LiveFleet, watching: Watching) -> State | None:
        """The model that was announced last, if a device holds it."""
        announcement, versions = watching.newest, members.context.versions
        return None if announcement is None or versions is None else versions.get(announcement.digest)

    async def _evaluate(self, members: LiveFleet, watching: Watching, evaluate: _Evaluate) -> None:
        """Evaluate the newest model that a device holds: an aggregator in another process reports no metrics here."""
        announcement, state = watching.newest, self._newest(members, watching)
        if announcement is not None and state is not None:
            self._version = announcement.version
            now = members.context.profile_time()
            self._metrics = await asyncio.to_thread(evaluate, now, state.parameters())

    def _report(self, members: LiveFleet, doing: str = "", *, evaluated: bool = False) -> None:
        moment = FleetProgress(
            now=min(members.context.profile_time(), self._fleet.seconds),
            until=self._fleet.seconds,
            version=self._version,
            trainings=members.trainings,
            updates=len(members.accepted),
            events=members.events,
            metrics=self._metrics,
            live=members.connected,
            evaluated=evaluated,
            doing=doing,
        )
        self._watch(moment)

    async def _measure_lag(self) -> None:
        """Measure how late timers are: on an overloaded machine everything is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _MEASURE_EVERY
            await asyncio.sleep(_MEASURE_EVERY)
            self._lags.append(loop.time() - due)

    def _handle_event(self, event: dict[str, Any]) -> None:
        """Handle an event of the aggregator's process."""
        match event:
            case {"event": "evaluation"}:
                if not self._streams:
                    self._version, self._metrics = event["version"], event["metrics"]
                self._evaluated.set()
            case {"event": "device", "state": "lost" | "disconnected" as state}:
                self._departures[state] += 1
            case {"event": "finished", "counts": counts}:
                self._counts = counts

    async def _disconnect(self, members: LiveFleet) -> None:
        members.stop()
        try:
            async with asyncio.timeout(_DISCONNECT_TIMEOUT):
                await self._serving
        except TimeoutError:
            self._say("Some devices did not disconnect in time.")

    # ------------------------------------------------------------------------- outcome

    def _served(self, members: LiveFleet, watching: Watching, initial: Parameters) -> Parameters:
        """The model that users would get; without our own aggregator, the newest that a device holds."""
        with suppress(OSError, SafetensorError):
            return dict(load_file(self._directory / SERVED))
        state = self._newest(members, watching)
        return initial if state is None else state.parameters()

    def _result(self, members: LiveFleet, population: Population) -> Simulated:
        devices, taken, rows = list(members.devices.values()), members.accepted, self._rows
        up = np.array([one.payloads[0] for one in devices], np.int64)
        down = np.array([one.payloads[1] for one in devices], np.int64)
        steps = np.array([one.steps for one in devices], np.int64)
        trained = np.array([one.trainings * population.seconds(one.name) for one in devices])
        names = dict.fromkeys(name for row in rows for name in row[3])
        return Simulated(
            times=np.array([row[0] for row in rows]),
            metrics={name: np.array([row[3].get(name, math.nan) for row in rows]) for name in names},
            versions=np.array([row[1] for row in rows], np.int64),
            updates=np.array([row[2] for row in rows], np.int64),
            **taken.arrays(len(devices)),
            devices=tuple(members.devices),
            seconds=np.array([population.seconds(one.name) for one in devices]),
            bytes_up=up,
            bytes_down=down,
            trainings_of=np.array([one.trainings for one in devices], np.int64),
            steps_of=steps,
            classes=population.classes,
            class_of=population.class_of,
            joules=population.joules(steps, (up + down).astype(np.float64), trained),
            troubles={},
            boards={},  # a live fleet does not know when a real board sleeps
            left_out=population.left_out,
            privacy={},  # a profile's strategy is not private
            sites={},
            bytes_at=np.array([row[4] for row in rows], np.int64).reshape(-1, 2),
            refused=dict(members.refused),
            trainings=members.trainings,
            events=members.events,
            took=0.0,
            parameters={},
        )

    def _about(self, members: LiveFleet, departures: Counter[str]) -> dict[str, Any]:
        """Additional results of a live fleet."""
        up, down = members.moved
        devices, lags = members.devices.values(), sorted(self._lags) or [0.0]
        return {
            "speed_up": self._fleet.speed_up,
            "federation": self._fleet.federation,
            "made": sum(one.updates for one in devices),
            "held": sum(one.holding for one in devices),
            "repeated": members.repeated,
            "decided": dict(self._counts),
            "lost": departures["lost"],
            "goodbyes": departures["disconnected"],
            "wire_up": up,
            "wire_down": down,
            "lag": {"mean": float(np.mean(lags)), "p99": lags[int(0.99 * (len(lags) - 1))], "most": lags[-1]},
            "resident": dict(self._resident),
        }


def resident() -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
