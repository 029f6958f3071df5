"""A whole federation on one machine: a broker, the aggregator in a process of its own, a live fleet in this one."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from broker import BrokerError, connector
from broker.local import LocalBroker, local_broker
from broker.retained import clear_federation
from sensor_fleet import record
from sensor_fleet.data import FleetData
from sensor_fleet.fleet import Fleet, Member
from sensor_fleet.models import FleetModel
from sensor_fleet.progress import Progress
from sensor_fleet.server_process import DemoError, ServerProcess
from sensor_fleet.setting import BrokerAddress, Setting
from wire.topics import Topics

__all__ = ["Demo", "DemoError", "Ending"]

Ending = Literal["target", "time", "interrupted"]


@dataclass(slots=True)
class Demo:
    """One run. Await `run()`; look at `progress`, `fleet` and `broker` from outside meanwhile."""

    setting: Setting
    directory: Path
    target: float | None = None
    seconds: float = 60.0
    broker: Literal["auto", "mosquitto", "embedded"] | BrokerAddress = "auto"
    on_event: Callable[[dict[str, Any]], None] | None = None
    """Called with each event of the aggregator's, and with what was killed and brought back."""
    on_device_event: Callable[[dict[str, Any]], None] | None = None
    on_ending: Callable[[], None] | None = None
    """Called when the run is over and everything still stands."""
    progress: Progress = field(init=False)
    fleet: Fleet | None = field(init=False, default=None)
    loaded: tuple[FleetData, FleetModel] | None = field(init=False, default=None)
    about_broker: str = field(init=False, default="")
    _stop: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _local: LocalBroker | None = field(init=False, default=None)
    _server: ServerProcess | None = field(init=False, default=None)
    _metrics: TextIO | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.progress = Progress(target=self.target)

    def stop(self) -> None:
        """End the run cleanly, as Ctrl-C does. To be called in its loop."""
        self._stop.set()

    @property
    def elapsed(self) -> float:
        return time.time() - self.progress.began

    async def run(self) -> Ending:
        """Run until the target is held, the time is over, or `stop()`.

        Raises:
            ValueError: data, model or strategy that cannot be used.
            BrokerError: no broker to be had.
            DemoError: the aggregator ended by itself.
        """
        self.progress.began = time.time()
        data, model = self.loaded = await asyncio.to_thread(self.setting.load)
        if data.task == "classification" and self.target is not None and self.target > 1:
            raise ValueError(f"An accuracy of {self.target:g} cannot be reached: 1 is all of it, 0.93 is 93 %.")
        about = record.describe(
            self.setting, data, model, target=self.target, seconds=self.seconds, began=self.progress.began
        )
        record.write(self.directory, about)
        members = list(self._members(data, model))
        async with AsyncExitStack() as stack:
            self._metrics = stack.enter_context((self.directory / "metrics.jsonl").open("w", buffering=1))
            devices = stack.enter_context((self.directory / "devices.jsonl").open("w", buffering=1))
            broker = await stack.enter_async_context(self._broker())
            task = {"setting": self.setting.packed(), "broker": asdict(broker), "directory": str(self.directory)}
            self._server = ServerProcess(task, self.directory / "aggregator.log", self._take)
            stack.push_async_callback(self._server.stop)
            await self._server.start()

            def take(event: dict[str, Any]) -> None:
                devices.write(json.dumps(event, default=str) + "\n")
                if self.on_device_event is not None:
                    self.on_device_event(event)

            self.fleet = Fleet(
                connector(broker.endpoint()),
                members,
                federation=self.setting.federation,
                root=self.setting.root,
                world=self.setting.world,
                outboxes=self.directory / "outboxes",
                on_event=take,
            )
            return await self._until_the_end(self._server, self.fleet)

    async def _until_the_end(self, server: ServerProcess, fleet: Fleet) -> Ending:
        serving = asyncio.create_task(fleet.serve())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {stopping, serving, server.failure}
            while not stopping.done() and (left := self.seconds - self.elapsed) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for ended in done:
                    ended.result()  # raises what ended it; that all devices have left ends nothing
            ending: Ending = "target" if self.progress.reached else "interrupted" if stopping.done() else "time"
            if self.on_ending is not None:
                self.on_ending()
            await self._revive()
            fleet.stop()
            await serving
            await server.stop()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            server.failure.cancel()
            for task in (serving, stopping):
                task.cancel()
            await asyncio.wait({serving, stopping})
        return ending

    def _take(self, event: dict[str, Any]) -> None:
        """Take in an event of the aggregator's, or one of ours."""
        self.progress.add(event)
        if event["event"] == "evaluation" and self.fleet is not None:
            event |= {"bytes_up": self.fleet.bytes_up, "bytes_down": self.fleet.bytes_down}  # what it took
        if self._metrics is not None:
            self._metrics.write(json.dumps(event) + "\n")
        if self.on_event is not None:
            self.on_event(event)
        if self.progress.reached:
            self.stop()

    # ------------------------------------------------------------ breaking things

    @property
    def aggregator_running(self) -> bool:
        return self._server is not None and self._server.running

    @property
    def broker_running(self) -> bool:
        """Whether our broker runs; of one that is not ours we do not know, and say yes."""
        return self._local is None or self._local.running

    @property
    def broker_is_ours(self) -> bool:
        return self._local is not None

    def kill_aggregator(self) -> bool:
        """Kill the aggregator's process with SIGKILL. False where it does not run."""
        if self._server is None or not self._server.running:
            return False
        self._server.kill()
        self._note("killed", "the aggregator")
        return True

    async def restart_aggregator(self) -> bool:
        """Start it again on the same store. False where it runs."""
        if self._server is None or self._server.running or self.fleet is None:
            return False
        self._note("restarted", "the aggregator")
        await self._server.start()
        return True

    def kill_broker(self) -> bool:
        """Kill our broker with SIGKILL. False where it does not run, or is not ours."""
        if self._local is None or not self._local.running:
            return False
        self._local.kill()
        self._note("killed", "the broker")
        return True

    async def restart_broker(self) -> bool:
        """Start it again on the same port, with nothing kept. False where it runs, or is not ours."""
        if self._local is None or self._local.running:
            return False
        self._note("restarted", "the broker")
        await self._local.start()
        return True

    def kill_device(self, name: str | None = None) -> str | None:
        """Kill a device, or a random one, without a goodbye. Its name; None if there is none to kill."""
        killed = None if self.fleet is None else self.fleet.kill(name)
        if killed is not None:
            self._note("killed", killed)
        return killed

    def restart_device(self, name: str | None = None) -> str | None:
        """Bring a killed device back on its outbox. Its name; None where there is none."""
        back = None if self.fleet is None else self.fleet.bring_back(name)
        if back is not None:
            self._note("restarted", back)
        return back

    async def _revive(self) -> None:
        """Without the aggregator no model would be written at the end; and it needs a broker to begin."""
        if self._server is not None and not self._server.running:
            await self.restart_broker()
            await self.restart_aggregator()

    def _note(self, event: str, what: str) -> None:
        announced = None if self.fleet is None else self.fleet.announced
        model = {} if announced is None else {"version": announced.version, "digest": announced.digest.hex()}
        self._take({"event": event, "what": what, "time": time.time(), **model})

    # --------------------------------------------------------------------- parts

    def _members(self, data: FleetData, model: FleetModel) -> list[Member]:
        members = []
        for number, (name, rows) in enumerate(data.devices.items()):
            engine = self.setting.engine_of(number)
            trainer = model.trainer(rows, engine, seed=self.setting.seed + number)
            members.append(Member(name, trainer, model.moments(rows), engine=engine))
        return members

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[BrokerAddress]:
        if isinstance(self.broker, BrokerAddress):
            self.about_broker = str(self.broker.endpoint())
            try:
                yield self.broker
            finally:
                with suppress(BrokerError):
                    await clear_federation(
                        connector(self.broker.endpoint()), Topics(self.setting.federation, self.setting.root)
                    )
            return
        directory = self.directory / "broker"
        directory.mkdir()
        async with local_broker(self.broker, directory=directory) as local:
            self._local = local
            self.about_broker = local.describe()
            yield BrokerAddress(str(local.endpoint))

    @property
    def float32_up(self) -> int:
        """Bytes that the same updates would have taken as float32."""
        if self.fleet is None or self.loaded is None:
            return 0
        model = self.loaded[1]
        trained = sum(array.size for name, array in model.initial.items() if model.roles[name] == "trained")
        return 4 * trained * self.fleet.updates

    @property
    def float32_down(self) -> int:
        """Bytes that the same fetches would have taken as whole models of float32."""
        if self.fleet is None or self.loaded is None:
            return 0
        return 4 * sum(array.size for array in self.loaded[1].initial.values()) * self.fleet.trainings

    def outcome(self) -> dict[str, Any]:
        """The run in one flat object."""
        progress, fleet = self.progress, self.fleet
        return {
            "version": progress.version,
            "step": progress.step,
            progress.metric: progress.value,
            "seconds": round(self.elapsed, 2),
            "seconds_to_target": None if progress.seconds_to_target is None else round(progress.seconds_to_target, 2),
            "updates": dict(progress.updates),
            "dropped": progress.dropped,
            "bytes_up": fleet.bytes_up if fleet else 0,
            "bytes_down": fleet.bytes_down if fleet else 0,
            "float32_up": self.float32_up,
            "float32_down": self.float32_down,
            "settled": progress.settled,
            "receipted": fleet.receipted if fleet else 0,
            "held": fleet.holding if fleet else 0,
            "staleness": progress.quantiles(),
            "devices": len(fleet.devices) if fleet else 0,
            "run": str(self.directory),
        }
