"""`midge status --check` of a broker with several federations."""

import asyncio
import json
from pathlib import Path

import pytest

from midge.__main__ import main
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt import federation_view
from midge.broker.mqtt.connection import Options
from midge.broker.mqtt.federation_view import nothing_known
from midge.commands import status as status_command
from midge.wire import frames, overview
from midge.wire.messages import AggregatorState, AggregatorStatus, Health, HealthState
from midge.wire.overview import Overview
from midge.wire.topics import Topics
from tests.waiting import LAST_RESORT

FEDERATIONS = [Topics(f"site-{number}") for number in range(4)]


def status(state: HealthState = HealthState.LEARNING, why: str = "") -> AggregatorStatus:
    health = Health(state=state, since=1.0, accepted=1.0, why=why, verdicts={}, devices={}, alarms=())
    return AggregatorStatus(state=AggregatorState.READY, lineage=bytes(16), boot=1, health=health)


async def test_all_federations_are_asked_at_the_same_time_and_answer_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: one after another, each with its time-out, so that none of these answered, in four JSON objects.

    Seen to fail as well: a check waited no longer than `midge status`, and called an aggregator on a slow link silent.
    """
    monkeypatch.setattr(federation_view, "PATIENCE", 0.0)
    held = status(HealthState.HELD, "A step takes 5 updates")
    said = {topics.federation: status() for topics in FEDERATIONS} | {"site-2": held}
    async with (
        asyncio.timeout(LAST_RESORT),
        local_broker("embedded", directory=tmp_path) as broker,
        connector(broker.endpoint)(Options(client_id="aggregators")) as connection,
    ):
        for topics in FEDERATIONS:
            await connection.publish(topics.aggregator, frames.encode(said[topics.federation]), qos=1, retain=True)
            await connection.subscribe(topics.ask)
        command = ["status", str(broker.endpoint), "--check", "--json"]
        check = asyncio.create_task(asyncio.to_thread(main, command))
        asked: set[str] = set()
        async for delivery in connection.messages():
            asked.add(delivery.topic)
            if len(asked) == len(FEDERATIONS):  # none gets an answer before all were asked
                break
        for topics in FEDERATIONS:
            for page in overview.encode_pages(Overview(status=said[topics.federation]), (), 0):
                await connection.publish(topics.overview, page)
        assert await check == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found["federations"]) == set(said)
    assert all(each["answered"] for each in found["federations"].values())
    assert found["alarm"] == "site-2: held: A step takes 5 updates"


@pytest.mark.parametrize("more", [(), ("--federation", "site-0")])
async def test_a_check_ends_in_time_however_slow_the_broker_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Seen to fail: each of several questions had its own time-out, so that a check took half a minute."""
    monkeypatch.setattr(status_command, "_CHECK", 0.2)
    silent = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    writers = list[asyncio.StreamWriter]()
    async with silent, asyncio.timeout(5):  # a question to a broker that says nothing takes 10 s
        port = silent.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(main, ["status", f"mqtt://127.0.0.1:{port}", *more, "--check", "--json"]) == 1
        for writer in writers:
            writer.transport.abort()
    found = json.loads(capsys.readouterr().out)
    assert "no answer within" in found["alarm"]
    assert found.keys() > nothing_known("site-0").keys(), "seen to fail: only the alarm"
    assert found["federation"] == (more[1] if more else None) and found["health"] is None
    assert found.get("federations") == (None if more else {}), "one shape for whoever checks all"
