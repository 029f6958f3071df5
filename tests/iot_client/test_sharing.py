"""Devices share a rate of bytes: what all of them would do at once, they do in turn, and alone none waits."""

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.iot_client.connection.connection_loop import reconnect_delay
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import Work
from midge.wire import sharing
from midge.wire.messages import AggregatorState, Announcement, Participation
from midge.wire.participation import takes_part
from midge.wire.sharing import MESSAGE
from tests.iot_client.test_fetching import MODEL, reached
from tests.iot_client.test_session import Driver, accepted, announcement, made, receipt, sent, status

pytestmark = pytest.mark.virtual

SIZE, PARTS = 100_000, 2
COST = SIZE + 2 * PARTS * MESSAGE


def shared(version: int, *, devices: int, rate: float = 1e6, share: float = 1.0) -> Announcement:
    told = announcement(version)
    frames = tuple(frame._replace(size=SIZE, parts=PARTS) for frame in told.frames if frame.span == 0)
    return told.model_copy(
        update={
            "frames": frames,
            "byte_rate": rate,
            "devices": devices,
            "chunk": 2**18,
            "participation": Participation(share=share),
        }
    )


def driver(seed: int = 0, held: int = 0) -> Driver:
    it = Driver([made(50_000, outbox=7, seq=seq) for seq in range(1, held + 1)], held + 1)
    it.jitter = random.Random(seed).random
    return it


def up(it: Driver, told: Announcement) -> list[ev.Action]:
    return it(ev.Connected(), ev.Announced(told), ev.AggregatorSeen(status()), *answer(it))


def answer(it: Driver) -> list[ev.Event]:
    """Let the greeting's time come, and answer it."""
    it.wait(0)
    while it.session._greeting.due is not None and it.session.link.name == "GREETING":
        if any(isinstance(action, ev.Greet) for action in it.wait(max(0.0, it.session._greeting.due - it.now))):
            break
    return [receipt(it.session.first - 1)]


def fetch_begins(it: Driver) -> float:
    """When the device begins to fetch."""
    while it.session.work is not Work.FETCHING:
        deadline = it.session.deadline
        assert deadline is not None and deadline < 1e4
        it.wait(max(0.0, deadline - it.now))
    return it.now


# ---------------------------------------------------------------------- arithmetic


@given(st.floats(1e3, 1e9), st.integers(1, 10**6), st.integers(0, 10**8), st.integers(0, 1000))
def test_all_of_it_takes_as_long_as_at_the_rate(rate: float, devices: int, size: int, messages: int) -> None:
    seconds = sharing.spread(rate, devices, size, messages)
    exact = (devices - 1) * (size + MESSAGE * messages) / rate
    assert seconds == (pytest.approx(exact) if exact >= sharing.LEAST else 0)
    assert sharing.spread(0.0, devices, size, messages) == 0


def test_some_are_assumed_where_nobody_knows() -> None:
    assert sharing.spread(1e6, 0, SIZE, 1) == sharing.spread(1e6, sharing.UNKNOWN, SIZE, 1) > 0
    assert sharing.pace(1e6, 0) == 1e6 / sharing.AT_A_TIME
    assert sharing.pace(1e6, 1) == 1e6
    assert sharing.pace(0, 1) == float("inf")


# ------------------------------------------------------------------------- fetching


def test_a_fleet_fetches_a_release_in_turn() -> None:
    """At the rate, and with few at a time: in each second about as many bytes begin as may."""
    devices = 300
    begins = []
    for number in range(devices):
        it = driver(number)
        up(it, shared(1, devices=devices))
        begins.append(fetch_begins(it))
    whole = (devices - 1) * COST / 1e6
    assert 0.9 * whole < max(begins) <= whole + 12  # the greeting has its own turn before
    quarters = np.histogram(begins, bins=4, range=(0, whole))[0]
    assert min(quarters) > devices / 8


def test_a_small_fleet_or_a_small_model_waits_for_nothing() -> None:
    it = driver()
    up(it, shared(1, devices=1))
    assert it.session.work is Work.FETCHING
    it = driver()
    up(it, shared(1, devices=300, rate=1e9))
    assert it.session.work is Work.FETCHING
    it = driver()
    up(it, shared(1, devices=300, rate=0))
    assert it.session.work is Work.FETCHING


def test_who_is_asked_counts_not_who_is_there() -> None:
    it = driver()
    it.session._cycle._device = next(
        name for name in map(str, range(1000)) if _takes_part(name, shared(1, devices=1000, share=0.01))
    )
    up(it, shared(1, devices=1000, share=0.01))
    assert fetch_begins(it) - it.session._cycle._fetch_began == 0
    assert it.now < 10 * COST / 1e6 + 40


def _takes_part(name: str, told: Announcement) -> bool:
    return takes_part(name, told.lineage, told.generation, told.version, told.participation.share)


def test_a_turn_is_kept_while_versions_go_by_and_grows_with_the_fleet() -> None:
    it = driver(3)
    it.jitter = lambda: 0.5
    up(it, shared(1, devices=101))
    since = it.now
    half = 0.5 * 100 * COST / 1e6
    it.wait(half / 2)
    it(ev.Announced(shared(2, devices=101)))
    assert it.session._cycle.slot_timer.due == pytest.approx(since + half)
    it(ev.Announced(shared(3, devices=201)))
    assert it.session._cycle.slot_timer.due == pytest.approx(since + 2 * half)
    assert fetch_begins(it) == pytest.approx(since + 2 * half)
    assert it.session._cycle.target is not None and it.session._cycle.target.version == 3


def test_who_trains_for_long_fetches_at_once_and_who_is_quick_waits_for_its_part() -> None:
    spread = 100 * (COST + 10 + 2 * MESSAGE) / 1e6
    for training in (0.2 * spread, 5 * spread):
        it = driver(5)
        up(it, shared(1, devices=101))
        began = fetch_begins(it)
        (train,) = it(ev.Fetched(ev.Base.of(shared(1, devices=101))))
        assert isinstance(train, ev.Train)
        it.wait(training)
        it(ev.Announced(shared(2, devices=101)))
        it(ev.Trained(made(), next(it.keys)))
        assert fetch_begins(it) - began == pytest.approx(max(training, spread))


def test_a_turn_to_fetch_is_one_to_send_as_well() -> None:
    """Small steps and large updates: whoever fetches soon after another sends soon after it, too."""
    it = driver()
    it.jitter = lambda: 0.5
    up(it, shared(1, devices=101))
    fetch_begins(it)
    it(ev.Fetched(ev.Base.of(shared(1, devices=101))))
    it(ev.Trained(made(200_000), next(it.keys)))
    it.wait(5)
    it(ev.Announced(shared(2, devices=101)))
    assert it.session._cycle.slot_timer.due == pytest.approx(it.now + 0.5 * 100 * (COST + 200_000 + 2 * MESSAGE) / 1e6)


def test_a_turn_ends_with_the_connection() -> None:
    it = driver(4)
    up(it, shared(1, devices=101))
    it(ev.Disconnected())
    assert it.session.deadline is None
    it.now += 1000.0
    up(it, shared(1, devices=101))
    assert it.session.work is Work.RESTING, "all others are back too"


# ------------------------------------------------------------------ an aggregator is back


def test_a_fleet_greets_and_sends_in_turn_what_it_holds() -> None:
    devices, held = 500, 2
    greeted, sending = [], []
    for number in range(devices):
        it = driver(number, held)
        it(ev.Connected(), ev.Announced(shared(1, devices=devices, rate=8e6)), ev.AggregatorSeen(status()))
        while not any(isinstance(action, ev.Greet) for action in it.wait(0.05)):
            assert it.now < 60
        greeted.append(it.now)
        it(receipt(0))
        began, actions = it.now, []
        while not (actions := sent(it.wait(0.05))):
            assert it.now < 600
        assert actions == [1, 2]
        sending.append(it.now - began)
        it(receipt(2, accepted(1), accepted(2)))
        assert it.session.holding == 0
    assert max(greeted) == pytest.approx((devices - 1) * (400 + 2 * MESSAGE) / 8e6, rel=0.1, abs=0.1)
    assert max(sending) == pytest.approx((devices - 1) * held * (50_000 + 2 * MESSAGE) / 8e6, rel=0.1)
    assert np.median(sending) == pytest.approx(max(sending) / 2, rel=0.2)


def test_a_pause_ends_for_everybody_and_so_they_go_on_in_turn() -> None:
    it = driver(1, held=1)
    it.jitter = lambda: 0.5
    up(it, shared(1, devices=1000, rate=8e6))
    it(ev.AggregatorSeen(status(AggregatorState.PAUSED)))
    it.wait(1000)
    assert sent(it(ev.AggregatorSeen(status()))) == []
    assert sent(it.wait(0.49 * 999 * (50_000 + 2 * MESSAGE) / 8e6)) == []
    assert sent(it.wait(0.02 * 999 * (50_000 + 2 * MESSAGE) / 8e6)) == [1]


# -------------------------------------------------------------------------- the pace


async def test_one_device_does_not_take_what_is_for_all(tmp_path: Path) -> None:
    async with reached(tmp_path) as it:
        it.publish()
        way = it.way()
        size = sum(frame.size for frame in way)
        assert sum(frame.parts for frame in way) > 4
        loop = asyncio.get_running_loop()
        took = {}
        for rate in (0.0, 8.0 * size):
            told = it.announcement.model_copy(update={"byte_rate": rate, "devices": 9})
            began = loop.time()
            state = await it.fetcher.fetch(it.connection, told, way, None)
            took[rate] = loop.time() - began
            assert state.digest() == told.digest
        assert took[8.0 * size] > 0.5 * sharing.AT_A_TIME / 8, MODEL.keys()


def test_a_large_fleet_that_lost_its_broker_comes_back_in_turn() -> None:
    """And a small one as soon as ever."""
    assert all(0.25 <= reconnect_delay(0.5, None) <= 0.75 for _ in range(100)), "nothing is known yet"
    small, large = shared(1, devices=20, rate=8e6), shared(1, devices=3000, rate=8e6)
    assert all(0.25 <= reconnect_delay(0.5, small) <= 0.75 for _ in range(100))
    pauses = [reconnect_delay(0.5, large) for _ in range(1000)]
    whole = 2999 * 12 * MESSAGE / 8e6
    assert 0.9 * whole < max(pauses) <= whole
    assert 0.4 * whole < np.median(pauses) < 0.6 * whole
