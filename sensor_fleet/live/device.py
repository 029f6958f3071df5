"""A real `Device` in a live fleet, with an emulated link and the availability that its population draws."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from midge.broker.mqtt.connection import Connector, Delivery
from midge.iot_client.board.conditions import enough_new
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.state.memory_outbox import MemoryOutbox
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.links import DeviceLink, Sever, sever
from midge.sensor_fleet.live.versions import SharedVersions
from midge.sensor_fleet.profiles.population import Departure, Population
from midge.sensor_fleet.sensors.stream import Stream
from midge.wire.topics import Topics

KEEPALIVE: Final = 120
"""Seconds; long, because the keep-alives of thousands of devices would load the broker for no gain."""
AT_ONCE: Final = 64
"""Maximum number of devices that connect at the same time: a broker in a small process stalls at a thousand."""
_NEVER: Final = (math.inf, math.inf)
_NOT_YET: Final = "the fleet has not begun"
_PAUSING: Final = "not now"

Train = Callable[[int, Parameters, TrainingPlan, int], tuple[Fit, float]]
"""Trains the device of a number in a thread, at a slot of its stream; returns the fit, and its duration relative to a
usual one."""


class Presence(StrEnum):
    """The presence of a device as its population knows it; a federation learns of it from statuses and Last Wills."""

    ONLINE = "online"
    OFFLINE = "offline"
    TO_COME = "to come"
    KILLED = "killed"
    LEFT = "left"


@dataclass(slots=True, kw_only=True)
class FleetContext:
    """What the devices of a fleet share."""

    connector: Connector
    topics: Topics
    population: Population
    """In the fleet's time."""
    train: Train
    traits: Callable[[int], Mapping[str, Any]] = lambda _: {}
    """Further arguments of a device's `DeviceConfig`, by number: its statistics and capabilities."""
    outboxes: Path | None = None
    """Folder of the outboxes, which survive a killed device; None keeps them in memory."""
    stream: Stream | None = None
    """Data that grows while the fleet runs."""
    speed_up: float = 1.0
    """Seconds of the stream's time per second of the loop's clock."""
    framed: bool = True
    patient: bool = False
    """Of the links (`sensor_fleet.links`)."""
    sever: Sever = sever
    versions: SharedVersions | None = field(default_factory=SharedVersions)
    """Versions of the model, shared by devices whose trainers do not write to them; None keeps them apart."""
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    origin: float | None = None
    """When the fleet began, on the loop's clock; None before."""
    trainers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(os.cpu_count() or 1, "train"))
    """Threads for training, apart from those that decode models and encode updates, which would otherwise queue behind
    it."""
    late: float = 0.0
    """Seconds by which the latest training took longer than on its device."""

    def now(self) -> float:
        """Seconds since the fleet began."""
        return 0.0 if self.origin is None else asyncio.get_running_loop().time() - self.origin

    def profile_time(self) -> float:
        """The same on the profile's clock."""
        return self.now() * self.speed_up


class LiveDevice:
    """One device. `live` runs it; changes of its availability are timers.

    A killed device leaves its outbox, from which it continues when it is restarted.
    """

    def __init__(
        self,
        context: FleetContext,
        number: int,
        name: str,
        report: Callable[["LiveDevice", dict[str, Any]], None],
        watch: Callable[[Delivery], None],
    ) -> None:
        self._context, self._number, self.name = context, number, name
        self._report = report
        population = context.population
        self.joins = population.joins(name)
        """Seconds after the fleet begins."""
        self._seconds = population.seconds(name)
        self._pauses = iter(population.pauses(name))
        self._why: str | None = _NOT_YET
        """Why it may not train; None if it may."""
        self.link = DeviceLink(
            context.connector,
            population,
            name,
            sever=context.sever,
            watch=watch,
            gate=context.gate,
            framed=context.framed,
            patient=context.patient,
        )
        self.link.on_outage = self._handle_outage
        self._task: asyncio.Task[None] | None = None
        self._back: asyncio.Event | None = None
        """Set when it is restarted; None unless it is killed."""
        self._vanished = self.gone = False
        self._opened = False
        """Whether the current device has opened its outbox."""
        self.met = False
        """Whether it was ever connected."""
        self.trainings = self.updates = self.steps = 0
        self._held = 0
        self._earlier = (0, 0)
        """Payload bytes of killed devices."""
        self._settled = self._settled_before = 0
        self._identity: int | None = None
        """Identity of the outbox that `_settled` counts; `_settled_before` counts earlier ones."""
        stream = context.stream
        self._sensor = None if stream is None else stream.sensor(number, context.profile_time)
        self.outbox = MemoryOutbox() if context.outboxes is None else None
        self.device = self._new_device()

    def _new_device(self) -> Device:
        context, stream = self._context, self._context.stream
        enough = () if self._sensor is None or stream is None else (enough_new(self._sensor, stream.fresh),)
        config = DeviceConfig(
            connector=self.link,
            federation=context.topics.federation,
            root=context.topics.root,
            name=self.name,
            train=self._train,
            outbox=self.outbox if context.outboxes is None else context.outboxes / f"{self.name}.outbox",
            conditions=(lambda: self._why, *enough),
            on_event=self._handle_event,
            keepalive=KEEPALIVE,
            look_every=math.inf,
            versions=context.versions,
            **context.traits(self._number),
        )
        return Device(config)

    # ------------------------------------------------------------------------ its life

    @property
    def there_at_first(self) -> bool:
        """Whether it is connected when the fleet begins."""
        return not self.joins and self.link.whole_at_first

    @property
    def started(self) -> bool:
        """Whether it runs, or has run."""
        return self._task is not None or self.gone

    @property
    def presence(self) -> Presence:
        """Its presence; a broken link counts as offline."""
        if self.gone:
            return Presence.LEFT
        if self._back is not None:
            return Presence.KILLED
        if self._task is None:
            return Presence.TO_COME
        return Presence.ONLINE if self.link.connected else Presence.OFFLINE

    async def live(self) -> None:
        """Take part until `stop()`, or until it leaves. Exceptions of the device are raised."""
        task = self._task = asyncio.current_task()
        assert task is not None
        if self.joins:
            self._emit("joined")
        while True:
            try:
                await self.device.serve()
            except (Exception, asyncio.CancelledError):
                if not self._vanished and self._back is None:
                    raise  # killed: what its end raised does not matter
                if task.uncancel():
                    raise  # the fleet ends too
            if self._back is None:
                return
            await self._back.wait()
            self._back = None
            if self.gone:
                return
            self.device = self._new_device()

    def begin(self) -> None:
        """Start the population's pauses, outages and departure: the fleet begins."""
        assert self._context.origin is not None
        self._why = None
        self._expect_pause()
        self._look()
        self._expect_rows()
        self.link.begin(self._context.origin)
        if (departure := self._context.population.leaves(self.name)) is not None:
            self._at(departure.at, lambda: self._leave(departure))

    def stop(self) -> None:
        """Have it disconnect cleanly and end."""
        self.gone = True
        self.link.close()
        self.device.stop()
        if self._back is not None:
            self._back.set()

    def kill(self) -> bool:
        """Kill it, as a power failure does: no goodbye, and unstored state is lost. False if it is not running."""
        if self._task is None or self.gone or self._back is not None:
            return False
        self._held, self._opened = self.holding, False
        up, down = self._earlier
        self._earlier = up + self.device.bytes_up, down + self.device.bytes_down
        self._back = asyncio.Event()
        self.link.cut()
        self._task.cancel()
        return True

    def bring_back(self) -> bool:
        """Restart it on its outbox. False if it was not killed."""
        if self._back is None or self.gone:
            return False
        self._back.set()
        return True

    def _leave(self, departure: Departure) -> None:
        if self.gone:
            return
        self._emit("left" if departure.goodbye else "vanished")
        if departure.goodbye or self._back is not None:
            self.stop()
            return
        self.gone = self._vanished = True
        self.link.cut()
        self.link.close()
        if self._task is not None:
            self._task.cancel()

    def _handle_outage(self) -> None:
        """Handle the beginning of an outage."""
        if self.link.established and self._context.population.says_goodbye(self.name):
            self.device.hang_up()
        else:
            self.link.cut()

    def _at(self, seconds: float, work: Callable[[], None]) -> None:
        """Schedule work at a time of the fleet."""
        assert self._context.origin is not None
        asyncio.get_running_loop().call_at(self._context.origin + seconds, work)

    # ------------------------------------------------------------------------- its work

    def _look(self) -> None:
        if self._opened and not self.gone:
            self.device.look()

    def _expect_pause(self) -> None:
        """Schedule the next pause, in which the device does not train."""
        now = self._context.now()
        start, end = next((pause for pause in self._pauses if pause[1] > now), _NEVER)
        if start <= now:
            self._pause(end)
        elif start < math.inf:
            self._at(start, lambda: self._pause(end))

    def _pause(self, until: float) -> None:
        self._why = _PAUSING
        self._look()
        if until < math.inf:
            self._at(until, self._resume)

    def _resume(self) -> None:
        self._why = None
        self._look()
        self._expect_pause()

    async def _train(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        """Train in the thread pool at once, then wait until a device of this class would be done."""
        context, loop = self._context, asyncio.get_running_loop()
        began = loop.time()
        seen = 0 if self._sensor is None else self._sensor.take()
        self._expect_rows()
        fit, load = await loop.run_in_executor(context.trainers, context.train, self._number, parameters, plan, seen)
        left = began + self._seconds * load - loop.time()
        context.late = max(0.0, -left)
        if left > 0:
            await asyncio.sleep(left)
        self.steps += fit.steps
        return fit

    def _expect_rows(self) -> None:
        """Look again once enough of the sensor's rows are new."""
        if self._sensor is not None and (stream := self._context.stream) is not None:
            self._at(self._sensor.enough_at(stream.fresh) / self._context.speed_up, self._look)

    def _handle_event(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "connected"}:
                self._opened = True
                self.link.establish()
                first, self.met = not self.met, True
                self._look()
                if first:
                    self._report(self, {**event, "event": "met"})
            case {"event": "training"}:
                self.trainings += 1
            case {"event": "trained"}:
                self.updates += 1
            case {"event": "settled", "outbox": identity, "through": through}:
                if identity != self._identity:
                    self._settled_before += self._settled
                    self._identity, self._settled = identity, 0
                self._settled = max(self._settled, through)
        self._report(self, event)

    def _emit(self, event: str) -> None:
        self._report(self, {"event": event, "device": self.name, "time": time.time()})

    # -------------------------------------------------------------------------- figures

    @property
    def holding(self) -> int:
        """Number of updates in its outbox that wait for a receipt."""
        return self.device.holding if self._opened else self._held

    @property
    def receipted(self) -> int:
        """Number of its updates settled by the receipts that it received."""
        return self._settled_before + self._settled

    @property
    def payloads(self) -> tuple[int, int]:
        """Payload bytes that it published and received."""
        up, down = self._earlier
        if self._back is not None:  # killed: counted already
            return up, down
        return up + self.device.bytes_up, down + self.device.bytes_down
