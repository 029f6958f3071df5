"""A device that trains for long does not hear of each version that passes meanwhile."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Connection, Delivery
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from tests.federation.live import Log, aggregator, approach, device, serving

pytestmark = pytest.mark.virtual

PASSING = 12
"""Versions that pass while the slow device trains."""


class Heard:
    """Counts the announcements that come over a device's connections."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self.count = 0

    def __call__(self, options: Any) -> Any:
        heard, made = self, self._twin.connect(options)

        class Counting:
            async def __aenter__(self) -> Connection:
                connection = await made.__aenter__()
                inner: Callable[[], Any] = connection.messages

                async def messages_() -> Any:
                    async for delivery in inner():
                        assert isinstance(delivery, Delivery)
                        heard.count += delivery.topic.endswith("model/train")
                        yield delivery

                connection.messages = messages_  # type: ignore[method-assign]
                return connection

            async def __aexit__(self, *why: object) -> Any:
                return await made.__aexit__(*why)  # type: ignore[arg-type]

        return Counting()


async def test_it_turns_away_while_it_trains_and_goes_on_from_the_newest(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    heard = Heard(twin)
    trainings: list[tuple[int, int]] = []

    async def slow(parameters: Parameters, plan: TrainingPlan) -> Fit:
        version = log.of("training", device="slow")[-1]["version"]
        before, passed = heard.count, server.core.version
        await log.until(lambda: server.core.version >= passed + PASSING)
        await asyncio.sleep(0)  # what has come is read
        trainings.append((heard.count - before, server.core.version - version))
        return approach(parameters, plan)

    server = aggregator(twin, tmp_path / "store", log)
    one = Device(DeviceConfig(connector=heard, federation="f", name="slow", train=slow, outbox=None, on_event=log))
    async with serving(server, device(twin, "a", log), device(twin, "b", log), one):
        await log.until(lambda: len(trainings) == 4)
        await log.until(lambda: log.of("receipt", device="slow", seq=4))
    assert trainings[0][0] > PASSING / 2, "it could not know yet how many would come"
    assert max(heard for heard, _ in trainings[1:]) <= 2, trainings
    begun = [event["version"] for event in log.of("training", device="slow")]
    assert all(later - earlier >= PASSING for earlier, later in pairwise(begun)), begun
