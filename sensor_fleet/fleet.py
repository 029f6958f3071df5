"""A live fleet: many devices in one process, each with its own connection, client id, outbox and Last Will."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.connection import Connector
from iot_client.device import Device
from iot_client.fit import Fit, Parameters, Trainer, TrainingPlan
from sensor_fleet.world import World
from wire.moments import Moments

CONNECTS_PER_SECOND = 50
"""How many devices connect in a second: a broker in a small process stumbles over a thousand at once."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a fleet needs to know of one device."""

    name: str
    train: Trainer
    moments: Mapping[str, Moments]
    missing: int = 0
    engine: str = "numpy"


class Fleet:
    """Devices that take part together. Their training is real; a slow device waits until its time is over."""

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
    ) -> None:
        self.devices = [
            Device(
                connector,
                federation=federation,
                root=root,
                name=member.name,
                train=paced(member.train, world.seconds(member.name)),
                outbox=None if outboxes is None else outboxes / f"{member.name}.outbox",
                moments=member.moments,
                missing=member.missing,
                capabilities={"engine": member.engine},
                on_event=on_event,
            )
            for member in members
        ]

    async def serve(self) -> None:
        """Take part until `stop()`. What ends one device ends the fleet, visibly."""
        async with asyncio.TaskGroup() as tasks:
            for number, device in enumerate(self.devices):
                tasks.create_task(_after(number / CONNECTS_PER_SECOND, device), name=device.name)

    def stop(self) -> None:
        """End `serve` cleanly."""
        for device in self.devices:
            device.stop()

    @property
    def bytes_up(self) -> int:
        """Payload bytes that all devices published."""
        return sum(device.bytes_up for device in self.devices)

    @property
    def bytes_down(self) -> int:
        """Payload bytes that all devices received."""
        return sum(device.bytes_down for device in self.devices)


async def _after(seconds: float, device: Device) -> None:
    await asyncio.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
    await device.serve()


def paced(train: Trainer, seconds: float) -> Callable[[Parameters, TrainingPlan], Any]:
    """The trainer, on a device so slow that a training takes at least so long."""

    async def train_slowly(parameters: Parameters, plan: TrainingPlan) -> Fit:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        fit = await asyncio.to_thread(train, parameters, plan)
        await asyncio.sleep(until - loop.time())
        return fit

    return train_slowly
