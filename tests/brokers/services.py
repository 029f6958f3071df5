"""A federation over the embedded broker with the limits of a hosted one: nobody may exceed any of them."""

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.service import Aggregator
from midge.broker import Connector, connector
from midge.broker.local.local_broker import EmbeddedProgram, local_broker
from midge.broker.mqtt.services import SERVICES
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.messages import Plan
from tests.federation.live import LOOK_EVERY, Log, serving

__all__ = ["SERVICES", "federate", "play"]

FEDERATION = "cold-store-vibration-" + "x" * 43
"""As long as a name may be: with a device's it makes the longest client ids."""
PATIENCE = 500.0
"""Seconds for a federation; on a quiet machine it needs a tenth of that."""
BROKEN = "broke the protocol: "
"""In what the broker says of a client that it disconnects."""


async def federate(name: str, *, quick: bool) -> dict[str, Any]:
    """The row of a service: 5 MB of parameters and 20 devices, or a tenth of each."""
    devices, values = (4, 125_000) if quick else (20, 1_250_000)
    with tempfile.TemporaryDirectory(prefix=f"midge-{name}-") as directory:
        row = await play(name, Path(directory), devices=devices, values=values)
    row["good"] = not row["violations"] and row["receipts"] == devices and row["fetched"] == devices
    return {"broker": f"embedded --limits {name}", "service": name, **row}


async def play(
    name: str, directory: Path, *, devices: int, values: int, told: bool = True, codec: str = "int8:256"
) -> dict[str, Any]:
    """Have each device train once and fetch the version that results from all of them.

    Args:
        name: of the service.
        directory: for store and outboxes.
        devices: their number.
        values: parameters of the model.
        told: whether the clients know which service it is: otherwise they have CONNACK only.
        codec: of the updates.
    """
    log = Log()
    model = np.random.default_rng(0).normal(size=values).astype(np.float32)
    names = [f"d{number:02d}".ljust(64, "y") for number in range(devices)]

    async with local_broker(EmbeddedProgram(options=("--limits", name)), directory=directory) as broker:
        connect: Connector = connector(replace(broker.endpoint, service=name if told else None))
        config = AggregatorConfig(
            connector=connect,
            federation=FEDERATION,
            initial={"x": model},
            roles={"x": "averaged"},
            strategy=fedbuff(devices, release_floor=2, plan=Plan(codec=codec), bounded=False),
            store=directory / "store",
            on_event=log,
        )
        began = asyncio.get_running_loop().time()
        fleet = [_device(connect, each, directory, log) for each in names]
        async with serving(Aggregator(config), *fleet):
            # What did not come in time is missing in the row.
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while not (_of(log, "receipt") >= set(names) and _of(log, "fetched") >= set(names)):  # noqa: ASYNC110
                        await asyncio.sleep(LOOK_EVERY)
        seconds = asyncio.get_running_loop().time() - began
    said = (directory / "broker.log").read_text().splitlines()
    return {
        "devices": devices,
        "model_mb": values * 4 / 1e6,
        "seconds": round(seconds, 1),
        "receipts": len(_of(log, "receipt")),
        "fetched": len(_of(log, "fetched")),
        "violations": sorted({line.partition(BROKEN)[2] for line in said if BROKEN in line}),
        "disconnects": sum(BROKEN in line for line in said),
    }


def _device(connect: Connector, name: str, directory: Path, log: Log) -> Device:
    trained: list[int] = []

    async def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
        if trained:  # the next version has come: that is what is to be seen
            log({"event": "fetched", "device": name})
            await asyncio.Event().wait()
        trained.append(1)
        return Fit({"x": parameters["x"] + np.float32(0.5)}, examples=1)

    return Device(
        DeviceConfig(
            connector=connect,
            federation=FEDERATION,
            name=name,
            train=train,
            outbox=directory / name[:3],
            on_event=log,
        )
    )


def _of(log: Log, name: str) -> set[str]:
    """The devices of which this was told."""
    return {each["device"] for each in log.of(name)}
