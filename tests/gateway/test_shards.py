"""A root and its shards in one loop, over one broker in memory: who answers what, and that each update counts once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced, fedasync, secure
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.service import Aggregator
from midge.aggregator.shards import Shards
from midge.aggregator.standby.policy import StandbyPolicy
from midge.aggregator.store.errors import StoreError
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.gateway.shard import Shard
from midge.gateway.shard_aggregator import ShardPlace
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire import frames, messages, signing
from midge.wire.errors import WireError
from midge.wire.messages import Fetch, Plan
from midge.wire.moments import Moments
from midge.wire.topics import SLOTS, Topics, slot
from tests.aggregator.rig import EVERYTHING_COUNTS
from tests.federation.live import INITIAL, STRATEGY, Log, aggregator, device, distance, overheard

NAMES = ["a", "b", "c", "d", "e", "f"]
SLOW = replace(STRATEGY, rate=0.1)
TOPICS = Topics("f")


def test_each_slot_has_exactly_one_shard() -> None:
    for number in range(1, SLOTS + 1):
        shards = Shards(number)
        slots = sorted(each for index in range(number) for each in shards.slots(index))
        assert slots == list(range(SLOTS))
        assert all(slot(name) in shards.slots(shards.of(name)) for name in NAMES)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"strategy": fedasync(form="mixing")}, "single devices"),
        ({"strategy": balanced(combine="trimmed", trim=0.1, buffer_size=5)}, "single devices"),
        ({"strategy": balanced(count_rows=("w",))}, "single updates that changed a row"),
        ({"sites": ("north",)}, "cannot be summed again"),
        ({"standby": StandbyPolicy(follow=True), "release_key": "release.key"}, "a standby copies one store"),
        ({"shards": 65}, "from 0 to 64"),
        ({"shards": -1}, "from 0 to 64"),
    ],
)
def test_what_needs_single_updates_is_refused_when_it_is_made(fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    given = {"connector": Twin().connect, "federation": "f", "initial": INITIAL, "store": tmp_path, "shards": 2}
    with pytest.raises(ValueError, match=why):
        AggregatorConfig(**{**given, **fields})


@asynccontextmanager
async def sharded(root: Aggregator, number: int, *others: Any) -> AsyncIterator[list[Shard]]:
    """The root, then its shards, then the others; they end in the reverse order."""
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(root.serve())
        await root.begun.wait()
        shards = [
            Shard(root.config, ShardPlace(index, number, root.core.lineage, root.boot)) for index in range(number)
        ]
        beside = [tasks.create_task(each.serve()) for each in (*shards, *others)]
        try:
            yield shards
        finally:
            for each in (*others, *shards):
                each.stop()
            await asyncio.wait(beside)
            root.stop()
            await serving


async def test_devices_of_two_shards_learn_with_the_root(tmp_path: Path) -> None:
    twin, log, told = Twin(), Log(), Log()
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    devices = [device(twin, name, told) for name in NAMES]
    async with sharded(root, 2, *devices):
        await log.until(lambda: root.open_now and distance(root.model.parameters()) < 0.05)
        assert root.core.steering.live == len(NAMES)  # not a second time by their shards
    accepted = {(event.get("side"), event["device"]) for event in log.of("update", verdict="accepted")}
    assert accepted == {(None, "shard-0"), (None, "shard-1"), *(("below", name) for name in NAMES)}


class Written:
    """What each client publishes at a broker."""

    def __init__(self, twin: Twin) -> None:
        self.messages: list[tuple[str, RoutedMessage]] = []
        self._publish = twin.publish
        twin.publish = self  # type: ignore[method-assign, assignment]

    def __call__(self, client: str, message: RoutedMessage) -> None:
        self.messages.append((client, message))
        self._publish(client, message)

    def of_kind(self, kind: str) -> list[tuple[str, RoutedMessage]]:
        return [(client, each) for client, each in self.messages if each.payload and _is(kind, each.payload)]


def _is(kind: str, payload: bytes) -> bool:
    with suppress(WireError):
        return messages.is_kind(kind, payload)
    return False


async def test_a_shard_retains_nothing_but_its_own_status(tmp_path: Path) -> None:
    """Seen to fail with a gateway's publisher: an old announcement of a shard replaced a newer one of the root."""
    twin, log, told = Twin(), Log(), Log()
    written = Written(twin)
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)):
        await log.until(lambda: root.open_now and root.core.version >= 5)
    topics = {message.topic for client, message in written.messages if "shard-" in client and message.retain}
    assert topics == {TOPICS.status("shard-0"), TOPICS.status("shard-1")}


async def test_each_message_of_a_device_is_answered_by_one_process(tmp_path: Path) -> None:
    """Greetings and updates by the device's shard; a request of chunks by the root, which its shard asks."""
    twin, log, told = Twin(), Log(), Log()
    written = Written(twin)
    root = aggregator(twin, tmp_path / "root", log, shards=2, strategy=SLOW)
    async with sharded(root, 2, *(device(twin, name, told) for name in NAMES)) as shards:
        await log.until(lambda: root.open_now and root.core.version >= 3)
        answering = {
            (message.topic.rpartition("/")[2], client)
            for client, message in written.of_kind("receipt")
            if not message.topic.endswith(("shard-0", "shard-1"))
        }
        assert {(name, f"midge-f-shard-{Shards(2).of(name)}") for name in NAMES} == {
            (name, client.rpartition("-")[0]) for name, client in answering
        }
        version, begun = root.core.version, len(written.messages)
        fetch = Fetch(lineage=root.core.lineage, version=version, span=0, parts=(0,))
        await asyncio.sleep(0)
        del shards, begun
        twin.publish("a", RoutedMessage(TOPICS.update("a"), frames.encode(fetch), 1, False))
        await log.until(lambda: len(written.of_kind("fetch")) >= 2)
    forwarded = [client for client, _ in written.of_kind("fetch")]
    assert forwarded[0] == "a" and [client.rpartition("-")[0] for client in forwarded[1:]] == [
        f"midge-f-shard-{Shards(2).of('a')}"
    ]
