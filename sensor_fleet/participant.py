"""One device of a live fleet, from its joining to its leaving, and through being killed and brought back."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from broker.connection import Connector, Delivery
from iot_client.device import Device
from iot_client.fit import Fit, Parameters, Trainer, TrainingPlan
from sensor_fleet.links import DeviceLink, Sever
from sensor_fleet.profiles.population import Population
from wire import messages
from wire.errors import WireError
from wire.messages import Receipt
from wire.moments import Moments
from wire.topics import Topics

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Member:
    """What a fleet needs to know of one device."""

    name: str
    train: Trainer
    moments: Mapping[str, Moments]
    missing: int = 0
    engine: str = "numpy"


class Presence(StrEnum):
    """Where a device is, as the world knows it; a federation learns of it from statuses and Last Wills."""

    ONLINE = "online"
    OFFLINE = "offline"
    TO_COME = "to come"
    KILLED = "killed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all devices of a fleet have in common."""

    connector: Connector
    topics: Topics
    world: Population
    sever: Sever
    origin: float
    """When the fleet began, on the loop's clock."""
    outboxes: Path | None
    tell: Listener
    watch: Callable[[Delivery], None]


class Participant:
    """Runs one device. Killed, it leaves its outbox on disk behind, from which it goes on when it is brought back."""

    def __init__(self, member: Member, around: Surroundings) -> None:
        self.name = member.name
        self.presence = Presence.TO_COME
        self.trainings = 0
        """How many times it began to train: each time it had got the model that was newest."""
        self.updates = 0
        """How many updates it made."""
        self._member = member
        self._around = around
        self._topic = around.topics.receipt(member.name)
        self._seconds = around.world.seconds(member.name)
        self._settled: dict[int, int] = {}
        self._earlier = (0, 0)
        self._held = 0
        self._stopping = asyncio.Event()
        self._back = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        """A new device on the earlier outbox."""
        around, member = self._around, self._member
        self._link = DeviceLink(
            around.connector,
            around.world,
            member.name,
            origin=around.origin,
            sever=around.sever,
            watch=self._watch,
        )
        self.device = Device(
            self._link,
            federation=around.topics.federation,
            root=around.topics.root,
            name=member.name,
            train=paced(member.train, self._seconds),
            outbox=None if around.outboxes is None else around.outboxes / f"{member.name}.outbox",
            moments=member.moments,
            missing=member.missing,
            capabilities={"engine": member.engine},
            on_event=self._tell,
        )
        self._serving: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ its life

    async def live(self, earliest: float = 0.0) -> None:
        """Join when it is time, take part until `stop()`, and leave when it is time. What ends the device is raised."""
        joins = self._around.world.joins(self.name)
        if not await self._pause(max(joins, earliest)):
            return
        self.presence = Presence.ONLINE
        if joins:
            self._tell_of("joined")
        departure = self._around.world.leaves(self.name)
        while not self._stopping.is_set():
            self._serving = asyncio.create_task(self.device.serve(), name=self.name)
            try:
                leaving = None if departure is None else max(0.0, departure.at - self._now())
                await asyncio.wait({self._serving}, timeout=leaving)
                if not self._serving.done():
                    assert departure is not None
                    await self._leave(departure.goodbye)
                    return
                if not self._serving.cancelled():
                    self._serving.result()  # raises what ended it
                    return
            finally:
                await _cancelled(self._serving)
            if not await self._brought_back():
                return

    async def _leave(self, goodbye: bool) -> None:
        self.presence = Presence.LEFT
        self._tell_of("left" if goodbye else "vanished")
        assert self._serving is not None
        if goodbye:
            self._link.close()
            self.device.stop()
            await asyncio.wait({self._serving})
        else:
            self._link.cut()
            await _cancelled(self._serving)
        if not self._serving.cancelled():
            self._serving.result()  # raises what ended it

    async def _brought_back(self) -> bool:
        """Wait until somebody brings it back; False where the fleet ends before."""
        await self._back.wait()
        self._back.clear()
        if self._stopping.is_set():
            return False
        up, down = self._earlier
        self._earlier = up + self.device.bytes_up, down + self.device.bytes_down
        self._begin()
        self.presence = Presence.ONLINE
        return True

    async def _pause(self, seconds: float) -> bool:
        """Sleep until the world's time; False where the fleet ends before."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - self._now())):
                await self._stopping.wait()
        return not self._stopping.is_set()

    def stop(self) -> None:
        """Have it say goodbye and end."""
        self._stopping.set()
        self._back.set()
        self._link.close()
        self.device.stop()

    def kill(self) -> bool:
        """End it as a power cut does: no goodbye, and what it had not stored is lost. False where it does not run."""
        if self._serving is None or self._serving.done() or self.presence is Presence.LEFT:
            return False
        self.presence = Presence.KILLED
        self._link.cut()
        self._serving.cancel()
        return True

    def bring_back(self) -> bool:
        """Start it again on its outbox. False where it was not killed."""
        if self.presence is not Presence.KILLED:
            return False
        self._back.set()
        return True

    # ---------------------------------------------------------------- its figures

    @property
    def state(self) -> Presence:
        """Where it is; a broken link counts as offline."""
        if self.presence is Presence.ONLINE and not self._link.connected:
            return Presence.OFFLINE
        return self.presence

    @property
    def holding(self) -> int:
        """How many updates wait in its outbox for their receipt."""
        if self._link.met:  # before, the device has not opened its outbox
            self._held = self.device.holding
        return self._held

    @property
    def receipted(self) -> int:
        """How many of its updates the receipts that reached it have settled."""
        return sum(self._settled.values())

    @property
    def bytes_up(self) -> int:
        """Payload bytes that it published."""
        return self._earlier[0] + self.device.bytes_up

    @property
    def bytes_down(self) -> int:
        """Payload bytes that it received."""
        return self._earlier[1] + self.device.bytes_down

    def _watch(self, delivery: Delivery) -> None:
        if delivery.topic == self._topic:
            with suppress(WireError):
                receipt, _ = messages.decode(Receipt, delivery.payload)
                self._settled[receipt.outbox] = max(receipt.hi, self._settled.get(receipt.outbox, 0))
        else:
            self._around.watch(delivery)

    def _tell(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "training":
                self.trainings += 1
            case "trained":
                self.updates += 1
        self._around.tell(event)

    def _tell_of(self, event: str) -> None:
        self._around.tell({"event": event, "device": self.name, "time": time.time()})

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._around.origin


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a device that may run and wait until it has ended. An error of its own is raised elsewhere."""
    task.cancel()
    await asyncio.wait({task})


def paced(train: Trainer, seconds: float) -> Callable[[Parameters, TrainingPlan], Any]:
    """The trainer, on a device so slow that a training takes at least so long."""

    async def train_slowly(parameters: Parameters, plan: TrainingPlan) -> Fit:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        fit = await asyncio.to_thread(train, parameters, plan)
        await asyncio.sleep(until - loop.time())
        return fit

    return train_slowly
