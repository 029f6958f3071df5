"""An aggregator behind a slow link, on a real Mosquitto: its status is true although its releases take minutes."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedasync
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.federation_view import alarms_of, describe_federation
from midge.wire.topics import Topics
from tests import needs
from tests.federation.live import Log
from tests.harness.proxy import Proxy, Weather

RATE = 50_000
"""Bytes a second: the snapshot takes longer than the rest of the test by far."""


@pytest.mark.mosquitto
@needs.mosquitto
async def test_a_status_does_not_wait_for_frames(tmp_path: Path) -> None:
    """Seen to fail: no aggregator had announced itself, and after its end it was ready for ever."""
    log, model = Log(), np.random.default_rng(0).normal(size=2_000_000).astype(np.float32)
    async with (
        local_broker("mosquitto", directory=tmp_path) as broker,
        Proxy(broker.endpoint.port, Random(0)).serving() as proxy,
    ):
        proxy.change(Weather(bandwidth=RATE, slice=4096))
        server = Aggregator(
            AggregatorConfig(
                connector=connector(Endpoint.parse(f"mqtt://127.0.0.1:{proxy.port}")),
                federation="f",
                initial={"x": model},
                strategy=fedasync(),
                store=tmp_path / "store",
                on_event=log,
            )
        )

        async def look() -> dict[str, Any]:
            return await describe_federation(connector(broker.endpoint), Topics("f"))

        serve = asyncio.create_task(server.serve())
        while not (found := await look())["answered"]:
            pass
        assert found["aggregator"]["state"] == "ready" and found["model"] is None, found
        server.stop()
        await serve
        assert server.outgoing, "the frames had not passed"
        found = await look()
    assert found["aggregator"]["state"] == "stopped", found
    assert alarms_of(found) == ["The aggregator is stopped."]
