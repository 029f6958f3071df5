"""`midge conform` over Mosquitto: devices in Python, C and MicroPython keep every rule, and wrong ones are named.

All of them are tried at once, each in a federation of its own: a referee mostly waits.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.broker import connector
from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.process import dying_with_parent
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.wire.moments import Moments
from tests import needs
from tests.c_client.compiled import CLIENT, HERE, SANITIZED, compiled
from tests.federation.live import serving
from tests.harness.processes import ROOT, Actor
from tests.micropython.board import PROGRAMS, command, environment
from tests.ports import free_port
from tests.referee.test_referee import approach
from tests.referee.wrong_devices import FAULTS, faulty

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.mosquitto, needs.mosquitto, needs.micropython]
UPDATES = "1000"
"""More than a referee takes."""
PERCEPTRON = ("layers.0.weight=16x12", "layers.0.bias=16", "layers.2.weight=4x16", "layers.2.bias=4")
PYTHON = ("w=130",)
WRONG: dict[str, tuple[set[str], set[str]]] = {
    "trains again to send again": ({"resending", "delta"}, {"settling"}),
    "is impatient": ({"busy"}, set()),
}
"""What a device does, the rules that it breaks by that, and those that it also breaks if a receipt crosses its update:
a receipt for the bytes that it sent first settles nothing for it, and it sends again what was settled."""
Said = dict[str, Any]
"""What `midge conform --json` says of a device at its end, and its exit code as `code`."""


@asynccontextmanager
async def judging(
    broker: LocalBroker, federation: str, device: str, tensors: tuple[str, ...], channels: int
) -> AsyncIterator[asyncio.Task[Said]]:
    """The command, once it waits for the device: what it says of it at its end."""
    words = [sys.executable, "-m", "midge", "conform", str(broker.endpoint), "--federation", federation]
    words += ["--device", device, "--statistics", f"input={channels}", "--wait", "60", "--json"]
    words += [word for tensor in tensors for word in ("--tensor", tensor)]
    process = await asyncio.create_subprocess_exec(
        *dying_with_parent(words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stderr is not None
    first = await process.stderr.readline()
    assert first.startswith(b"waiting for the device"), first + await process.stderr.read()

    async def end() -> Said:
        out, err = await process.communicate()
        assert process.returncode in (0, 1), err.decode()
        return {**json.loads(out.splitlines()[-1]), "code": process.returncode}

    task = asyncio.create_task(end())
    yield task


async def in_python(broker: LocalBroker, folder: Path, name: str, fault: str | None) -> Said:
    """Midge's own device, with a fault or without."""
    connect = connector(broker.endpoint)
    if fault is not None:
        connect = faulty(connect, FAULTS[fault][1](pytest.MonkeyPatch()))
    config = DeviceConfig(
        connector=connect,
        federation=name,
        name="d",
        train=approach,
        outbox=folder / f"{name}.outbox",
        moments={"input": Moments.of(np.random.default_rng(1).normal(size=(20, 3)))},
    )
    async with judging(broker, name, "d", PYTHON, 3) as said, serving(Device(config)):
        return await said


async def run_beside(said: asyncio.Task[Said], actor: Actor) -> Said:
    """Run a device until it has been judged."""
    await actor.start()
    try:
        return await said
    finally:
        assert await actor.kill(), actor.tail()  # else it had ended by itself


async def in_c(broker: LocalBroker, folder: Path) -> Said:
    """The C client, with its own training."""
    sources = [CLIENT / "midge.c", CLIENT / "ports" / "posix.c", HERE / "learner.c"]
    program = await asyncio.to_thread(compiled, folder / "learner", sources, *SANITIZED)
    words = [str(program), "127.0.0.1", str(broker.endpoint.port), "c", "0", UPDATES, str(folder / "flash")]
    async with judging(broker, "c", "learner-0", PERCEPTRON, 12) as said:
        return await run_beside(said, Actor("learner", words, folder / "c.log", {}))


async def in_micropython(broker: LocalBroker, folder: Path) -> Said:
    """The MicroPython client, with its own training."""
    words = command(PROGRAMS / "learn.py", broker.endpoint.port, "board", 12, 4, "classification", UPDATES)
    actor = Actor("board", ["env", "-C", str(folder), *words], folder / "micropython.log", environment())
    async with judging(broker, "learning", "board", PERCEPTRON, 12) as said:
        return await run_beside(said, actor)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """All devices, tried at once."""
    folder = tmp_path_factory.mktemp("conform")

    async def play() -> dict[str, Said]:
        async with local_broker("mosquitto", directory=folder, port=free_port()) as broker:
            trials: dict[str, Coroutine[Any, Any, Said]] = {
                "Python": in_python(broker, folder, "python", None),
                "C": in_c(broker, folder),
                "MicroPython": in_micropython(broker, folder),
            }
            trials |= {fault: in_python(broker, folder, f"wrong-{n}", fault) for n, fault in enumerate(WRONG)}
            return dict(zip(trials, await asyncio.gather(*trials.values()), strict=True))

    return asyncio.run(play())


@pytest.mark.parametrize("language", ["Python", "C", "MicroPython"])
def test_no_rule_is_broken(found: dict[str, Said], language: str) -> None:
    """Seen to fail: a C and a MicroPython client that came again a second after `busy`."""
    said = found[language]
    assert [rule for rule in said["rules"] if rule["outcome"] == "fail"] == []
    unseen = {rule["rule"] for rule in said["rules"] if rule["outcome"] == "not seen"}
    assert unseen <= ({"largest"} if language == "Python" else set())
    assert said["ok"] and said["code"] == 0


@pytest.mark.parametrize("fault", WRONG)
def test_a_device_that_breaks_a_rule_is_named_with_it(found: dict[str, Said], fault: str) -> None:
    said = found[fault]
    broken = {rule["rule"] for rule in said["rules"] if rule["outcome"] == "fail"}
    always, sometimes = WRONG[fault]
    assert always <= broken <= always | sometimes and said["code"] == 1
