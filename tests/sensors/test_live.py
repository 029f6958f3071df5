"""Simulated sensors at real devices: their own samples, their own condition, over the broker in memory."""

import asyncio
from pathlib import Path

import pytest

from midge.aggregator.core.presets import fedasync
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.board.conditions import enough_new
from midge.iot_client.config import DeviceConfig
from midge.iot_client.data.samples import Samples
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Recipe
from midge.iot_client.training.numpy_models import FROZEN, MLP
from midge.iot_client.training.sample_trainer import SampleTrainer
from midge.sensor_fleet.sensors import Stream, energy
from midge.wire.messages import Plan
from tests.federation.live import Log, aggregator, serving

pytestmark = pytest.mark.virtual

PACE = 100_000.0
"""Seconds of the sensors' clock in one of ours."""


def site(stream: Stream, number: int, twin: Twin, log: Log) -> tuple[Device, Samples]:
    loop = asyncio.get_running_loop()
    origin = loop.time()
    sensor = stream.sensor(number, lambda: (loop.time() - origin) * PACE, pace=PACE)
    samples = Samples(None, stream.features, stream.label, rows=stream.flow.window)
    device = Device(
        DeviceConfig(
            connector=twin.connect,
            federation="f",
            name=f"site-{number}",
            train=SampleTrainer(samples, recipe=Recipe(learning_rate=0.02, local_steps=20)),
            outbox=None,
            samples=samples,
            sources=[sensor],
            conditions=[enough_new(samples, stream.fresh)],
            moments=samples.moments,
            on_event=log,
            look_every=0.02,
        )
    )
    return device, samples


async def test_devices_learn_from_what_comes_and_wait_for_enough_of_it(tmp_path: Path) -> None:
    """Each trains once for what it had at the start, and once for each `fresh` rows behind it; never more often."""
    stream = energy(2, seed=0, window=200, fresh=12)
    twin, log = Twin(), Log()
    server = aggregator(
        twin,
        tmp_path / "store",
        log,
        initial=MLP(len(stream.features), (8,), 1, "regression").initial(),
        roles=dict.fromkeys(FROZEN, "frozen"),
        moments={"input": len(stream.features), "target": 1},
        statistics_devices=2,
        strategy=fedasync(
            0.5, release_floor=2, norm_limit=None, plan=Plan(codec="float32"), form="delta", bounded=False
        ),
    )
    devices, samples = zip(*(site(stream, number, twin, log) for number in range(2)), strict=True)
    async with serving(server, *devices):
        await log.until(lambda: len(log.of("trained")) >= 8)
    for number, own in enumerate(samples):
        trainings = len(log.of("trained", device=f"site-{number}"))
        assert 2 <= trainings <= 1 + (own.seen - 200) // stream.fresh + 1
        assert len(own) == 200
