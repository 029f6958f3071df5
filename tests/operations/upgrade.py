"""A rolling upgrade from earlier code to this one, with real processes, stores and outboxes, over a real broker.

    make upgrade BASE=COMMIT

It is no part of `make test`, because it needs history: BASE is a tag or a commit whose tree runs as the
earlier version (MIDGE_UPGRADE_BASE). One aggregator and two devices are upgraded one by one, in the order that the test
names; after each step the fleet must release further versions with accepted updates of both devices. Nothing may be
dropped or refused as malformed. At the end the store has each update of each outbox once.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from midge.broker.local.local_broker import local_broker
from tests.docs.scripts import ROOT

BASE = os.environ.get("MIDGE_UPGRADE_BASE", "")
SERVER = """
import midge, numpy as np
app = midge.Aggregator("{url}", federation="up", initial={{"w": np.zeros(3, np.float32)}}, store="store")
"""
PUMP = """
import time
import midge, numpy as np
rng = np.random.default_rng()
x = rng.normal(size=(200, 3)).astype(np.float32)
y = x @ np.float32([2.0, -1.0, 0.5]) + rng.normal(scale=0.1, size=200).astype(np.float32)
def train(parameters, plan):
    time.sleep(0.2)
    w = parameters["w"].copy()
    for _ in range(3):
        w -= 0.05 * x.T @ (x @ w - y) / len(x)
    return midge.Fit({{"w": w}}, examples=len(x))
app = midge.Device("{url}", federation="up", name="pump", train=train, outbox="pump.outbox")
"""
MORE = 3
"""Further versions and updates of each device after each step."""
STALE = {"accepted", "stale", "busy", "paused", "unknown_base"}
"""Verdicts that an update may get while processes come and go."""


class Process:
    """One process of either version, and its events."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.events.append(json.loads(line))

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(120):
            while not done(self.events):
                assert self.process.returncode is None, "it has ended"
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await self.process.wait() == 0
        await self._reading


@asynccontextmanager
async def running(tree: Path, directory: Path, *arguments: str) -> AsyncIterator[Process]:
    """`midge ARGUMENTS` of a tree."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "midge", *arguments, "--json"),
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{tree}:{directory}"},
        stdout=asyncio.subprocess.PIPE,
    )
    mine = Process(process)
    try:
        yield mine
        await mine.end()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier version's tree."""
    directory = tmp_path_factory.mktemp("earlier")
    archive = subprocess.run(["git", "archive", BASE], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return directory


def _accepted(events: list[dict[str, Any]], device: str) -> int:
    return sum(
        each["event"] == "update" and each["device"] == device and each["verdict"] == "accepted" for each in events
    )


ORDERS = {
    "aggregator first": ("oo", "no", "nd", "nn"),
    "devices first": ("oo", "od", "on", "nn"),
}
"""Versions of the aggregator and of the devices in each step: old, new, or of the devices one of each (d)."""


@pytest.mark.parametrize("order", ORDERS)
async def test_a_fleet_learns_in_every_step_of_a_rolling_upgrade(earlier: Path, tmp_path: Path, order: str) -> None:
    async with local_broker("mosquitto", directory=tmp_path) as broker:
        url = str(broker.endpoint)
        (tmp_path / "server.py").write_text(SERVER.format(url=url))
        (tmp_path / "pump.py").write_text(PUMP.format(url=url))
        total: list[dict[str, Any]] = []
        for step in ORDERS[order]:
            server = earlier if step[0] == "o" else ROOT
            trees = {"o": (earlier, earlier), "n": (ROOT, ROOT), "d": (ROOT, earlier)}[step[1]]
            async with AsyncExitStack() as stack:
                aggregator = await stack.enter_async_context(running(server, tmp_path, "aggregate", "server:app"))
                await aggregator.until(lambda events: any(each["event"] == "connected" for each in events))
                devices = [
                    await stack.enter_async_context(
                        running(tree, tmp_path, "device", "pump:app", "--name", f"pump-{number}")
                    )
                    for number, tree in enumerate(trees)
                ]
                await aggregator.until(
                    lambda events: (
                        sum(each["event"] == "release" for each in events) >= MORE
                        and all(_accepted(events, f"pump-{number}") >= MORE for number in range(2))
                    )
                )
            for told in (aggregator, *devices):
                wrong = [
                    each for each in told.events if each["event"] in ("dropped", "trouble", "untrusted", "put_back")
                ]
                assert wrong == [], step
            updates = [each for each in aggregator.events if each["event"] == "update"]
            assert {each["verdict"] for each in updates} <= STALE, step
            total += updates
        keys = [(each["device"], each["seq"]) for each in total]
        assert len(keys) == len(set(keys)), "an update counted twice"
        for number in range(2):
            numbers = sorted(each["seq"] for each in total if each["device"] == f"pump-{number}")
            assert numbers == list(range(1, len(numbers) + 1)), "an update is missing"
