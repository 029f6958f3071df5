"""A client that does everything wrong, over a real Mosquitto, beside devices that go on learning."""

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.connection import Connection, Options
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire import frames, messages
from midge.wire.messages import Chunk, DeviceState, Hello, Statistics, Update
from midge.wire.topics import Topics
from tests import needs
from tests.federation.live import Log, serving
from tests.fuzz.payloads import GOLDEN
from tests.waiting import LAST_RESORT

pytestmark = pytest.mark.alone

SECONDS = 6.0
SIZE = 20_000
CHILD = """
import resource, sys
import numpy as np
from midge.aggregator.core.presets import fedasync
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.wire.messages import Plan

def tell(event):
    if event["event"] == "release":
        x = server.model.parameters()["x"]
        lines = open("/proc/self/status").read().splitlines()  # getrusage counts what the parent had at the fork
        rss = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        print(event["version"], float(np.abs(x - 1).max()), rss, flush=True)

server = Aggregator(AggregatorConfig(
    connector=connector(Endpoint.parse(sys.argv[1])),
    federation="f",
    initial={"x": np.zeros(int(sys.argv[3]), np.float32)},
    # A thousand devices that are none make releases rare where a rate of bytes is kept: that is not what is tried here.
    strategy=fedasync(0.5, release_floor=2, plan=Plan(codec="float32"), byte_rate=0.0, form="delta", bounded=False),
    store=sys.argv[2],
    memory=8 * 2**20,
    on_event=tell,
))

server.run()
"""
TOPICS = Topics("f")


async def approach(parameters: Parameters, plan: TrainingPlan) -> Fit:
    await asyncio.sleep(0.05)
    return Fit({"x": (parameters["x"] + 1) / 2}, examples=1)


async def hostile(connection: Connection, lineage: bytes, schema_hash: bytes, seconds: float) -> int:
    """Garbage, forged greetings, bombs, floods, offers that are never kept, other people's slots; how many messages."""
    sent = 0
    end = asyncio.get_running_loop().time() + seconds

    async def say(topic: str, payload: bytes, *, retain: bool = False) -> None:
        nonlocal sent
        sent += 1
        await connection.publish(topic, payload, qos=1 if sent % 2 else 0, retain=retain)

    while asyncio.get_running_loop().time() < end:
        number = secrets.randbelow(1000)
        name = f"evil-{number}"
        fields: dict[str, Any] = {
            "outbox": number,
            "first": 1,
            "seq": 1 + number % 3,
            "lineage": lineage,
            "generation": 0,
            "base": 1 + number % 40,
            "schema_hash": schema_hash,
            "codec": ("float32", "int8", "topk:0.1|int8", "no such")[number % 4],
            "size": 4 * SIZE,
            "sha256": bytes(32),
        }
        nan = np.full(SIZE, np.nan, np.float32).tobytes()
        await say(TOPICS.update(name), frames.encode(Update(**fields), nan))
        await say(TOPICS.update(name), frames.encode(Update(**{**fields, "size": 2**39}), b"x" * 3))
        offer = Update(**{**fields, "seq": 1, "kind": "offer", "parts": 1})
        await say(TOPICS.update(name), frames.encode(offer))
        await say(TOPICS.update(name), frames.encode(Chunk(outbox=number, first=1, seq=1, part=2**31), b"y" * 9))
        many = Statistics(lineage=lineage, names=(("x", 3), ("y", 2**32 - 1))[: 1 + number % 2])
        await say(TOPICS.update(name), frames.encode(many, secrets.token_bytes(73)))
        await say(TOPICS.update(name).replace("/update/", "/update/6"), secrets.token_bytes(40))
        hello = Hello(state=DeviceState.READY, outbox=number, first=2**62, next=2**62)
        await say(TOPICS.status(name), frames.encode(hello), retain=number % 5 == 0)
        await say(TOPICS.report(name), secrets.choice(GOLDEN))
        for _ in range(10):
            await say(TOPICS.update("evil-flood"), secrets.choice(GOLDEN) + secrets.token_bytes(number % 50))
        await say(TOPICS.update(name), b"\xff\xff" + b"\xdd\xff\xff\xff\xff" * 13_000)
    return sent


@pytest.mark.mosquitto
@needs.mosquitto
async def test_a_hostile_client_stops_nobody(tmp_path: Path) -> None:
    log = Log()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    async with local_broker("mosquitto", directory=tmp_path) as broker:
        command = (sys.executable, "-P", "-c", CHILD, str(broker.endpoint), str(tmp_path / "store"), str(SIZE))
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
        assert child.stdout is not None
        try:
            devices = [
                Device(
                    DeviceConfig(
                        connector=connector(broker.endpoint),
                        federation="f",
                        name=name,
                        train=approach,
                        outbox=None,
                        on_event=log,
                    )
                )
                for name in "abc"
            ]
            async with (
                asyncio.timeout(LAST_RESORT),
                serving(*devices),
                connector(broker.endpoint)(Options("evil")) as evil,
            ):
                await child.stdout.readline()
                await evil.subscribe(TOPICS.announcement())
                announcement = messages.decode_announcement((await anext(aiter(evil.messages()))).payload)
                attack = asyncio.create_task(hostile(evil, announcement.lineage, announcement.schema_hash, SECONDS))
                distance, memory = 1.0, 0
                while not (attack.done() and distance < 0.05):
                    line = await child.stdout.readline()
                    assert line, "the aggregator ended"
                    _, said, rss = line.split()
                    distance, memory = float(said), int(rss)
                assert await attack
            assert child.returncode is None
            assert memory < 400 * 1024
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
    assert log.of("receipt", verdict="accepted")
