"""A live fleet: many devices in one process, each with its own connection, client id, outbox and Last Will."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from broker.connection import Connector, Delivery
from iot_client.device import Device
from sensor_fleet.links import Sever, sever
from sensor_fleet.participant import Member, Participant, Presence, Surroundings, paced
from sensor_fleet.world import World
from wire import messages
from wire.errors import WireError
from wire.messages import Announcement
from wire.topics import Topics

__all__ = ["CONNECTS_PER_SECOND", "Fleet", "Member", "paced"]

CONNECTS_PER_SECOND = 50
"""How many devices connect in a second: a broker in a small process stumbles over a thousand at once."""


class Fleet:
    """Devices that take part together. Their training is real; a slow device waits until its time is over.

    To be made in the loop that it runs in: the times of its world count from here.
    """

    def __init__(
        self,
        connector: Connector,
        members: Sequence[Member],
        *,
        federation: str,
        root: str,
        world: World,
        outboxes: Path | None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        sever: Sever = sever,
    ) -> None:
        self._topics = Topics(federation, root)
        self._announced = b""
        around = Surroundings(
            connector,
            self._topics,
            world.population([member.name for member in members]),
            sever,
            asyncio.get_running_loop().time(),
            outboxes,
            on_event or (lambda _: None),
            self._watch,
        )
        self.participants = {member.name: Participant(member, around) for member in members}

    async def serve(self) -> None:
        """Take part until `stop()`. What ends one device ends the fleet, visibly."""
        async with asyncio.TaskGroup() as tasks:
            for number, participant in enumerate(self.participants.values()):
                delay = number / CONNECTS_PER_SECOND * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
                tasks.create_task(participant.live(delay), name=participant.name)

    def stop(self) -> None:
        """End `serve` cleanly."""
        for participant in self.participants.values():
            participant.stop()

    def kill(self, name: str | None = None) -> str | None:
        """Kill a device, or a random one of those that run. Its name; None if there is none to kill."""
        running = [name for name, one in self.participants.items() if one.state is Presence.ONLINE]
        name = name or (random.choice(running) if running else None)  # noqa: S311 - which one does not matter
        return name if name is not None and self.participants[name].kill() else None

    def bring_back(self, name: str | None = None) -> str | None:
        """Bring a killed device back on its outbox, or the first that is killed. Its name; None where there is none."""
        name = name or next(iter(self.killed), None)
        return name if name is not None and self.participants[name].bring_back() else None

    # ------------------------------------------------------------------- figures

    @property
    def devices(self) -> list[Device]:
        """The devices as they are now."""
        return [participant.device for participant in self.participants.values()]

    @property
    def killed(self) -> list[str]:
        """The names of those who are dead now."""
        return [name for name, one in self.participants.items() if one.presence is Presence.KILLED]

    @property
    def states(self) -> Counter[Presence]:
        """How many devices are where."""
        return Counter(participant.state for participant in self.participants.values())

    @property
    def announced(self) -> Announcement | None:
        """What was announced last, as far as devices have heard."""
        with suppress(WireError):
            return messages.decode_announcement(self._announced) if self._announced else None
        return None

    @property
    def trainings(self) -> int:
        """How many times devices began to train: each time one had got the newest model."""
        return sum(participant.trainings for participant in self.participants.values())

    @property
    def updates(self) -> int:
        """How many updates devices made."""
        return sum(participant.updates for participant in self.participants.values())

    @property
    def holding(self) -> int:
        """How many updates wait in outboxes for their receipt."""
        return sum(participant.holding for participant in self.participants.values())

    @property
    def receipted(self) -> int:
        """How many updates the receipts that reached devices have settled."""
        return sum(participant.receipted for participant in self.participants.values())

    @property
    def bytes_up(self) -> int:
        """Payload bytes that all devices published."""
        return sum(participant.bytes_up for participant in self.participants.values())

    @property
    def bytes_down(self) -> int:
        """Payload bytes that all devices received."""
        return sum(participant.bytes_down for participant in self.participants.values())

    def _watch(self, delivery: Delivery) -> None:
        if delivery.topic == self._topics.announcement():
            self._announced = delivery.payload
