"""What the page shows of a real aggregator and real devices, over a broker in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from midge.aggregator.store.pausing import pause
from midge.broker.embedded.in_memory import Twin
from midge.broker.embedded.routing import RoutedMessage
from midge.broker.mqtt.connection import SubscribeRefused
from midge.broker.mqtt.federation_view import describe_federation
from midge.dashboard.observer import FederationObserver
from midge.dashboard.state import FederationState
from midge.iot_client.training.evaluation import Scores
from midge.iot_client.training.fit import Parameters
from midge.wire.topics import Topics
from tests.federation.live import Log, device, serving
from tests.federation.test_status import absurd, served

pytestmark = pytest.mark.virtual
TOPICS = Topics("f")


def wall() -> float:
    return 1.8e9 + asyncio.get_running_loop().time()


@asynccontextmanager
async def observed(twin: Twin, **how: Any) -> AsyncIterator[FederationState]:
    state = FederationState(TOPICS, wall())
    observing = asyncio.create_task(FederationObserver(state, how.pop("connect", twin.connect), wall=wall, **how).run())

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)
            state.tick(wall())

    ticking = asyncio.create_task(tick())
    try:
        yield state
    finally:
        for task in (observing, ticking):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def evaluate(parameters: Parameters) -> Scores:
    return Scores(10, {"rmse": float(abs(parameters["w"]).mean())})


async def test_the_page_shows_what_midge_status_shows(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    devices = [device(twin, name, log, evaluate=evaluate) for name in ("a", "b")]
    server = served(twin, tmp_path / "store", log, evaluate=lambda parameters: {"rmse": 0.5})
    async with observed(twin) as state, serving(server, *devices, device(twin, "odd", log, train=absurd)):
        await log.until(lambda: log.of("alarm") and state.head(wall())["alarms"] and state.intervals.at(wall()).scores)
        found = json.loads(json.dumps(await describe_federation(twin.connect, TOPICS)))
        head = state.head(wall())
        assert [alarm["text"] for alarm in head["alarms"]] == found["health"]["alarms"] != []
        assert head["health"]["state"] == found["health"]["state"] == "learning"
        assert head["states"] == {"ready": 3} and set(state.view.devices) == {"a", "b", "odd"}
        assert head["evaluation"] == {"rmse": 0.5} and head["metric"] == "rmse" and min(head["bytes"]) > 1000
        shown = state.device("odd")
        assert (
            shown is not None and shown["refused"] >= 5 and shown["receipts"][-1][2] == shown["verdict"] != "accepted"
        )
        total = sum(int(row[1] or 0) for row in state.intervals.packed()) + state.intervals.at(wall()).accepted
        accepted = len(log.of("update", verdict="accepted"))
        assert accepted - 10 <= total <= accepted, "each accepted update has one receipt"


async def test_a_pause_and_the_end_of_the_aggregator_are_seen_within_seconds(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    store = tmp_path / "store"
    async with observed(twin) as state:
        async with serving(served(twin, store, log), device(twin, "a", log), device(twin, "b", log)):
            await log.until(lambda: len(log.of("update", verdict="accepted")) >= 4)
            pause(store, "the winter")
            await asyncio.sleep(4)
            head = state.head(wall())
            assert head["aggregator"]["state"] == "paused" and "the winter" in head["health"]["why"]
            assert head["alarms"] == []
        await asyncio.sleep(2)
        assert [alarm["text"] for alarm in state.head(wall())["alarms"]] == ["The aggregator is stopped."]
        assert state.head(wall())["states"] == {"disconnected": 2}


async def test_a_broker_that_comes_back_is_observed_again(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    twin.reachable = False
    async with observed(twin) as state:
        await asyncio.sleep(10)
        assert "cannot be observed" in state.head(wall())["alarms"][0]["text"]
        twin.reachable = True
        async with serving(served(twin, tmp_path / "store", log), device(twin, "a", log), device(twin, "b", log)):
            await log.until(lambda: state.head(wall())["answered"])
            await asyncio.sleep(2)
            assert state.head(wall())["alarms"] == [] and state.head(wall())["connected"]


async def test_a_user_who_may_read_less_sees_less_and_is_told_so(tmp_path: Path) -> None:
    """The rights are the broker's: without receipts and answers the page shows what is retained."""
    twin, log = Twin(), Log()

    @asynccontextmanager
    async def limited(options: Any) -> AsyncIterator[Any]:
        async with twin.connect(options) as connection:
            subscribe = connection.subscribe

            async def may(*filters: str, qos: Any = 1) -> None:
                if any("receipt" in each or "overview" in each for each in filters):
                    raise SubscribeRefused("not yours")
                await subscribe(*filters, qos=qos)

            connection.subscribe = may  # type: ignore[method-assign]
            yield connection

    devices = [device(twin, name, log) for name in ("a", "b")]
    async with observed(twin, connect=limited) as state, serving(served(twin, tmp_path / "store", log), *devices):
        await log.until(lambda: len(log.of("update", verdict="accepted")) >= 4 and state.view.devices)
        await asyncio.sleep(8)
        head = state.head(wall())
        assert head["states"] == {"ready": 2} and head["alarms"] == [] and len(head["notices"]) == 2
        assert not head["answered"] and head["aggregator"]["state"] == "ready"


async def test_it_asks_seldom_while_no_page_is_open(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    asked: list[str] = []

    def note(client: str, message: RoutedMessage) -> int:
        asked.extend([client] * (message.topic == TOPICS.ask))
        return 1

    twin.copies = note
    watched = True
    async with (
        observed(twin, watched=lambda: watched),
        serving(served(twin, tmp_path / "store", log), device(twin, "a", log), device(twin, "b", log)),
    ):
        await log.until(lambda: log.of("release"))
        before = len(asked)
        await asyncio.sleep(60)
        often = len(asked) - before
        watched = False
        await asyncio.sleep(60)
        assert 20 <= often <= 31 and len(asked) - before - often <= 13
