"""Real aggregators and devices in one loop, over the broker in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.staleness import constant
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire import messages
from midge.wire.messages import DeviceState, Hello, Plan
from tests.harness.event_types import mistyped
from tests.waiting import LAST_RESORT

INITIAL = {"w": np.zeros((4, 2), np.float32), "b": np.zeros(2, np.float32)}
TARGETS = {"w": np.arange(8, dtype=np.float32).reshape(4, 2), "b": np.array([-1, 1], np.float32)}
STRATEGY = fedasync(
    0.5,
    constant(),
    norm_limit=None,
    release_floor=2,
    plan=Plan(codec="float32"),
    form="delta",
    bounded=False,
    pace=Pace(rest=0.0),  # its tests wait for versions, and it has soon learned all
)

Event = dict[str, Any]
LOOK_EVERY = 0.05


def approach(parameters: Parameters, plan: TrainingPlan) -> Fit:
    """Half of the way to the target: what a training of least squares does."""
    return Fit({name: (value + TARGETS[name]) / 2 for name, value in parameters.items()}, examples=10)


class Log:
    """All that was told, and a way to wait for more."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        assert not (wrong := mistyped(event)), f"{event['event']}: another type than in midge/events.py: {wrong}"
        self.events.append(event)
        self._news.set()

    def of(self, name: str, **fields: Any) -> list[Event]:
        return [each for each in self.events if each["event"] == name and fields.items() <= each.items()]

    async def until(self, done: Callable[[], object]) -> None:
        """Wait for what must come. Not all of it is told, so it is looked for between two words, too."""
        async with asyncio.timeout(LAST_RESORT):
            while not done():
                self._news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._news.wait()


class Service(Protocol):
    async def serve(self) -> None: ...

    def stop(self) -> None: ...


@asynccontextmanager
async def serving(*services: Service) -> AsyncIterator[None]:
    """They serve for as long as the block lasts; what ends one ends all."""
    async with asyncio.TaskGroup() as tasks:
        for service in services:
            tasks.create_task(service.serve())
        try:
            yield
        finally:
            for service in services:
                service.stop()


def aggregator(twin: Twin, store: Path, log: Log, **arguments: Any) -> Aggregator:
    arguments = {"strategy": STRATEGY, "initial": INITIAL, **arguments}
    return Aggregator(AggregatorConfig(connector=twin.connect, federation="f", store=store, on_event=log, **arguments))


def overheard(twin: Twin) -> list[RoutedMessage]:
    """What the broker hands out from here on, in order."""
    seen: list[RoutedMessage] = []

    def copies(_client: str, message: RoutedMessage) -> int:
        seen.append(message)
        return 1

    twin.copies = copies
    return seen


def device(
    twin: Twin, name: str, log: Log, outbox: Path | None = None, train: Any = approach, **arguments: Any
) -> Device:
    return Device(
        DeviceConfig(
            connector=twin.connect, federation="f", name=name, train=train, outbox=outbox, on_event=log, **arguments
        )
    )


def distance(parameters: Mapping[str, npt.NDArray[Any]]) -> float:
    return max(float(np.abs(parameters[name] - TARGETS[name]).max()) for name in TARGETS)


def clients(twin: Twin, of: str) -> list[str]:
    """The client ids of those connected whose id has this in it."""
    return [name for name in twin._connections if of in name]


def status(twin: Twin, name: str) -> DeviceState:
    """What the broker retains of a device."""
    (message,) = twin.router._retained_on(f"midge/1/f/status/{name}")
    return messages.decode(Hello, message.payload)[0].state
