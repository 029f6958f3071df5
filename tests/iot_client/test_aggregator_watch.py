"""What a device tells of its aggregator, within ten seconds: that none is announced, that one is gone, or waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.store.pausing import pause
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Connection, Options, SubscribeRefused
from midge.commands.words import sentence
from midge.wire.moments import Moments
from midge.wire.topics import Topics, explain_absence
from tests.federation.live import INITIAL, Log, aggregator, clients, device, serving

pytestmark = pytest.mark.virtual


class Told(Log):
    """The events with the seconds after which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.get_running_loop().time()

    def __call__(self, event: dict[str, Any]) -> None:
        super().__call__({**event, "after": asyncio.get_running_loop().time() - self.began})


async def test_a_federation_that_is_not_announced_is_told_with_those_that_are(tmp_path: Path) -> None:
    """Seen to fail: "Connected to the broker.", and nothing more for ever."""
    twin, log = Twin(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log)):
        await log.until(lambda: log.of("release"))
        await asyncio.sleep(1)
        stray = Told()
        lost = device(twin, "a", stray)
        lost.config = replace(lost.config, federation="ff")
        async with serving(lost):
            await stray.until(lambda: stray.of("unannounced"))
            dropped = clients(twin, "midge-ff")
            assert dropped
            for client in dropped:
                twin.drop(client)
            await asyncio.sleep(60)
    (told,) = stray.of("unannounced")  # once, and not with each connection
    assert told["after"] < 10 and "announced is f: did you mean 'f'?" in sentence(told)


async def test_a_broker_without_any_federation(tmp_path: Path) -> None:
    twin, told = Twin(), Told()
    async with serving(device(twin, "a", told)):
        await told.until(lambda: told.of("unannounced"))
        log = Log()
        async with serving(aggregator(twin, tmp_path / "store", log)):
            await told.until(lambda: told.of("aggregator", state="ready"))
        await told.until(lambda: told.of("aggregator", state="stopped"))
    assert told.of("unannounced")[0]["after"] < 10 and "`midge aggregate`" in sentence(told.of("unannounced")[0])
    assert "has stopped. Until it is back, updates wait here." in sentence(told.of("aggregator", state="stopped")[0])


async def test_a_broker_that_does_not_let_it_look(tmp_path: Path) -> None:
    """The right to others' topics is one that a device need not have."""
    twin, told = Twin(), Told()
    refused: list[str] = []
    alone = device(twin, "a", told)

    @asynccontextmanager
    async def connect(options: Options) -> AsyncIterator[Connection]:
        async with twin.connect(options) as connection:
            subscribe = connection.subscribe

            async def guarded(*filters: str, **how: Any) -> None:
                if "+" in "".join(filters):
                    refused.extend(filters)
                    raise SubscribeRefused("not allowed")
                await subscribe(*filters, **how)

            connection.subscribe = guarded  # type: ignore[method-assign]
            yield connection

    alone.config = replace(alone.config, connector=connect)
    async with serving(alone):
        await told.until(lambda: told.of("unannounced"))
    assert refused == ["midge/1/+/aggregator"] and "that is visible from here" in told.of("unannounced")[0]["why"]


async def test_a_device_alone_hears_within_ten_seconds_that_another_is_needed(tmp_path: Path) -> None:
    """Seen to fail: "Update 1: accepted", then silence on both sides."""
    twin, log, told = Twin(), Log(), Told()
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", told)):
        await told.until(lambda: told.of("receipt"))
        accepted = told.of("receipt")[0]["after"]
        await told.until(lambda: [event for event in told.of("aggregator") if event["why"]])
        (event,) = [event for event in told.of("aggregator") if event["why"]]
        assert event["after"] < accepted + 10 and "Only 1 of at least 2 distinct devices has" in sentence(event)
        async with serving(device(twin, "b", log)):
            await told.until(lambda: told.of("aggregator")[-1]["why"] == "")
    assert any("start another device" in sentence(event) for event in log.of("health"))


async def test_a_program_without_a_listener_hears_it_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen to fail: the README's own program, run by Python, said nothing at all."""
    twin, log = Twin(), Log()
    alone, server = device(twin, "a", log), aggregator(twin, tmp_path / "store", log)
    alone.config, server.config = replace(alone.config, on_event=None), replace(server.config, on_event=None)

    def said(words: str) -> bool:
        return any(words in record.getMessage() for record in caplog.records)

    async with serving(alone):
        await log.until(lambda: said("a: No aggregator has announced federation 'f'"))
        async with serving(server):
            await log.until(lambda: said("a: The aggregator is ready: Only 1 of at least 2"))
            assert said("waiting: Only 1 of at least 2")
        await log.until(lambda: said("a: The aggregator is stopped."))


async def test_a_pause_is_told_with_its_reason(tmp_path: Path) -> None:
    twin, log, told = Twin(), Log(), Told()
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", told)):
        await told.until(lambda: told.of("aggregator", state="ready"))
        pause(tmp_path / "store", "the winter")
        await told.until(lambda: told.of("aggregator", state="paused"))
    assert sentence(told.of("aggregator", state="paused")[0]) == "The federation is paused: the winter."


def test_many_names_are_not_all_said_and_strange_ones_never() -> None:
    said = explain_absence(Topics("x"), [f"plant-{number:02d}" for number in range(30)] + ["a b\x1b", ""])
    assert "plant-09 and 20 more" in said and "plant-10" not in said and "a b" not in said


async def test_an_aggregator_alone_says_so_within_ten_seconds(tmp_path: Path) -> None:
    """Seen to fail: an aggregator whose devices were all sent to another federation said nothing."""
    twin, told = Twin(), Told()
    async with serving(aggregator(twin, tmp_path / "store", told)):
        await told.until(lambda: told.of("health"))
        (event,) = told.of("health")
        assert event["after"] < 12 and sentence(event) == "Health: waiting: No device is there."
        other = Told()
        async with serving(device(twin, "a", other)):
            await other.until(lambda: other.of("receipt"))
    assert all("No device" not in event["why"] for event in other.of("aggregator"))


async def test_a_device_alone_hears_that_statistics_need_another(tmp_path: Path) -> None:
    """Seen to fail: the state was `waiting` before and after, so that neither side said a word."""
    twin, log, told = Twin(), Told(), Told()
    moments = {"input": Moments.of(np.arange(8.0).reshape(4, 2))}
    initial = {**INITIAL, "input_mean": np.zeros(2, np.float32), "input_scale": np.ones(2, np.float32)}
    roles = {"input_mean": "frozen", "input_scale": "frozen"}
    gathering = aggregator(twin, tmp_path / "store", log, initial=initial, roles=roles, moments={"input": 2})
    async with serving(gathering, device(twin, "a", told, moments=moments)):
        await told.until(lambda: [event for event in told.of("aggregator") if event["why"]])
    (event,) = [event for event in told.of("aggregator") if event["why"]]
    assert event["after"] < 10 and "Only one device has sent its statistics" in sentence(event)
    assert any("start another" in sentence(event) for event in log.of("health"))
