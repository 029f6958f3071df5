"""`midge aggregate --shards 2` over a real broker: its processes are killed, and each update counts once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest

from midge.broker.local.local_broker import LocalBroker, local_broker
from tests import needs
from tests.harness.chaos import Play as Plan
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import Actor, aggregator, fleet
from tests.harness.shards import ShardChaos, shards_of
from tests.waiting import LAST_RESORT, eventually

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto, needs.mosquitto]

DEVICES = 6


@dataclass
class Play:
    """A root with two shards, devices, and their broker."""

    root: Actor
    devices: Actor
    broker: LocalBroker
    directory: Path

    async def finish(self) -> Audit:
        """Let all live until the devices are done, end the root in order, and compare the books."""
        async with asyncio.timeout(LAST_RESORT):
            assert await self.devices.ended() == 0, self.devices.tail()
            assert self.root.running, self.root.tail()
            self.root.send(signal.SIGTERM)
            assert await self.root.ended() in (0, 130), self.root.tail()
        return audit(self.directory / "model.safetensors", self.directory / "devices")


@asynccontextmanager
async def play(directory: Path, updates: int) -> AsyncIterator[Play]:
    """All of it except the processes, which the test starts."""
    books = Books(devices=DEVICES, updates=updates)
    (directory / "broker").mkdir()
    async with local_broker("mosquitto", directory=directory / "broker") as broker:
        url = str(broker.endpoint)
        root = aggregator(books, url, directory, options=("--shards", "2"))
        devices = fleet(books, url, directory, range(DEVICES), "--patience", "1")
        try:
            yield Play(root, devices, broker, directory)
        finally:
            for actor in (devices, root):
                await actor.kill()


async def test_nothing_is_lost_in_an_orderly_end(tmp_path: Path) -> None:
    """The shards end before the root, and give it what they have (`test_shards`: seen to fail without)."""
    async with play(tmp_path, 20) as scene:
        await scene.root.start()
        await scene.devices.start()
        found = await scene.finish()
    assert (found.lost, found.doubled) == (0, 0), found
    assert found.accepted == found.applied == DEVICES * 20


def _given(scene: Play, updates: int) -> bool:
    """Whether the shards have taken this number of updates, or no more will come."""
    taken = [event for event in scene.root.events("update") if event.get("side") == "below"]
    return len(taken) >= updates or not scene.devices.running


async def test_shards_root_broker_and_devices_are_killed_in_turn(tmp_path: Path) -> None:
    chance = Random(7)
    async with play(tmp_path, 40) as scene:
        for actor in (scene.root, scene.devices):
            await actor.start()
        kills = 0
        async with asyncio.timeout(LAST_RESORT):
            for _ in range(15):
                heard = sum(event.get("side") == "below" for event in scene.root.events("update"))
                await eventually("two more updates", partial(_given, scene, heard + 2))
                name = chance.choice(["shard", "shard", "root", "broker", "devices"])
                match name:
                    case "shard" if shards := shards_of(scene.root):
                        os.kill(chance.choice(shards), signal.SIGKILL)
                        kills += 1
                    case "broker":
                        scene.broker.kill()
                        await scene.broker.start()
                        kills += 1
                    case "root":
                        kills += await scene.root.kill()
                        await scene.root.start()
                    case "devices" if scene.devices.running:
                        kills += await scene.devices.kill()
                        await scene.devices.start()
        found = await scene.finish()
    assert (found.lost, found.doubled) == (0, 0), found
    assert found.accepted == found.applied == DEVICES * 40
    assert kills >= 10


async def test_two_shards_whose_processes_are_killed_and_stopped_lose_nothing(tmp_path: Path) -> None:
    """`make chaos SHARDS=2`, for as long as a test may take."""
    outcome = await ShardChaos(Plan(seconds=12.0, seed=3, devices=4, drain=LAST_RESORT), 2, tmp_path).run()
    assert not outcome.crashes, "\n".join(outcome.crashes)
    assert outcome.good, outcome
    assert outcome.kills and outcome.accepted >= outcome.updates > 0, outcome
