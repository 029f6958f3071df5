"""Brokers that take less than a chunk, and say so in one of three ways: what they take is found, and used."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.broker import BrokerRefused, Connection, ConnectionLost, Endpoint, Options, PublishRefused, connector
from midge.broker.embedded.in_memory import Twin
from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import Child, free_port
from midge.broker.mqtt.message_size import SizeSearch, TriedTooMuch
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit
from tests import needs
from tests.broker.worlds import options
from tests.federation.live import Log, serving

WAYS = pytest.mark.parametrize("way", ["refuses", "drops", "ends"])
NOISE = np.random.default_rng(1).normal(0, 1, 50_000).astype(np.float32)
INITIAL = {"w": np.zeros(50_000, np.float32)}


class Narrow:
    """A broker in memory that takes no payload above `limit`, of some clients or of all."""

    def __init__(self, way: str, limit: int, *, whose: str = "") -> None:
        self.twin, self.way, self.limit, self.whose = Twin(), way, limit, whose
        self.tried: list[int] = []
        self.passed: list[tuple[str, int]] = []

    def connect(self, options: Options) -> AbstractAsyncContextManager[Connection]:
        return self._connect(options)

    @asynccontextmanager
    async def _connect(self, options: Options) -> AsyncGenerator[Connection, None]:
        async with self.twin.connect(options) as connection:
            publish: Callable[..., Any] = connection.publish

            async def narrow(topic: str, payload: bytes, **how: Any) -> None:
                if len(payload) <= self.limit or self.whose not in options.client_id:
                    self.passed.append((options.client_id, len(payload)))
                    await publish(topic, payload, **how)
                    return
                self.tried.append(len(payload))
                await asyncio.sleep(0)
                if self.way == "refuses":
                    raise PublishRefused("The broker refused the message: reason 0x95.", 0x95)
                if self.way == "ends":
                    self.twin.drop(options.client_id)
                    raise ConnectionLost("The connection broke.")

            connection.publish = narrow  # type: ignore[method-assign, assignment]
            yield connection


@pytest.mark.virtual
@WAYS
@pytest.mark.parametrize("limit", [200_000, 20_000, 2_100])
async def test_the_largest_is_found(way: str, limit: int) -> None:
    broker, search = Narrow(way, limit), SizeSearch("own", 260_000)
    found: int | None = None
    for _ in range(50):
        try:
            async with broker.connect(options()) as connection:
                found = await search.run(connection)
            break
        except TriedTooMuch:
            continue
    nearly = 0.5 if way == "ends" else 15 / 16
    assert found is not None and limit * nearly - 1 <= found <= limit
    assert len(set(broker.tried)) <= 12


@pytest.mark.virtual
async def test_one_message_is_enough_where_the_broker_takes_it() -> None:
    broker = Narrow("refuses", 260_000)
    async with broker.connect(options()) as connection:
        assert await SizeSearch("own", 260_000).run(connection) == 260_000
    assert [size for _, size in broker.passed if size > 10] == [260_000]


@pytest.mark.virtual
async def test_a_message_that_is_lost_now_and_then_says_nothing_of_its_size() -> None:
    broker, seen = Narrow("drops", 260_000), [0]

    def copies(_client: str, message: Any) -> int:
        seen[0] += len(message.payload) > 10
        return int(seen[0] != 1)

    broker.twin.copies = copies
    async with broker.connect(options()) as connection:
        assert await SizeSearch("own", 260_000).run(connection) == 260_000


@pytest.mark.virtual
async def test_a_topic_that_does_not_come_back_says_nothing() -> None:
    broker = Narrow("drops", 260_000)
    broker.twin.copies = lambda _client, _message: 0
    async with broker.connect(options()) as connection:
        assert await SizeSearch("own", 260_000).run(connection) is None


@pytest.mark.virtual
async def test_a_broker_that_takes_next_to_nothing_is_refused_with_a_sentence() -> None:
    async with Narrow("refuses", 900).connect(options()) as connection:
        with pytest.raises(BrokerRefused, match="raise its limit"):
            await SizeSearch("own", 260_000).run(connection)


def federation(connect: Any, folder: Path, log: Log) -> tuple[Aggregator, Device, Device]:
    def train(parameters: Any, _plan: Any) -> Fit:
        return Fit(
            {"w": parameters["w"] + np.random.default_rng(1).normal(0, 1, 50_000).astype(np.float32)}, examples=8
        )

    server = Aggregator(
        AggregatorConfig(connector=connect, federation="f", store=folder / "store", initial=INITIAL, on_event=log)
    )
    a, b = (
        Device(DeviceConfig(connector=connect, federation="f", name=name, train=train, outbox=None, on_event=log))
        for name in "ab"
    )
    return server, a, b


@pytest.mark.virtual
@WAYS
async def test_a_model_and_updates_larger_than_a_message_pass_both_ways(tmp_path: Path, way: str) -> None:
    """With Mosquitto's `message_size_limit 20000` a device once made 73 connections in 26 s, and got no model."""
    broker, log = Narrow(way, 20_000), Log()
    server, a, b = federation(broker.connect, tmp_path, log)
    async with serving(server), serving(a, b):
        await log.until(lambda: all(log.of("update", device=name, verdict="accepted") for name in "ab"))
    (limited,) = log.of("limited")
    assert (10_000 if way == "ends" else 18_000) < limited["largest"] <= 20_000
    assert "20,000" not in limited["why"] and "message_size_limit" in limited["why"]
    assert not log.of("disconnected", device="a") and not log.of("refused")


@pytest.mark.virtual
async def test_a_device_whose_own_limit_is_lower_cuts_smaller_and_says_so_once(tmp_path: Path) -> None:
    broker, log = Narrow("refuses", 4_000, whose="-a-"), Log()
    server, a, b = federation(broker.connect, tmp_path, log)
    async with serving(server), serving(a, b):
        await log.until(lambda: len(log.of("update", device="a", verdict="accepted")) > 3)
    (refused,) = log.of("refused", device="a")
    assert "goes again in chunks of" in refused["why"]
    assert max(size for client, size in broker.passed if "-a-" in client) > 2_000
    assert len(broker.tried) <= 8 * 3  # windows of chunks, and no more once it is known


@pytest.mark.virtual
async def test_connections_that_end_at_once_are_tried_less_and_less_often(tmp_path: Path) -> None:
    """Whatever the reason: each lives for a moment and carries nothing, and none resets the pauses."""
    broker, log, times = Narrow("ends", 10**6), Log(), []
    _, a, _ = federation(broker.connect, tmp_path, log)
    loop = asyncio.get_running_loop()

    @asynccontextmanager
    async def short(options: Options) -> AsyncGenerator[Connection, None]:
        async with broker.connect(options) as connection:
            times.append(loop.time())
            loop.call_later(5.0, broker.twin.drop, options.client_id)
            yield connection

    a.config = replace(a.config, connector=short)
    async with serving(a):
        await asyncio.sleep(600)
    assert len(log.of("connected")) > 5 and len(times) < 25


@pytest.mark.mosquitto
@needs.mosquitto
@pytest.mark.parametrize("line", ["message_size_limit 20000", "max_packet_size 20000"])
async def test_with_mosquitto(tmp_path: Path, line: str) -> None:
    port, log = free_port(), Log()
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{line}\n")
    binary = find_mosquitto()
    assert binary is not None
    server, a, b = federation(connector(Endpoint.parse(f"mqtt://127.0.0.1:{port}")), tmp_path, log)
    child = Child([str(binary), "-c", str(tmp_path / "m.conf")], tmp_path / "broker.log", ready="running")
    assert await child.serves("127.0.0.1", port)
    try:
        async with serving(server), serving(a, b):
            await log.until(lambda: all(log.of("update", device=name, verdict="accepted") for name in "ab"))
    finally:
        await child.stop()
    assert len(log.of("limited")) == 1 and not log.of("refused") and not log.of("disconnected")
