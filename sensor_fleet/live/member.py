"""One device of a live fleet: the real one, on a line of its own, there when its profile says so."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from broker import connector
from broker.connection import Connection, ConnectionLost, Options
from broker.endpoint import Endpoint
from iot_client.conditions import enough_new
from iot_client.device import Device
from iot_client.fit import Fit, Parameters, TrainingPlan
from iot_client.memory_outbox import MemoryOutbox
from sensor_fleet.data import FleetData, Rows
from sensor_fleet.lazily import numbered
from sensor_fleet.links import HANDSHAKE, PUBACK, Lane, LinkedConnection, sever
from sensor_fleet.live.versions import Versions
from sensor_fleet.models import FleetModel
from sensor_fleet.profiles.population import Departure, Population
from sensor_fleet.sensors import Stream
from sensor_fleet.simulation.stacked import steps_of
from wire.topics import Topics

KEEPALIVE: Final = 120
"""Seconds: thousands of signs of life say nothing more than a few."""
PATIENCE: Final = 60.0
"""Seconds that a connection may take: the machine has others to serve."""
AT_ONCE: Final = 64
"""Devices that connect at a time."""
_NEVER: Final = (math.inf, math.inf)
_NOT_YET: Final = "the fleet has not begun"
_PAUSING: Final = "not now"


@dataclass(slots=True)
class Air:
    """What the devices of a fleet have in common."""

    endpoint: Endpoint
    topics: Topics
    world: Population
    model: FleetModel
    data: FleetData
    speed_up: float
    seed: int
    tell: Callable[["Member", dict[str, Any]], None]
    """Called with each event."""
    rows_of: Callable[[int], Rows] = field(init=False)
    """The rows of a device, by its number."""
    versions: Versions = field(default_factory=Versions)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    origin: float | None = None
    """When the fleet began, on the loop's clock; None before."""
    trainers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(os.cpu_count() or 1, "train"))
    """Threads that train, beside those that read models and encode updates: else these would wait for all trainings."""
    late: float = 0.0
    """Seconds by which the latest training took longer than its device would."""

    def __post_init__(self) -> None:
        self.rows_of = numbered(self.data.devices)

    def now(self) -> float:
        """Seconds since the fleet began."""
        return 0.0 if self.origin is None else asyncio.get_running_loop().time() - self.origin

    @property
    def fresh(self) -> int:
        """Rows of a sensor that streams which must be new before its device trains again."""
        return self.data.fresh if isinstance(self.data, Stream) else 0

    def rows(self, number: int, seen: int) -> Rows:
        """What a device trains on; of a sensor that streams, after a number of slots."""
        return self.data.flow.rows(number, seen) if isinstance(self.data, Stream) else self.rows_of(number)

    def profile_time(self) -> float:
        """The same by the profile's clock."""
        return self.now() * self.speed_up


class Member:
    """One device. `live` is its life; what happens to it meanwhile are timers."""

    __slots__ = (
        "_air",
        "_away",
        "_down",
        "_earlier",
        "_goodbye",
        "_in_gate",
        "_linked",
        "_number",
        "_outage",
        "_outages",
        "_pauses",
        "_seconds",
        "_sensor",
        "_task",
        "_up",
        "_vanished",
        "_why",
        "connected",
        "device",
        "gone",
        "joins",
        "met",
        "name",
        "outbox",
        "steps",
        "trainings",
        "updates",
    )

    def __init__(self, air: Air, number: int, name: str) -> None:
        self._air, self._number, self.name = air, number, name
        self._goodbye = air.world.says_goodbye(name)
        self.joins = air.world.joins(name)
        """Seconds behind the beginning of the fleet."""
        self._seconds = air.world.seconds(name)
        self._outages = iter(air.world.outages(name))
        self._outage = next(self._outages, _NEVER)
        """That lasts, or comes next."""
        self._pauses = iter(air.world.pauses(name))
        self._why: str | None = _NOT_YET
        """What keeps it from training."""
        self._linked: LinkedConnection | None = None
        self._up, self._down = self._lanes()
        self._earlier = (0, 0)
        """Bytes of connections before this one."""
        self._away: asyncio.Future[None] | None = None
        """Done when the link is whole again; None where it is."""
        self._in_gate = self._vanished = False
        self._task: asyncio.Task[None] | None = None
        self.connected = self.gone = False
        self.met = False
        """Whether it ever was connected."""
        self.trainings = self.updates = self.steps = 0
        self._sensor = air.data.sensor(number, air.profile_time) if isinstance(air.data, Stream) else None
        enough = () if self._sensor is None else (enough_new(self._sensor, air.fresh),)
        self.outbox = MemoryOutbox()
        self.device = Device(
            self._connector,
            federation=air.topics.federation,
            root=air.topics.root,
            name=name,
            train=self._train,
            outbox=self.outbox,
            conditions=(lambda: self._why, *enough),
            on_event=self._hear,
            keepalive=KEEPALIVE,
            look_every=math.inf,
            versions=air.versions,
        )

    # ------------------------------------------------------------------------ its life

    @property
    def there_at_first(self) -> bool:
        """Whether it is connected when the fleet begins."""
        return not self.joins and self._outage[0] > 0

    @property
    def started(self) -> bool:
        """Whether it lives, or has lived."""
        return self._task is not None or self.gone

    async def live(self) -> None:
        """Take part until `stop()`, or until it leaves. What ends the device is raised."""
        self._task = asyncio.current_task()
        try:
            await self.device.serve()
        except asyncio.CancelledError:
            if not self._vanished:
                raise
        finally:
            self._leave_gate()

    def begin(self) -> None:
        """The fleet begins: from here on the profile counts."""
        self._why = None
        self._expect_pause()
        self._look()
        self._expect_rows()
        self._expect_outage()
        if (departure := self._air.world.leaves(self.name)) is not None:
            self._at(departure.at, lambda: self._leave(departure))

    def stop(self) -> None:
        """Have it say goodbye and end."""
        self.gone = True
        self._come_back()
        self.device.stop()

    def _at(self, seconds: float, work: Callable[[], None]) -> None:
        """Do something so long after the fleet began."""
        assert self._air.origin is not None
        asyncio.get_running_loop().call_at(self._air.origin + seconds, work)

    def _leave(self, departure: Departure) -> None:
        if self.gone:
            return
        if departure.goodbye:
            self.stop()
            return
        self.gone = self._vanished = True
        self._cut()
        if self._task is not None:
            self._task.cancel()

    # --------------------------------------------------------------------------- its link

    def _expect_outage(self) -> None:
        now = self._air.now()
        while self._outage[1] <= now:
            self._outage = next(self._outages, _NEVER)
        if self._outage[0] <= now:
            self._go_away()
        elif self._outage[0] < math.inf:
            self._at(self._outage[0], self._go_away)

    def _go_away(self) -> None:
        """An outage begins."""
        if self.gone:
            return
        self._away = asyncio.get_running_loop().create_future()
        if self._goodbye and self.connected:
            self.device.hang_up()
        else:
            self._cut()
        if self._outage[1] < math.inf:
            self._at(self._outage[1], self._return)

    def _return(self) -> None:
        self._come_back()
        if not self.gone:
            self._expect_outage()

    def _come_back(self) -> None:
        away, self._away = self._away, None
        if away is not None and not away.done():
            away.set_result(None)

    def _connector(self, options: Options) -> AbstractAsyncContextManager[Connection]:
        """Connect once the link is whole and it is our turn."""
        return self._connect(replace(options, timeout=max(options.timeout, PATIENCE)))

    @asynccontextmanager
    async def _connect(self, options: Options) -> AsyncGenerator[Connection, None]:
        while self._away is not None:
            await self._away
        await self._air.gate.acquire()
        self._in_gate = True
        try:
            if not self._there():  # any more: it has waited for its turn
                raise ConnectionLost("There is no link any more.")
            await self._shake_hands()
            async with connector(self._air.endpoint)(options) as inner:
                if not self._there():  # any more: the link broke meanwhile
                    sever(inner, options.client_id)
                    raise ConnectionLost("There is no link any more.")
                self._linked = LinkedConnection(
                    inner, self._up, self._down, break_off=lambda: sever(inner, options.client_id), framed=True
                )
                try:
                    yield self._linked
                finally:
                    linked, self._linked = self._linked, None
                    await linked.close()
        finally:
            self._leave_gate()
            self.connected = False

    async def _shake_hands(self) -> None:
        """Wait as long as the handshakes of TCP and MQTT take on this link, whose lanes are free again."""
        self._earlier = self.moved
        self._up, self._down = self._lanes()
        now, link = asyncio.get_running_loop().time(), self._air.world.link(self.name)
        there = self._up.enter(HANDSHAKE, now + 2 * link.latency)
        await asyncio.sleep(self._down.enter(PUBACK, there) - now)

    def _there(self) -> bool:
        return self._away is None and not self.gone

    def _lanes(self) -> tuple[Lane, Lane]:
        link = self._air.world.link(self.name)
        return Lane(link.bandwidth, link.latency), Lane(link.down, link.latency)

    def _cut(self) -> None:
        """Break the link: what is on the way is lost, and the broker has to find out by itself."""
        if self._linked is not None:
            self._linked.cut("The link broke.")

    def _leave_gate(self) -> None:
        if self._in_gate:
            self._in_gate = False
            self._air.gate.release()

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes sent and received over all connections, with all that MQTT adds to payloads."""
        up, down = self._earlier
        return up + self._up.moved, down + self._down.moved

    # ------------------------------------------------------------------------- its work

    def _look(self) -> None:
        if self.met and not self.gone:
            self.device.look()

    def _expect_pause(self) -> None:
        """Train nothing from the next pause on until it is over: the device has something against it."""
        now = self._air.now()
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
        """Train in the pool of threads at once, and wait until a device of this kind would be done."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen = 0 if self._sensor is None else self._sensor.take()
        self._expect_rows()
        fit, load = await loop.run_in_executor(self._air.trainers, self._fit, parameters, plan, seen)
        left = began + self._seconds * load - loop.time()
        self._air.late = max(0.0, -left)
        if left > 0:
            await asyncio.sleep(left)
        self.steps += fit.steps
        return fit

    def _expect_rows(self) -> None:
        """Look again once enough of the sensor's rows are new."""
        if self._sensor is not None:
            self._at(self._sensor.enough_at(self._air.fresh) / self._air.speed_up, self._look)

    def _fit(self, parameters: Parameters, plan: TrainingPlan, seen: int) -> tuple[Fit, float]:
        """The training, and how much longer than usual it takes: rows are made for it and not kept."""
        model, rows = self._air.model, self._air.rows(self._number, seen)
        fit = model.trainer(rows, seed=self._air.seed + self._number)(parameters, plan)
        return fit, steps_of(model.recipe.under(plan), len(rows)) / model.recipe.local_steps

    def _hear(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "connected":
                self.connected = True
                self._leave_gate()
                first, self.met = not self.met, True
                self._look()
                if first:
                    self._air.tell(self, {**event, "event": "met"})
            case "training":
                self.trainings += 1
            case "trained":
                self.updates += 1
        self._air.tell(self, event)
