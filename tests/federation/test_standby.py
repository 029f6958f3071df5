"""A standby on real parts: two processes, a real broker, kills, stops and cuts; the ledger says what was lost."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from midge.broker import connector
from midge.broker.mqtt.connection import Options
from midge.wire import messages
from midge.wire.messages import Receipt
from tests import needs
from tests.federation.pair import PATIENCE, Pair, of, pair, two_brokers
from tests.harness.ledger import Audit
from tests.harness.processes import USER_ERROR
from tests.harness.proxy import Weather

DEVICES, UPDATES = 3, 40
MANY = 80
"""Updates of each device where much has to happen before they are made."""
PATIENT = 15.0
"""Seconds until the standby takes over where it must not: a busy machine stands still for some."""
AT_ONCE = 3
SERVING = (
    *("commit.before", "commit.within", "witness.writing", "copy.sending", "commit.after", "copy.confirmed"),
    *("receipts.before", "receipts.handed_over", "updates.acknowledged", "step.applied"),
    *("release.stored", "release.handed_over", "checkpoint.written", "checkpoint.entered", "checkpoint.pruned"),
)
"""Where the aggregator that serves is killed."""
HITS = {"witness.writing": 40, **dict.fromkeys(("checkpoint.written", "checkpoint.entered", "checkpoint.pruned"), 2)}
FOLLOWING = ("copy.syncing:1", "copy.synced:1", "copy.applied:1", "copy.settled:1", "copy.syncing:9", "copy.applied:9")
"""Where the standby is killed; the first time is that of its first copy."""


async def killed(directory: Path, point: str) -> Audit:
    """The aggregator that serves is killed at a point, and the standby takes over."""
    async with pair(directory, sync=True, devices=DEVICES, updates=UPDATES) as cast:
        await cast.starts("one", f"{point}:{HITS.get(point, 12)}")
        await cast.until("one", "connected")
        await cast.starts("two")
        await cast.following("two")
        await cast.devices_start()
        async with asyncio.timeout(PATIENCE):
            assert await cast.hosts["one"].ended() == -signal.SIGKILL, cast.hosts["one"].tail()
        await cast.accepted("two")
        return await cast.settled("two")


async def killed_while_it_follows(directory: Path, point: str) -> Audit:
    """The standby is killed, started again, follows, and takes over from one that is killed then."""
    async with pair(directory, sync=True, devices=DEVICES, updates=UPDATES) as cast:
        await cast.starts("one")
        await cast.until("one", "connected")
        await cast.starts("two", point)
        await cast.devices_start()
        async with asyncio.timeout(PATIENCE):
            assert await cast.hosts["two"].ended() == -signal.SIGKILL, cast.hosts["two"].tail()
        await cast.starts("two")
        await cast.following("two")
        await cast.accepted("one")
        await cast.hosts["one"].kill()
        await cast.accepted("two")
        return await cast.settled("two")


async def play_all(directory: Path, points: Sequence[str], scene: Callable[[Path, str], Awaitable[Audit]]) -> list[str]:
    """Play some at once; what went wrong in words."""
    turns, wrong = asyncio.Semaphore(AT_ONCE), list[str]()

    async def one(number: int, point: str) -> None:
        async with turns:
            try:
                found = await scene(directory / f"scene-{number}", point)
            except (AssertionError, TimeoutError, ValueError, ExceptionGroup) as error:
                wrong.append(f"{point}: {error!r}")
                return
        if found.lost or found.doubled or found.accepted < DEVICES * UPDATES:
            wrong.append(f"{point}: {found}")

    async with asyncio.TaskGroup() as tasks:
        for number, point in enumerate(points):
            tasks.create_task(one(number, point))
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("points", [SERVING[2:8], pytest.param(SERVING[:2] + SERVING[8:], marks=pytest.mark.nightly)])
async def test_nothing_is_lost_wherever_the_one_that_serves_is_killed(tmp_path: Path, points: Sequence[str]) -> None:
    wrong = await play_all(tmp_path, points, killed)
    assert not wrong, "\n".join(wrong)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
async def test_nothing_is_lost_wherever_the_standby_is_killed(tmp_path: Path) -> None:
    wrong = await play_all(tmp_path, FOLLOWING, killed_while_it_follows)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_without_sync_only_what_was_not_copied_is_lost(tmp_path: Path) -> None:
    async with pair(tmp_path / "f", sync=False, devices=DEVICES, updates=UPDATES) as cast:
        await cast.serve_and_follow()
        await cast.devices_start()
        await cast.accepted("one", 10)
        assert await cast.hosts["one"].kill()
        known = len(of(cast.hosts["one"], "update", verdict="accepted"))
        await cast.accepted("two")
        found = await cast.settled("two")
    assert found.doubled == 0
    assert found.lost < known


async def tokens_at(cast: Pair) -> list[int]:
    """The tokens of all receipts at the broker, until cancelled."""
    assert cast.broker is not None
    found = list[int]()
    with suppress(asyncio.CancelledError):
        async with connector(cast.broker.endpoint)(Options("watcher")) as connection:
            await connection.subscribe("midge/1/f/receipt/+")
            async for delivery in connection.messages():
                connection.ack(delivery)
                answer, _ = messages.decode_answer(delivery.payload)
                found += [answer.token] if isinstance(answer, Receipt) else []
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("returns", "how"),
    [
        ("ends", "stopped"),
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in (("ends", "cut off"), ("follows", "stopped"), ("follows", "cut off"))
        ),
    ],
)
async def test_the_old_one_comes_back_and_decides_nothing(tmp_path: Path, how: str, returns: str) -> None:
    """It is suspended, or its network is, for longer than the standby waits; without --sync, the token alone counts."""
    async with pair(tmp_path / "f", sync=False, devices=DEVICES, updates=MANY, pace=0.4) as cast:
        one, way = cast.hosts["one"], cast.ways["one"]
        await cast.starts("one")
        await cast.until("one", "connected")
        if returns == "follows":
            one.send(signal.SIGTERM)
            await one.ended()
            cast.follows_from_now("one")
            await cast.starts("one")
            await cast.until("one", "connected", 2)
        await cast.starts("two")
        await cast.following("two")
        await cast.devices_start()
        watching = asyncio.create_task(tokens_at(cast))
        await cast.accepted("one", 10)
        if how == "stopped":
            one.send(signal.SIGSTOP)
        else:
            way.change(Weather(silent=True))
        await cast.accepted("two")
        if how == "stopped":
            one.send(signal.SIGCONT)
        else:
            way.change(Weather())
        if returns == "ends":
            async with asyncio.timeout(PATIENCE):
                assert await one.ended() == USER_ERROR, one.tail()
            assert "taken federation 'f' over" in one.tail()
        else:
            await cast.following("one")
        watching.cancel()
        tokens = await watching
        assert len(set(tokens)) == 2
        if how == "stopped":  # what a network has held back comes late: devices know by the token that it is old
            assert tokens == sorted(tokens), "the old one has sent a receipt after the new one"
        found = await cast.settled(*(["one"] if returns == "follows" else []), "two")
    assert found.doubled == 0


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
async def test_a_standby_that_is_cut_off_takes_nothing_over(tmp_path: Path, sync: bool) -> None:
    async with pair(tmp_path / "f", sync=sync, devices=DEVICES, updates=MANY, pace=0.5, takeover=PATIENT) as cast:
        await cast.serve_and_follow()
        await cast.devices_start()
        await cast.accepted("one", 10)
        cast.ways["two"].change(Weather(silent=True))
        await cast.until("one", "standby", state="away")
        if not sync:
            await cast.accepted("one", 3)
        await asyncio.sleep(1.5 * PATIENT)  # longer than it waits: that it does nothing has no event
        cast.ways["two"].change(Weather())
        await cast.until("one", "standby", 2, state="following")
        await cast.accepted("one", 3)
        assert not of(cast.hosts["two"], "start")
        found = await cast.settled("two", "one")
    assert found == Audit(DEVICES * MANY, 0, 0, DEVICES * MANY)


@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_a_restarted_broker_moves_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path / "f", sync=True, devices=DEVICES, updates=MANY, pace=0.5, takeover=PATIENT) as cast:
        await cast.serve_and_follow()
        await cast.devices_start()
        await cast.accepted("one", 10)
        assert cast.broker is not None
        cast.broker.kill()
        await cast.broker.start()
        await cast.accepted("one", 3)
        assert not of(cast.hosts["two"], "start")
        found = await cast.settled("two", "one")
    assert found == Audit(DEVICES * MANY, 0, 0, DEVICES * MANY)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.mosquitto
@needs.mosquitto
@pytest.mark.parametrize("sync", [pytest.param(False, marks=pytest.mark.nightly), True], ids=["async", "sync"])
async def test_a_partition_in_which_the_old_one_still_reaches_devices(tmp_path: Path, sync: bool) -> None:
    """Two brokers with a bridge, which is cut: device 0 and the old one are on one side, the standby on the other."""
    (tmp_path / "brokers").mkdir()
    async with (
        two_brokers(tmp_path / "brokers") as (ports, between),
        pair(tmp_path / "f", sync=sync, updates=MANY, pace=0.4, ports=ports, only=range(1, DEVICES)) as cast,
    ):
        await cast.serve_and_follow()
        await cast.devices_start()
        await cast.accepted("one", 10)
        between.change(Weather(silent=True))
        await cast.accepted("two", 3)
        if not sync:
            await cast.accepted("one", 3)
        between.change(Weather())
        async with asyncio.timeout(PATIENCE):
            assert await cast.hosts["one"].ended() == USER_ERROR, cast.hosts["one"].tail()
        found = await cast.settled("two")
    assert found.doubled == 0
    if sync:
        assert found == Audit(DEVICES * MANY, 0, 0, DEVICES * MANY), "the old one gave no receipt"
    else:
        assert found.lost > 0, "its receipts were good to the devices that heard of no other one"
