"""A live federation over Mosquitto: releases are promoted, tried and rolled back by the commands, also over a kill."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.broker import Connector, connector
from midge.broker.local.local_broker import local_broker
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire import signing
from tests import needs
from tests.federation.live import Log, serving

GOAL = 3.0
NORTH = {"d0", "d1", "d2"}
CHILD = """
import sys
from dataclasses import replace
import numpy as np
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.registry.policy import RegistryPolicy
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.wire.messages import Plan
from tests.aggregator.rig import EVERYTHING_COUNTS

Aggregator(AggregatorConfig(
    connector=connector(Endpoint.parse(sys.argv[1])),
    federation="f",
    initial={"x": np.zeros(600, np.float32)},
    strategy=replace(EVERYTHING_COUNTS, plan=Plan(codec="float32", evaluate=60.0)),
    store=sys.argv[2],
    release_key=sys.argv[3],
    evaluate=lambda parameters: {"error": abs(float(parameters["x"][0]) - 3.0)},
    registry=RegistryPolicy(devices=8, share=1.0),
)).run()
"""


@asynccontextmanager
async def aggregating(url: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """An aggregator in a process of its own, killed at the end of the block."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = (sys.executable, "-P", "-c", CHILD, url, str(folder / "store"), str(folder / "release.key"))
    child = await asyncio.create_subprocess_exec(*words, env=environment)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()


class Fleet:
    """One device that trains as it is asked, and nine that predict and measure."""

    def __init__(self, connect: Connector, folder: Path, key: bytes) -> None:
        self.log, self.asked, self.trained = Log(), asyncio.Queue[float](), 0
        given: dict[str, Any] = {"connector": connect, "federation": "f", "release_key": key, "on_event": self.log}
        given |= {"predict": lambda parameters, _: float(parameters["x"][0]), "evaluate": self.evaluate}
        resting = (lambda: "it only predicts",)
        names = ["trainer", *(f"d{number}" for number in range(9))]
        self.boards = [
            Device(
                DeviceConfig(
                    **given,
                    name=name,
                    train=self.train,
                    outbox=folder / f"{name}.outbox",
                    conditions=() if name == "trainer" else resting,
                    capabilities={"site": "north"} if name in NORTH else None,
                )
            )
            for name in names
        ]

    async def train(self, parameters: Parameters, plan: TrainingPlan) -> Fit:
        step = await self.asked.get()
        self.trained += 1
        return Fit({"x": parameters["x"] + np.float32(step)}, examples=10)

    @staticmethod
    def evaluate(parameters: Parameters) -> Scores:
        return Scores(10, {"loss": abs(float(parameters["x"][0]) - GOAL)})

    async def learn(self, step: float) -> None:
        """One training that counts, and its release: after a rollback, the first may be of the generation before."""
        accepted = len(self.log.of("receipt", verdict="accepted"))
        while len(self.log.of("receipt", verdict="accepted")) == accepted:
            settled = len(self.log.of("receipt"))
            self.asked.put_nowait(step)
            await self.log.until(lambda settled=settled: len(self.log.of("receipt")) > settled)  # type: ignore[misc]
        version = self.log.of("trained")[-1]["version"]
        await self.log.until(lambda: _announced(self.boards[0])[1] > version)

    async def use(self, version: int) -> None:
        """Wait until each device predicts with a version."""
        await self.log.until(lambda: len(self.using(version)) == len(self.boards))

    def using(self, version: int) -> set[str]:
        """The devices that predict with a version."""
        models = {board.name: board._parts.predicting.model for board in self.boards}
        return {name for name, model in models.items() if model is not None and model.version == version}


async def midge(*words: str) -> dict[str, Any]:
    """Run a command as an operator does; its last line."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "midge", "model", *words, "--json"),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, _ = await child.communicate()
    assert child.returncode == 0, out
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
@needs.mosquitto
@pytest.mark.mosquitto
@pytest.mark.alone
async def test_promote_try_kill_and_roll_back_a_live_federation(tmp_path: Path) -> None:
    key, store = signing.new_key(), str(tmp_path / "store")
    (tmp_path / "release.key").write_bytes(key.pem())
    async with local_broker("mosquitto", directory=tmp_path) as broker:
        url = str(broker.endpoint)
        fleet = Fleet(connector(broker.endpoint), tmp_path, key.public_pem())
        async with serving(*fleet.boards):
            async with aggregating(url, tmp_path):
                await fleet.learn(1.0)
                assert (await midge("register", store, "--candidate"))["aliases"] == {"champion": 2}
                await fleet.use(2)
                await fleet.learn(1.0)
                assert (await midge("register", store, "--candidate"))["aliases"] == {"champion": 2, "candidate": 3}
            # Killed as soon as the candidate was named: names and pairs that were counted are in the journal.
            async with aggregating(url, tmp_path):
                await fleet.use(3)  # all of them try it
                await fleet.log.until(lambda: all(_champion(board) == 3 for board in fleet.boards))
                await fleet.learn(1000.0)
                said = await midge("rollback", store, "--why", "it diverged")
                assert (said["generation"], said["version"], said["aliases"]) == (1, 5, {"champion": 3})
                await fleet.learn(0.5)
                await fleet.log.until(lambda: all(_announced(board)[0] == 1 for board in fleet.boards))
                await fleet.use(3)
                assert all(board.predict(None) == 2.0 for board in fleet.boards)
                registered = await midge("register", store)
                assert registered["version"] == 6
                remote = (url, "6", "--federation", "f", "--release-key", str(tmp_path / "release.key"))
                assert (await midge("promote", *remote))["aliases"] == {"champion": 6}
                await fleet.use(6)
                await fleet.learn(0.5)
                assert (await midge("register", store, "--candidate", "--where", "site=north"))["meant"]["devices"] == 3
                await fleet.log.until(lambda: fleet.using(7) == NORTH)
                assert fleet.using(6) == {board.name for board in fleet.boards} - NORTH
                assert (await midge("rollback", store, "--candidate"))["aliases"] == {"champion": 6}
                await fleet.use(6)
            await fleet.log.until(lambda: not fleet.boards[0].holding)
    settled = [(event["outbox"], event["seq"]) for event in fleet.log.of("receipt", device="trainer")]
    assert len(settled) == len(set(settled)) == fleet.trained, "each has one verdict"
    found = await midge("list", store)
    assert [each["version"] for each in found["versions"]] == [2, 3, 6, 7] and found["federation"] == "f"
    assert found["versions"][2]["parent"] == 3 and found["versions"][2]["updates"] == 3
    assert found["versions"][1]["metrics"]["server"] == {"error": 1.0}
    assert found["versions"][1]["metrics"]["federated"]["loss"]["median"] == 1.0
    await midge("export", store, "6", "--to", str(tmp_path / "model.safetensors"))
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["x"], np.full(600, 2.5, np.float32))


def _announced(board: Device) -> tuple[int, int]:
    """Generation and version, as far as a device has heard."""
    told = None if board._runtime is None else board._runtime.session.announcement
    return (-1, 0) if told is None else (told.generation, told.version)


def _champion(board: Device) -> int:
    kept = board._parts.kept.kept("champion")
    return 0 if kept is None else kept.alias.version
