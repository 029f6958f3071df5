"""The targets of `benchmarks.hostile`, each in its own process: an aggregator, and honest devices.

    python -m benchmarks.hostile_fleet aggregator BUNDLE URL STORE PARAMETERS
    python -m benchmarks.hostile_fleet devices FOLDER URL COUNT PACE

The model starts at one everywhere, and each honest device pulls it towards one: its final distance from one is the
attackers' effect. Honest devices are real (session, connection, outbox in memory, verification), with a pause and a
little noise as training. Both end with their standard input.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.neighbour_server import serve
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced
from midge.aggregator.service import Aggregator
from midge.broker import connector
from midge.broker.provisioning.bundles import Bundle, read_bundle
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.lineage import State
from midge.wire.schema import Vector

NOISE, PULL = 0.02, 0.2
"""Of one training: the noise of each value, and the fraction of the distance to one that it covers."""
SOME, KINDS = 16, 50
"""One value in 16 is checked, and 50 noises are drawn in advance, since the fleet shares the broker's processor."""
EVERY = 0.05
"""Seconds between two counts."""


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **fields}), flush=True)


def at(folder: Path, url: str) -> Bundle:
    """A bundle for another address, without credentials for a plain broker."""
    bundle = read_bundle(folder, broker=url)
    return (
        bundle if bundle.endpoint.tls else replace(bundle, endpoint=replace(bundle.endpoint, user=None, password=None))
    )


def aggregate(bundle: Bundle, store: str, parameters: int) -> None:
    def tell(event: dict[str, Any]) -> None:
        if event["event"] in ("connected", "release", "quarantine"):
            say(event["event"], version=event.get("version"), device=event.get("device"))

    server = Aggregator(
        AggregatorConfig(
            connector=connector(bundle.endpoint),
            federation=bundle.topics.federation,
            initial={"w": np.ones(parameters, np.float32)},
            roles={"w": "trained"},
            strategy=balanced(),
            store=store,
            on_event=tell,
            release_key=bundle.release_private_key,
        )
    )
    asyncio.run(serve(server))


class Honest:
    """Devices that pause and then pull the model towards one."""

    def __init__(self, bundles: list[Bundle], pace: float) -> None:
        self.accepted = self.refused = 0
        self.off = 0.0
        """Root mean square distance from one of the newest version that was trained from."""
        self._rng = np.random.default_rng(1)
        self._noise: list[Vector] = []
        self._begun = 0
        self._pace = pace
        versions: dict[bytes, State] = {}
        self.devices = [Device(self._config(bundle, versions)) for bundle in bundles]

    def _config(self, bundle: Bundle, versions: dict[bytes, State]) -> DeviceConfig:
        return DeviceConfig(
            connector=connector(bundle.endpoint),
            federation=bundle.topics.federation,
            name=bundle.name,
            train=self._train,
            outbox=None,
            on_event=self._hear,
            release_key=bundle.release_key,
            versions=versions,
        )

    async def _train(self, parameters: Parameters, _plan: TrainingPlan) -> Fit:
        w = parameters["w"]
        self.off = float(np.sqrt(np.mean(np.square(w[::SOME] - 1, dtype=np.float64))))
        while len(self._noise) < KINDS:
            self._noise.append((PULL + self._rng.normal(0, NOISE, w.size)).astype(np.float32))
        after = (1 - PULL) * w + self._noise[self._rng.integers(KINDS)]
        await asyncio.sleep(
            self._pace * self._rng.uniform(0.6, 1.4)
        )  # out of step, so that counts do not alias with the windows
        return Fit({"w": after}, examples=32, steps=10)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "receipt":
            self.accepted += event["verdict"] == "accepted"
            if event["verdict"] != "accepted":
                self.refused += 1
                say("refused", verdict=event["verdict"], device=event.get("device"))

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        serving = [asyncio.create_task(device.serve()) for device in self.devices]
        telling = asyncio.create_task(self._tell())
        await commands.read()
        for device in self.devices:
            device.stop()
        telling.cancel()
        await asyncio.wait(serving, timeout=5)

    async def _tell(self) -> None:
        while True:
            say("count", accepted=self.accepted, refused=self.refused, off=self.off)
            await asyncio.sleep(EVERY)


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("aggregator", "devices"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("first", help="the store, or the number of devices")
    parser.add_argument("second", help="number of parameters, or seconds of a training")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)  # drops are counted, not logged
    if args.side == "aggregator":
        aggregate(at(args.folder, args.url), args.first, int(args.second))
    else:
        folders = sorted(path for path in args.folder.iterdir() if path.is_dir())[: int(args.first)]
        asyncio.run(Honest([at(each, args.url) for each in folders], float(args.second)).serve())


if __name__ == "__main__":
    main()
