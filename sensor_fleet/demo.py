"""A demo: a federation on one machine with a broker, the aggregator in its own process, and a live fleet."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from midge.broker import Connector, Endpoint, connector
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet import record
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.live.aggregator_process import DemoError
from midge.sensor_fleet.live.device import FleetContext
from midge.sensor_fleet.live.federation import LocalFederation, Which
from midge.sensor_fleet.live.fleet import LiveFleet
from midge.sensor_fleet.live.masked import MaskingKeys
from midge.sensor_fleet.live.micro import MicroFleet, interpreter
from midge.sensor_fleet.models import DenseModel, FleetModel
from midge.sensor_fleet.progress import Progress
from midge.sensor_fleet.setting import BrokerAddress, Setting
from midge.wire.topics import Topics

__all__ = ["Demo", "DemoError", "Ending", "demo_fleet"]

Ending = Literal["target", "time", "interrupted"]


def demo_fleet(
    setting: Setting,
    data: FleetData,
    model: FleetModel,
    connect: Connector,
    *,
    outboxes: Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    keys: MaskingKeys | None = None,
) -> LiveFleet:
    """Build the fleet of a demo: each device keeps its trainer, and sends its own statistics.

    Raises:
        ValueError: the model does not run on an engine.
    """
    names, rows = tuple(data.devices), list(data.devices.values())
    names = names[: len(names) - setting.micro]
    rows = rows[: len(names)]
    engines = [setting.engine_of(number) for number in range(len(names))]
    trainers = [
        model.trainer(mine, engine, seed=setting.seed + number)
        for number, (mine, engine) in enumerate(zip(rows, engines, strict=True))
    ]

    def train(number: int, parameters: Parameters, plan: TrainingPlan, _: int) -> tuple[Fit, float]:
        return trainers[number](parameters, plan), 1.0

    def traits(number: int) -> Mapping[str, Any]:
        told = {"moments": partial(model.moments, rows[number]), "capabilities": {"engine": engines[number]}}
        return told if keys is None else {**told, **keys.of_device(names[number], setting.k_min)}

    context = FleetContext(
        connector=connect,
        topics=Topics(setting.federation, setting.root),
        population=setting.world.population(names),
        train=train,
        traits=traits,
        outboxes=outboxes,
        framed=False,
        patient=True,  # the aggregator has reached the broker before, so devices keep retrying
        versions=None,  # a user's model may write to its input parameters
    )
    return LiveFleet(context, names, on_event)


@dataclass(slots=True)
class Demo:
    """One run of the demo. Await `run()`; `progress`, `fleet` and `broker` can be read meanwhile."""

    setting: Setting
    directory: Path
    target: float | None = None
    seconds: float = 60.0
    """How long devices train: what a busy machine takes to start is not of it."""
    broker: Which | BrokerAddress = "auto"
    on_event: Callable[[dict[str, Any]], None] | None = None
    """Called with each event of the aggregator, and when something is killed or restarted."""
    on_device_event: Callable[[dict[str, Any]], None] | None = None
    on_broker: Callable[[Connector], None] | None = None
    """Called once the broker is there."""
    on_ending: Callable[[], None] | None = None
    """Called when the run is over, before anything is shut down."""
    progress: Progress = field(init=False)
    fleet: LiveFleet | None = field(init=False, default=None)
    boards: MicroFleet | None = field(init=False, default=None)
    """The devices on MicroPython, if any."""
    loaded: tuple[FleetData, FleetModel] | None = field(init=False, default=None)
    _training_since: float | None = field(init=False, default=None)
    """Monotonic time when the devices were started."""
    _federation: LocalFederation = field(init=False)
    _stop: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _metrics: TextIO | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.progress = Progress(target=self.target)
        topics = Topics(self.setting.federation, self.setting.root)
        task = {"setting": self.setting.packed()}
        self._federation = LocalFederation(topics, self.directory, self.broker, task, self._handle_event)

    def stop(self) -> None:
        """End the run cleanly, as Ctrl-C does. To be called from its event loop."""
        self._stop.set()

    @property
    def elapsed(self) -> float:
        return time.time() - self.progress.began

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        since = self._training_since
        return self.seconds if since is None else max(0.0, since + self.seconds - time.monotonic())

    async def run(self) -> Ending:
        """Run until the target is held, the time is over, or `stop()` is called.

        Raises:
            ValueError: data, model or strategy cannot be used.
            BrokerError: no broker could be reached or started.
            DemoError: the aggregator's process ended.
        """
        self.progress.began = time.time()
        if self.setting.micro:
            interpreter()
        data, model = self.loaded = await asyncio.to_thread(self.setting.load)
        if self.setting.micro >= len(data.devices):
            raise ValueError(
                f"--micro {self.setting.micro} leaves none of the {len(data.devices)} devices for the other engines."
            )
        if data.task == "classification" and self.target is not None and self.target > 1:
            raise ValueError(f"An accuracy of {self.target:g} cannot be reached: give a share of at most 1.")
        about = record.describe(
            self.setting, data, model, target=self.target, seconds=self.seconds, began=self.progress.began
        )
        record.write(self.directory, about)
        async with AsyncExitStack() as stack:
            self._metrics = stack.enter_context((self.directory / "metrics.jsonl").open("w", buffering=1))
            devices = stack.enter_context((self.directory / "devices.jsonl").open("w", buffering=1))
            broker = await stack.enter_async_context(self._federation.reach_broker())

            def record_event(event: dict[str, Any]) -> None:
                devices.write(json.dumps(event, default=str) + "\n")
                if self.on_device_event is not None:
                    self.on_device_event(event)

            if self.setting.secure:
                await stack.enter_async_context(self._helper(data, broker))
            connect, outboxes = connector(broker.endpoint()), self.directory / "outboxes"
            if self.on_broker is not None:
                self.on_broker(connect)
            keys = MaskingKeys(self.directory) if self.setting.secure else None
            fleet = demo_fleet(self.setting, data, model, connect, outboxes=outboxes, on_event=record_event, keys=keys)
            if self.setting.micro:
                self.boards = self._boards(data, model, broker.endpoint(), record_event)
            await stack.enter_async_context(self._federation.start_aggregator(broker))
            self.fleet = fleet
            return await self._until_the_end(fleet)

    async def _until_the_end(self, fleet: LiveFleet) -> Ending:
        self._training_since = time.monotonic()
        serving, stopping = asyncio.create_task(fleet.serve()), asyncio.create_task(self._stop.wait())
        boards = [] if self.boards is None else [asyncio.create_task(self.boards.serve())]
        try:
            await self._federation.run_beside(serving, stopping, *boards, within=self.left)
            ending: Ending = "target" if self.progress.reached else "interrupted" if stopping.done() else "time"
            if self.on_ending is not None:
                self.on_ending()
            await self._revive()
            fleet.stop()
            await serving
        finally:
            for task in (serving, stopping, *boards):
                task.cancel()
            await asyncio.wait({serving, stopping, *boards})
        return ending

    def _helper(self, data: FleetData, broker: BrokerAddress) -> AbstractAsyncContextManager[None]:
        """The mask helper's process, once all parties have their keys.

        Raises:
            ValueError: there are fewer devices than a sum needs.
        """
        if len(data.devices) < (needed := self.setting.k_min * self.setting.groups):
            raise ValueError(f"--secure needs {needed} devices a step: add --devices, or lower --k-min, --groups.")
        MaskingKeys(self.directory).make(data.devices)
        return self._federation.start_helper(broker, self.setting.k_min)

    def _boards(
        self, data: FleetData, model: FleetModel, endpoint: Endpoint, record_event: Callable[[dict[str, Any]], None]
    ) -> MicroFleet:
        """Set up the last devices of the data on MicroPython.

        Raises:
            ValueError: MicroPython is missing, or does not train this model.
        """
        if not isinstance(model, DenseModel):
            raise ValueError("--micro trains linear models and perceptrons: add --model mlp.")  # noqa: TRY004 - the user's
        topics = Topics(self.setting.federation, self.setting.root)
        found = MicroFleet(self.directory / "boards", endpoint, topics, asdict(model.recipe), record_event)
        for name in tuple(data.devices)[-self.setting.micro :]:
            found.add(name, model.prepare(data.devices[name].x), data.devices[name].y)
        return found

    def _handle_event(self, event: dict[str, Any]) -> None:
        """Record an event of the aggregator or of this run."""
        self.progress.add(event)
        if event["event"] == "evaluation" and self.fleet is not None:
            up, down = self.fleet.payloads
            event |= {"bytes_up": up, "bytes_down": down}  # payload bytes so far
        if self._metrics is not None:
            self._metrics.write(json.dumps(event) + "\n")
        if self.on_event is not None:
            self.on_event(event)
        if self.progress.reached:
            self.stop()

    # ------------------------------------------------------------ breaking things

    @property
    def aggregator_running(self) -> bool:
        return self._federation.aggregator_running

    @property
    def broker_running(self) -> bool:
        """Whether our broker runs; True if it is not ours, since its state is not known."""
        return self._federation.broker_running

    @property
    def about_broker(self) -> str:
        """Description of the broker; empty before there is one."""
        if isinstance(self.broker, BrokerAddress):
            return str(self.broker.endpoint())
        local = self._federation.local
        return "" if local is None else local.describe()

    @property
    def broker_is_ours(self) -> bool:
        return self._federation.local is not None

    def kill_aggregator(self) -> bool:
        """Kill the aggregator's process with SIGKILL. False if it is not running."""
        killed = self._federation.kill_aggregator()
        if killed:
            self._note("killed", "the aggregator")
        return killed

    async def restart_aggregator(self) -> bool:
        """Restart the aggregator on the same store. False if it is running."""
        aggregator = self._federation.aggregator
        if aggregator is None or aggregator.running or self.fleet is None:
            return False
        self._note("restarted", "the aggregator")
        await aggregator.start()
        return True

    def kill_broker(self) -> bool:
        """Kill our broker with SIGKILL. False if it is not running or not ours."""
        killed = self._federation.kill_broker()
        if killed:
            self._note("killed", "the broker")
        return killed

    async def restart_broker(self) -> bool:
        """Restart our broker on the same port, with empty state. False if it is running or not ours."""
        local = self._federation.local
        if local is None or local.running:
            return False
        self._note("restarted", "the broker")
        await local.start()
        return True

    def kill_device(self, name: str | None = None) -> str | None:
        """Kill a device, by default a random one, without a goodbye. Return its name; None if there is none to kill."""
        killed = None if self.fleet is None else self.fleet.kill(name)
        if killed is not None:
            self._note("killed", killed)
        return killed

    def restart_device(self, name: str | None = None) -> str | None:
        """Restart a killed device on its outbox. Return its name; None if there is none."""
        back = None if self.fleet is None else self.fleet.bring_back(name)
        if back is not None:
            self._note("restarted", back)
        return back

    async def _revive(self) -> None:
        """Restart the aggregator, which has to write the model, and the broker, which it needs."""
        if not self.aggregator_running:
            await self.restart_broker()
            await self.restart_aggregator()

    def _note(self, event: str, what: str) -> None:
        announced = None if self.fleet is None else self.fleet.announced
        model = {} if announced is None else {"version": announced.version, "digest": announced.digest.hex()}
        self._handle_event({"event": event, "what": what, "time": time.time(), **model})

    # ------------------------------------------------------------------------ figures

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
        """Bytes that the same fetches would have taken as whole float32 models."""
        if self.fleet is None or self.loaded is None:
            return 0
        return 4 * sum(array.size for array in self.loaded[1].initial.values()) * self.fleet.trainings

    def outcome(self) -> dict[str, Any]:
        """The result of the run as a flat object."""
        progress, fleet = self.progress, self.fleet
        up, down = fleet.payloads if fleet else (0, 0)
        return {
            "version": progress.version,
            "step": progress.step,
            progress.metric: progress.value,
            "seconds": round(self.elapsed, 2),
            "seconds_to_target": None if progress.seconds_to_target is None else round(progress.seconds_to_target, 2),
            "updates": dict(progress.updates),
            "dropped": progress.dropped,
            "bytes_up": up,
            "bytes_down": down,
            "float32_up": self.float32_up,
            "float32_down": self.float32_down,
            "settled": progress.settled,
            "receipted": fleet.receipted if fleet else 0,
            "held": fleet.holding if fleet else 0,
            "staleness": progress.quantiles(),
            "helper": self._federation.helped if self.setting.secure else None,
            "release_floor": self.setting.make_strategy(len(fleet.devices) if fleet else 20).release_floor,
            "devices": (len(fleet.devices) if fleet else 0) + (len(self.boards.names) if self.boards else 0),
            **({"micro": {"devices": len(self.boards.names), "updates": self.boards.updates}} if self.boards else {}),
            "run": str(self.directory),
        }
