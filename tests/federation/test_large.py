"""A model and an update in many chunks through a real Mosquitto, over a link that breaks: resumed, not restarted."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.broker.local.local_broker import local_broker
from midge.commands.words import sentence
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.messages import Plan
from tests import needs
from tests.federation.live import Log, serving
from tests.harness.proxy import Proxy, Weather

SIZE = 500_000
"""Values: two megabytes each way, over a link that breaks after each half of one."""


@pytest.mark.mosquitto
@needs.mosquitto
async def test_what_came_before_a_break_is_not_sent_again(tmp_path: Path) -> None:
    log, done = Log(), asyncio.Event()
    model = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)

    async def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        if done.is_set():
            await asyncio.Event().wait()
        done.set()
        return Fit({"x": parameters["x"] + np.float32(0.5)}, examples=1)

    async with (
        local_broker("mosquitto", directory=tmp_path) as broker,
        Proxy(broker.endpoint.port, Random(0)).serving() as proxy,
    ):
        proxy.change(Weather(bandwidth=4e6, reset_after=500_000))
        device = Device(
            DeviceConfig(
                connector=connector(Endpoint.parse(f"mqtt://127.0.0.1:{proxy.port}")),
                federation="f",
                name="d",
                train=train,
                outbox=tmp_path / "outbox",
                on_event=log,
            )
        )
        server = Aggregator(
            AggregatorConfig(
                connector=connector(broker.endpoint),
                federation="f",
                initial={"x": model},
                roles={"x": "averaged"},  # said exactly, so that it hardly compresses
                strategy=fedbuff(1, release_floor=1, plan=Plan(codec="float32", feedback=False), bounded=False),
                store=tmp_path / "store",
                chunk=32 * 1024,
                on_event=log,
            )
        )
        async with serving(server, device):
            await log.until(lambda: log.of("training"))
            breaks = proxy.breaks
            await log.until(lambda: log.of("receipt"))
            np.testing.assert_allclose(server.model.x, model + 0.25, atol=1e-6)  # a mean with the model itself
    # Each way is longer than a connection lives: if anything started over with each, it would never end.
    assert breaks >= 2
    assert proxy.breaks - breaks >= 3
    for way, bytes_ in (("down", 1e6), ("up", 4 * SIZE)):
        told: list[dict[str, Any]] = [event for event in log.of("progress") if event["way"] == way]
        total = max(event["total"] for event in told)
        assert total > 0.8 * bytes_ and max(event["done"] for event in told) >= 0.5 * total
        assert sentence(told[-1]).startswith("d: ")
