"""The aggregator as a process: how it begins, and how it ends."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator import standstill
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.core import Bounds
from midge.aggregator.publish.publish_queue import Post, PublishQueue
from midge.aggregator.service import Aggregator
from midge.aggregator.store.store import Store
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Options
from midge.wire.messages import DeviceState
from midge.wire.schema import Schema
from tests.aggregator.rig import hello, rig
from tests.waiting import LAST_RESORT, eventually

INITIAL = {"x": np.zeros(4, np.float32)}


def aggregator(store: Path, twin: Twin | None = None) -> Aggregator:
    return Aggregator(
        AggregatorConfig(connector=(twin or Twin()).connect, federation="f", initial=INITIAL, store=store)
    )


def test_a_store_whose_beginning_was_cut_short_begins_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create(Schema.of(INITIAL))  # and here the power goes, before the first checkpoint
    one = aggregator(tmp_path)
    one.open()
    assert one.core.lineage == one.federation.store.lineage
    one.close()


def test_statuses_of_endless_names_are_not_kept_and_put_no_device_out(tmp_path: Path) -> None:
    with rig(tmp_path, bounds=Bounds(devices=3)) as life:
        for number in range(10):
            life.hear(hello(f"device-{number}"))
        assert set(life.roster.devices) == {"device-7", "device-8", "device-9"}, "who was silent longest made room"
        assert life.core.steering.live == 3
        gone = hello("device-7", state=DeviceState.LOST)
        life.hear(gone)
        assert life.roster.devices["device-7"].state is DeviceState.LOST
        life.hear((gone[0], b""))
        life.hear(hello("device-1"))
        assert set(life.roster.devices) == {"device-8", "device-9", "device-1"}
        life.send("device-8", 1, [1, 0, 0, 0])
        for number in range(20, 30):
            life.hear(hello(f"device-{number}"))
        assert "device-8" in life.roster.devices, "an update of it was accepted"


class Clock:
    """The `time` module, with a steady clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


async def test_a_process_that_stood_still_sends_nothing_that_it_had_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, twin, told, heard = Clock(), Twin(), list[dict[str, Any]](), list[str]()
    monkeypatch.setattr(standstill, "time", clock)
    unchanged = PublishQueue._next

    def suspended_here(queue: PublishQueue) -> tuple[Post, bool] | None:
        if (found := unchanged(queue)) is not None and not found[0].retain:
            clock.ahead = 60
        return found

    monkeypatch.setattr(PublishQueue, "_next", suspended_here)
    one = aggregator(tmp_path, twin)
    one.config = replace(one.config, on_event=told.append)
    async with asyncio.timeout(LAST_RESORT), asyncio.TaskGroup() as tasks, twin.connect(Options("watcher")) as watcher:
        await watcher.subscribe("midge/1/f/receipt/+")
        tasks.create_task(one.serve())
        await eventually("the first release", lambda: told[-1:] and told[-1]["event"] == "connected")
        for number in range(3):
            one._outgoing.put(Post(f"midge/1/f/receipt/{number}", b"decided before", retain=False))
        await eventually("its return", lambda: sum(each["event"] == "connected" for each in told) == 2)
        one._outgoing.put(Post("midge/1/f/receipt/last", b"decided after", retain=False))
        monkeypatch.setattr(PublishQueue, "_next", unchanged)
        async for delivery in watcher.messages():
            heard.append(delivery.topic)
            break
        one.stop()
    assert heard == ["midge/1/f/receipt/last"]
    assert [each["why"] for each in told if each["event"] == "disconnected"] == ["This process stood still for 60 s."]


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_aggregator_ends_although_its_connection_is_lost_at_that_time(
    tmp_path: Path, turns: int
) -> None:
    """Seen to fail: a group of tasks raises the loss in place of the cancellation, and it connected again for ever."""
    twin, told = Twin(), list[dict[str, Any]]()
    one = aggregator(tmp_path, twin)
    one.config = replace(one.config, on_event=told.append)
    async with asyncio.timeout(LAST_RESORT):
        serving = asyncio.create_task(one.serve())
        await eventually("a connection", lambda: told[-1:] and told[-1]["event"] == "connected")
        twin.kill()
        for _ in range(turns):
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
