"""The same ledger with processes, disks and a real broker: a killed aggregator loses nothing and doubles nothing."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.broker import connector
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import local_broker
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from tests import needs
from tests.federation.live import Log, serving
from tests.waiting import LAST_RESORT

PLACES = 4096
CHILD = """
import sys
import numpy as np
from dataclasses import replace
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from tests.aggregator.rig import EVERYTHING_COUNTS
from midge.wire.messages import Plan

def tell(event):
    if event["event"] == "release":
        print(event["version"], flush=True)

Aggregator(AggregatorConfig(
    connector=connector(Endpoint.parse(sys.argv[1])),
    federation="f",
    initial={"x": np.zeros(int(sys.argv[3]), np.float32)},
    strategy=replace(EVERYTHING_COUNTS, plan=Plan(codec="float32")),
    store=sys.argv[2],
    chunk=4096,
    on_event=tell,
)).run()
"""


@asynccontextmanager
async def aggregating(url: str, store: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An aggregator in a process of its own, killed at the end of the block."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", CHILD, url, str(store), str(PLACES)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()


async def releases(child: asyncio.subprocess.Process, number: int) -> None:
    """Wait until it has released so many versions."""
    assert child.stdout is not None
    async with asyncio.timeout(LAST_RESORT):
        for _ in range(number):
            assert await child.stdout.readline(), "the aggregator ended by itself"


class Ledger:
    """Trainings that each put a one into a place of their own, until there are enough."""

    def __init__(self) -> None:
        self.places = itertools.count()
        self.trained: list[int] = []
        self.enough = False

    async def train(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        await asyncio.sleep(0.01)
        if self.enough:
            await asyncio.Event().wait()  # until the device is stopped
        x = parameters["x"].copy()
        self.trained.append(next(self.places))
        x[self.trained[-1]] += 1
        return Fit({"x": x}, examples=1)


@pytest.mark.mosquitto
@needs.mosquitto
async def test_an_aggregator_that_is_killed_in_mid_run(tmp_path: Path) -> None:
    log, ledger = Log(), Ledger()
    async with local_broker("mosquitto", directory=tmp_path) as broker:
        url = str(broker.endpoint)
        devices = [
            Device(
                DeviceConfig(
                    connector=connector(broker.endpoint),
                    federation="f",
                    name=name,
                    train=ledger.train,
                    outbox=tmp_path / f"{name}.outbox",
                    on_event=log,
                )
            )
            for name in "ab"
        ]
        async with serving(*devices):
            for _ in range(3):
                async with aggregating(url, tmp_path / "store") as child:
                    await releases(child, 25)
            async with aggregating(url, tmp_path / "store") as child:
                await releases(child, 5)
                ledger.enough = True
                await log.until(lambda: len(log.of("receipt", verdict="accepted")) == len(ledger.trained))
    settled = [(event["device"], event["seq"]) for event in log.of("receipt", verdict="accepted")]
    assert len(settled) == len(set(settled)) == len(ledger.trained) > 50
    assert all(device.holding == 0 for device in devices)
    initial = {"x": np.zeros(PLACES, np.float32)}
    server = Aggregator(
        AggregatorConfig(connector=Twin().connect, federation="f", initial=initial, store=tmp_path / "store")
    )
    server.open()
    expected = np.zeros(PLACES, np.float32)
    expected[ledger.trained] = 1
    np.testing.assert_array_equal(server.model.x, expected)
    server.close()
