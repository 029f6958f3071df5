"""All devices of a live fleet: each with its own connection, client id, outbox and Last Will, in one process."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from midge.broker.mqtt.connection import Delivery
from midge.iot_client.runtime import first_error
from midge.sensor_fleet.live.device import FleetContext, LiveDevice, Presence
from midge.sensor_fleet.simulation.server import Taken
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Verdict

_AT_A_TIME: Final = 50
"""Devices that begin before the loop goes on with other things."""


class LiveFleet:
    """Runs the devices of a population. To be made in the loop that it runs in.

    Args:
        context: what they have in common.
        names: of the devices, in the order of their numbers.
        on_event: called with each event of a device.
    """

    def __init__(
        self, context: FleetContext, names: Sequence[str], on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.context = context
        self.devices: Mapping[str, LiveDevice] = {
            name: LiveDevice(context, number, name, self._hear, self._watch) for number, name in enumerate(names)
        }
        self._on_event = on_event
        self._places = {name: place for place, name in enumerate(self.devices)}
        self._announcement_topic = context.topics.announcement()
        self._announced = b""
        self.taken = Taken()
        """The accepted updates of which a receipt was heard."""
        self.refused: Counter[str] = Counter()
        """The others of which one was heard, by verdict."""
        self.repeated = 0
        """Accepted ones whose first receipt was lost: a repeat says neither weight nor staleness."""
        self.events = 0
        """Events of devices."""
        self._met = 0
        self._expected = [device for device in self.devices.values() if device.there_at_first]
        self._gathered, self._over = asyncio.Event(), asyncio.Event()
        self.begun = asyncio.Event()
        """Whether the profile counts."""

    async def serve(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take part until `stop()`. What ends one device ends all, visibly.

        With `ready` all who are there at first gather before, as many at a time as the machine can greet, wait for it,
        and begin together.
        """
        try:
            async with asyncio.TaskGroup() as lives:
                if ready is not None:
                    for device in self._expected:
                        lives.create_task(device.live(), name=device.name)
                    if self._expected:
                        await self._gathered.wait()
                    if not self._over.is_set():
                        await ready()
                if not self._over.is_set():
                    await self._begin(lives)
                await self._over.wait()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._over.set()
            self.context.trainers.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End `serve` cleanly."""
        self._over.set()
        self._gathered.set()
        for device in self.devices.values():
            if not device.gone:
                device.stop()

    async def _begin(self, lives: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        self.context.origin = loop.time()
        self.begun.set()

        def start(device: LiveDevice) -> None:
            if not device.gone and not self._over.is_set():
                lives.create_task(device.live(), name=device.name)

        for number, device in enumerate(self.devices.values()):
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)  # let the loop do what the last ones have asked for
            device.begin()
            if device.joins:
                loop.call_at(self.context.origin + device.joins, start, device)
            elif not device.started:
                start(device)

    def kill(self, name: str | None = None) -> str | None:
        """Kill a device, or a random one of those that are online. Its name; None if there is none to kill."""
        online = [name for name, device in self.devices.items() if device.presence is Presence.ONLINE]
        name = name or (random.choice(online) if online else None)  # noqa: S311 - which one does not matter
        return name if name is not None and self.devices[name].kill() else None

    def bring_back(self, name: str | None = None) -> str | None:
        """Bring a killed device back on its outbox, or the first that is killed. Its name; None if there is none."""
        name = name or next(iter(self.killed), None)
        return name if name is not None and self.devices[name].bring_back() else None

    def _watch(self, delivery: Delivery) -> None:
        if delivery.topic == self._announcement_topic:
            self._announced = delivery.payload

    def _hear(self, device: LiveDevice, event: dict[str, Any]) -> None:
        self.events += 1
        match event:
            case {"event": "met"}:
                self._met += 1
                if self._met >= len(self._expected):
                    self._gathered.set()
                return
            case {"event": "receipt", "verdict": verdict, "repeat": repeat}:
                if verdict != Verdict.ACCEPTED:
                    self.refused[verdict] += 1
                elif repeat:
                    self.repeated += 1
                else:
                    place, weight = self._places[device.name], event["weight"] or 0.0
                    self.taken.add(self.context.profile_time(), place, event["staleness"] or 0, weight)
        if self._on_event is not None:
            self._on_event(event)

    # ------------------------------------------------------------------------ figures

    @property
    def announced(self) -> Announcement | None:
        """What was announced last, as far as devices have heard."""
        with suppress(WireError):
            return messages.decode_announcement(self._announced) if self._announced else None
        return None

    @property
    def gathered(self) -> tuple[int, int]:
        """How many have been connected, and how many are to be before the fleet begins."""
        return self._met, len(self._expected)

    @property
    def killed(self) -> list[str]:
        """The names of those who are dead now."""
        return [name for name, device in self.devices.items() if device.presence is Presence.KILLED]

    @property
    def states(self) -> Counter[Presence]:
        """How many devices are where."""
        return Counter(device.presence for device in self.devices.values())

    @property
    def connected(self) -> int:
        return sum(device.link.established for device in self.devices.values())

    @property
    def trainings(self) -> int:
        """How many times devices began to train: each time one had got the newest model."""
        return sum(device.trainings for device in self.devices.values())

    @property
    def updates(self) -> int:
        """How many updates devices made."""
        return sum(device.updates for device in self.devices.values())

    @property
    def holding(self) -> int:
        """How many updates wait in outboxes for their receipt."""
        return sum(device.holding for device in self.devices.values())

    @property
    def receipted(self) -> int:
        """How many updates the receipts that reached devices have settled."""
        return sum(device.receipted for device in self.devices.values())

    @property
    def payloads(self) -> tuple[int, int]:
        """Payload bytes that all devices have published and received."""
        up, down = zip(*(device.payloads for device in self.devices.values()), strict=True)
        return sum(up), sum(down)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes of all links, with what MQTT adds if that travels."""
        up, down = zip(*(device.link.moved for device in self.devices.values()), strict=True)
        return sum(up), sum(down)
