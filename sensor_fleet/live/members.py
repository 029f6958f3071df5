"""All devices of a live fleet: they gather first, as many at a time as the machine can greet, and begin together."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from broker.endpoint import Endpoint
from iot_client.device import first_error
from sensor_fleet.data import FleetData
from sensor_fleet.live.member import Air, Member
from sensor_fleet.models import FleetModel
from sensor_fleet.profiles.population import Population
from sensor_fleet.simulation.server import Taken
from wire.messages import Verdict
from wire.topics import Topics

_AT_A_TIME: Final = 50
"""Devices that begin before the loop goes on with other things."""


class Members:
    """Runs all devices of a population. To be made in the loop that it runs in."""

    def __init__(
        self,
        endpoint: Endpoint,
        topics: Topics,
        population: Population,
        model: FleetModel,
        data: FleetData,
        *,
        speed_up: float,
        seed: int,
    ) -> None:
        world = population.scaled(speed_up)
        self.air = Air(endpoint, topics, world, model, data, speed_up, seed, self._hear)
        self.members: Mapping[str, Member] = {
            name: Member(self.air, number, name) for number, name in enumerate(data.devices)
        }
        self._places = {name: place for place, name in enumerate(self.members)}
        self.taken = Taken()
        """The accepted updates of which a receipt was heard."""
        self.refused: Counter[str] = Counter()
        """The others of which one was heard, by verdict."""
        self.repeated = 0
        """Accepted ones whose first receipt was lost: a repeat says neither weight nor staleness."""
        self.events = 0
        """Events of devices."""
        self._met = 0
        self._expected = [member for member in self.members.values() if member.there_at_first]
        self._gathered, self._over = asyncio.Event(), asyncio.Event()
        self.begun = asyncio.Event()
        """Whether the profile counts."""

    async def serve(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Gather, wait for `ready`, begin, and take part until `stop()`. What ends one device ends all, visibly."""
        try:
            async with asyncio.TaskGroup() as lives:
                for member in self._expected:
                    lives.create_task(member.live(), name=member.name)
                if self._expected:
                    await self._gathered.wait()
                if not self._over.is_set():
                    await ready()
                    await self._begin(lives)
                await self._over.wait()
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    def stop(self) -> None:
        """End `serve` cleanly."""
        self._over.set()
        self._gathered.set()
        for member in self.members.values():
            if not member.gone:
                member.stop()

    async def _begin(self, lives: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        self.air.origin = loop.time()
        self.begun.set()

        def start(member: Member) -> None:
            if not member.gone:
                lives.create_task(member.live(), name=member.name)

        for number, member in enumerate(self.members.values()):
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)  # let the loop do what the last ones have asked for
            member.begin()
            if member.joins:
                loop.call_at(self.air.origin + member.joins, start, member)
            elif not member.there_at_first:
                start(member)

    def _hear(self, member: Member, event: dict[str, Any]) -> None:
        self.events += 1
        match event:
            case {"event": "met"}:
                self._met += 1
                if self._met >= len(self._expected):
                    self._gathered.set()
            case {"event": "receipt", "verdict": verdict, "repeat": repeat}:
                if verdict != Verdict.ACCEPTED:
                    self.refused[verdict] += 1
                elif repeat:
                    self.repeated += 1
                else:
                    self.taken.add(
                        self.air.profile_time(),
                        self._places[member.name],
                        event["staleness"] or 0,
                        event["weight"] or 0.0,
                    )

    # ------------------------------------------------------------------------ figures

    @property
    def gathered(self) -> tuple[int, int]:
        """How many have been connected, and how many are to be before the fleet begins."""
        return self._met, len(self._expected)

    @property
    def connected(self) -> int:
        return sum(member.connected for member in self.members.values())

    @property
    def trainings(self) -> int:
        return sum(member.trainings for member in self.members.values())

    @property
    def payloads(self) -> tuple[int, int]:
        """Payload bytes that all devices have sent and received."""
        devices = [member.device for member in self.members.values()]
        return sum(device.bytes_up for device in devices), sum(device.bytes_down for device in devices)

    @property
    def moved(self) -> tuple[int, int]:
        """The same with all that MQTT adds."""
        up, down = zip(*(member.moved for member in self.members.values()), strict=True)
        return sum(up), sum(down)
