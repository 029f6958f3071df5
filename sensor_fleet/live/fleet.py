"""The devices of a live fleet, in one process: each with its own connection, client id, outbox and Last Will."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from midge.broker.mqtt.connection import Delivery
from midge.iot_client.runtime import first_error
from midge.sensor_fleet.live.device import FleetContext, LiveDevice, Presence
from midge.sensor_fleet.simulation.result import AcceptedUpdates
from midge.wire import messages
from midge.wire.errors import WireError
from midge.wire.messages import Announcement, Verdict

_AT_A_TIME: Final = 50
"""Devices that begin before the loop gets to other tasks."""


class LiveFleet:
    """Runs the devices of a population. To be made in the event loop that it runs in.

    Args:
        context: what they share.
        names: of the devices, by number.
        on_event: called with each event of a device.
    """

    def __init__(
        self, context: FleetContext, names: Sequence[str], on_event: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.context = context
        self.devices: Mapping[str, LiveDevice] = {
            name: LiveDevice(context, number, name, self._handle_event, self._watch_delivery)
            for number, name in enumerate(names)
        }
        self._on_event = on_event
        self._places = {name: place for place, name in enumerate(self.devices)}
        self._announcement_topic = context.topics.announcement()
        self._announced = b""
        self.accepted = AcceptedUpdates()
        """The accepted updates, as reported by receipts."""
        self.refused: Counter[str] = Counter()
        """The number of other updates by verdict, as reported by receipts."""
        self.repeated = 0
        """Accepted updates whose first receipt was lost: a repeated receipt has neither weight nor staleness."""
        self.events = 0
        """Number of device events."""
        self._met = 0
        self._expected = [device for device in self.devices.values() if device.there_at_first]
        self._gathered, self._over = asyncio.Event(), asyncio.Event()
        self.begun = asyncio.Event()
        """Set when the profile's times begin."""

    async def serve(self, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take part until `stop()`. An exception of one device ends the fleet.

        With `ready`, the devices that are present at the beginning connect first, as many at a time as the gate lets
        pass; then they wait for `ready` and begin together.
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
                await asyncio.sleep(0)  # let the loop handle what the last ones have scheduled
            device.begin()
            if device.joins:
                loop.call_at(self.context.origin + device.joins, start, device)
            elif not device.started:
                start(device)

    def kill(self, name: str | None = None) -> str | None:
        """Kill a device, by default a random one that is online. Return its name; None if there is none to kill."""
        online = [name for name, device in self.devices.items() if device.presence is Presence.ONLINE]
        name = name or (random.choice(online) if online else None)  # noqa: S311 - which one does not matter
        return name if name is not None and self.devices[name].kill() else None

    def bring_back(self, name: str | None = None) -> str | None:
        """Restart a killed device, by default the first one. Return its name; None if there is none."""
        name = name or next(iter(self.killed), None)
        return name if name is not None and self.devices[name].bring_back() else None

    def _watch_delivery(self, delivery: Delivery) -> None:
        if delivery.topic == self._announcement_topic:
            self._announced = delivery.payload

    def _handle_event(self, device: LiveDevice, event: dict[str, Any]) -> None:
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
                    self.accepted.add(self.context.profile_time(), place, event["staleness"] or 0, weight)
        if self._on_event is not None:
            self._on_event(event)

    # ------------------------------------------------------------------------ figures

    @property
    def announced(self) -> Announcement | None:
        """The last announcement that a device has received."""
        with suppress(WireError):
            return messages.decode_announcement(self._announced) if self._announced else None
        return None

    @property
    def gathered(self) -> tuple[int, int]:
        """Number of devices that have been connected, and that are expected before the fleet begins."""
        return self._met, len(self._expected)

    @property
    def killed(self) -> list[str]:
        """Names of the devices that are killed now."""
        return [name for name, device in self.devices.items() if device.presence is Presence.KILLED]

    @property
    def states(self) -> Counter[Presence]:
        """Number of devices by presence."""
        return Counter(device.presence for device in self.devices.values())

    @property
    def connected(self) -> int:
        return sum(device.link.established for device in self.devices.values())

    @property
    def trainings(self) -> int:
        """Number of trainings begun."""
        return sum(device.trainings for device in self.devices.values())

    @property
    def updates(self) -> int:
        """Number of updates made."""
        return sum(device.updates for device in self.devices.values())

    @property
    def holding(self) -> int:
        """Number of updates in outboxes that wait for a receipt."""
        return sum(device.holding for device in self.devices.values())

    @property
    def receipted(self) -> int:
        """Number of updates settled by the receipts that devices received."""
        return sum(device.receipted for device in self.devices.values())

    @property
    def payloads(self) -> tuple[int, int]:
        """Payload bytes that all devices have published and received."""
        up, down = zip(*(device.payloads for device in self.devices.values()), strict=True)
        return sum(up), sum(down)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes over all links, MQTT overhead included if the links are framed."""
        up, down = zip(*(device.link.moved for device in self.devices.values()), strict=True)
        return sum(up), sum(down)
