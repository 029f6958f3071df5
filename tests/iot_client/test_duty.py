"""A device that sleeps: awake for what it has to do and no longer, asleep without being lost, bounded in everything."""

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.broker.embedded.in_memory import Twin
from midge.iot_client.board.duty_cycle import SPREAD, Duty, DutyCycle
from midge.iot_client.connection import connection_loop
from midge.iot_client.device import Device
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession, SessionSettings, Work
from midge.wire import messages
from midge.wire.messages import DeviceState, Hello
from tests.federation.live import Log, aggregator, clients, device, serving, status
from tests.iot_client.test_session import Driver, accepted, announcement, made, receipt
from tests.iot_client.test_session import status as aggregator_status

pytestmark = pytest.mark.virtual


@given(every=st.floats(10, 1e6), share=st.floats(0.01, 1), at=st.floats(0, 1e6), chance=st.floats(0, 1))
def test_a_cycle_keeps_its_length_whatever_its_waking_took(
    every: float, share: float, at: float, chance: float
) -> None:
    cycle = DutyCycle(Duty(every, awake=every * share))
    cycle.wake(at)
    assert not cycle.over(at, at_rest=False, busy=False)
    assert cycle.over(at, at_rest=True, busy=False) and not cycle.over(at, at_rest=True, busy=True)
    end = at + every * share
    assert cycle.over(end + 1, at_rest=False, busy=False) and not cycle.over(end + 1, at_rest=False, busy=True)
    seconds = cycle.sleep(end, 1e9, chance)
    assert cycle.wakes == 1e9 + seconds and cycle.asleep
    assert seconds == pytest.approx(max(1, every * (1 - share) + SPREAD * every * (2 * chance - 1)), rel=1e-3, abs=1)


def test_what_was_trained_has_all_the_patience_to_be_settled() -> None:
    cycle = DutyCycle(Duty(1000, awake=100))
    cycle.wake(0)
    assert cycle.condition() is None
    cycle.trained(500)
    assert cycle.condition() == "it has trained since it woke"
    assert not cycle.over(599, at_rest=False, busy=False) and cycle.over(600, at_rest=False, busy=False)
    cycle.wake(1000)
    assert cycle.condition() is None


def test_a_device_without_duty_never_sleeps() -> None:
    cycle = DutyCycle(None)
    cycle.trained(0)
    assert cycle.condition() is None and not cycle.over(1e9, at_rest=True, busy=False)


@pytest.mark.parametrize(("every", "awake"), [(10, 20), (0, 0), (10, 0)])
def test_a_duty_that_cannot_be_is_refused(every: float, awake: float) -> None:
    with pytest.raises(ValueError, match=r"cannot be awake|it must be a .*number above 0"):
        Duty(every, awake)


# --------------------------------------------------------------- what the session knows


def at_rest(driver: Driver) -> bool:
    return driver.session.at_rest


def test_it_is_at_rest_once_everything_that_this_connection_brought_is_done() -> None:
    driver = Driver()
    assert not at_rest(driver)
    driver.up(1)
    assert not at_rest(driver)  # it fetches
    driver.train()
    assert not at_rest(driver)  # it waits for the receipt
    driver(receipt(1))
    assert at_rest(driver)
    driver(ev.Disconnected(), ev.Connected(), ev.AggregatorSeen(aggregator_status()), receipt(1))
    assert not at_rest(driver)  # what it knows is from before: there may be a newer version
    driver(ev.Hindered("hot"), ev.Announced(announcement(2)))
    assert at_rest(driver)


def test_a_killed_training_is_tried_again_after_a_while_and_less_and_less_often() -> None:
    driver = Driver()
    driver.up(1)
    pauses = []
    for _ in range(4):
        if driver.session.work is Work.FETCHING:
            assert driver.session._cycle.target is not None
            driver(ev.Fetched(ev.Base.of(driver.session._cycle.target)))
        assert driver(ev.Killed("SIGKILL")) == []
        driver(ev.Announced(announcement(2)))
        began = driver.now
        while driver.session.work is Work.RESTING:
            driver.wait(1)
        pauses.append(round(driver.now - began))
    assert pauses == [30, 60, 120, 240]
    driver(ev.Trained(made(), 1))
    assert driver.session._cycle.killed.wait == 30


def test_a_muted_device_trains_from_what_it_has_and_sends_nothing_until_it_may() -> None:
    driver = Driver()
    driver.up(1)
    driver(ev.Hindered(None, "metered"))
    actions = driver.train()  # what was under way goes on
    assert any(isinstance(action, ev.StoreUpdate) for action in actions)
    assert not any(isinstance(action, ev.Send | ev.Offer) for action in actions)
    assert not any(isinstance(action, ev.FetchModel) for action in driver(ev.Announced(announcement(2))))
    assert driver.wait(1000) is not None and driver.session.work is Work.RESTING
    free = driver(ev.Hindered(None, None))
    assert any(isinstance(action, ev.Send) for action in free)
    assert any(isinstance(action, ev.FetchModel) for action in free)


def test_an_outbox_that_is_full_in_bytes_holds_training_back_until_something_is_settled() -> None:
    driver = Driver()
    driver.session = DeviceSession(
        "d", driver.session.outbox, [], 1, lambda: 0.5, settings=SessionSettings(outbox_bytes=100)
    )
    driver.up(1)
    driver.train(60)
    driver(ev.Announced(announcement(2)))
    driver.train(60)
    assert driver(ev.Announced(announcement(3))) == [] and driver.wait(5) == []
    assert any(isinstance(action, ev.FetchModel) for action in driver(receipt(1, accepted(1))))


# ------------------------------------------------------------------------- real devices


def sleeper(twin: Twin, name: str, log: Log, duty: Duty, **options: Any) -> Device:
    return device(twin, name, log, duty=duty, **options)


async def test_devices_wake_train_once_wait_for_their_receipts_and_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_loop, "_POLL", 0.01)
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    duty = Duty(15, awake=10)
    async with serving(server, device(twin, "b", log)):
        a = sleeper(twin, "a", log, duty)
        async with serving(a):
            await log.until(lambda: log.of("sleeping", device="a"))
            assert a.holding == 0 and not clients(twin, "-a-")
            (retained,) = twin.router._retained_on("midge/1/f/status/a")
            hello, _ = messages.decode(Hello, retained.payload)
            assert hello.state is DeviceState.SLEEPING and 0 < hello.wakes - time.time() < 20
            await log.until(lambda: log.of("device", device="a", state="sleeping"))
            await log.until(lambda: len(log.of("sleeping", device="a")) >= 3)
    trained, slept = log.of("trained", device="a"), log.of("sleeping", device="a")
    assert 3 <= len(trained) <= len(slept) + 1  # once in each waking
    assert {each["verdict"] for each in log.of("receipt", device="a")} == {"accepted"}
    assert not log.of("device", device="a", state="lost")


async def test_without_an_aggregator_it_is_awake_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_loop, "_POLL", 0.01)
    twin, log = Twin(), Log()
    began = time.monotonic()
    async with serving(sleeper(twin, "a", log, Duty(30, awake=3))):
        await log.until(lambda: log.of("sleeping"))
        assert time.monotonic() - began == pytest.approx(3, abs=0.5)
        assert status(twin, "a") is DeviceState.SLEEPING


async def test_once_alone_trains_once_and_ends(tmp_path: Path) -> None:
    """Seen to fail: it was refused without a length of sleep, which says nothing for a board that a timer powers up."""
    twin, log, told = Twin(), Log(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log)):
        await log.until(lambda: log.of("release"))
        async with asyncio.timeout(60):
            await sleeper(twin, "a", told, Duty(math.inf, awake=30, once=True)).serve()
        assert len(told.of("receipt", verdict="accepted")) == 1 and status(twin, "a") is DeviceState.SLEEPING
    (slept,) = told.of("sleeping")
    assert (slept["wakes"], slept["seconds"]) == (0.0, 0.0)


async def test_once_is_once_and_a_broker_that_vanishes_does_not_keep_it_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_loop, "_POLL", 0.01)
    twin, log = Twin(), Log()
    serve = asyncio.create_task(sleeper(twin, "a", log, Duty(3600, awake=1, once=True)).serve())
    await log.until(lambda: log.of("connected"))
    twin.kill()
    await serve
    assert 3000 < log.of("sleeping")[0]["seconds"] < 4000
