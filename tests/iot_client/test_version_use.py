"""A device hears of versions only while one is of use to it, and misses none that is."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from midge.aggregator.core.participation_controller import Pace
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.session import events as ev
from midge.iot_client.session.session import DeviceSession
from midge.iot_client.session.training_cycle import HINDERED
from midge.wire.messages import Participation
from tests.federation.live import STRATEGY, Log, aggregator, device, serving
from tests.iot_client.test_session import Driver, accepted, announcement, kinds, receipt, status

HOURS = 3600.0


def told(version: int, *, interval: float = 6 * HOURS) -> ev.Announced:
    asked = Participation(interval=interval)
    return ev.Announced(announcement(version).model_copy(update={"participation": asked}))


def trained(driver: Driver, version: int, *, interval: float = 6 * HOURS) -> list[ev.Action]:
    """Train from a version; the update is accepted."""
    driver(told(version, interval=interval))
    actions = driver.train()
    return actions + driver(receipt(driver.session.next - 1, accepted(driver.session.next - 1)))


def up(*, skipped: int = 24, interval: float = 6 * HOURS) -> Driver:
    """A device that has trained twice, `skipped` versions apart."""
    driver = Driver()
    driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(0))
    assert ev.IgnoreVersions() not in trained(driver, 1, interval=interval), "how many pass is not known"
    driver.wait(6 * HOURS)
    assert (ev.IgnoreVersions() in trained(driver, 1 + skipped, interval=interval)) == (skipped > 2 and interval > 0)
    return driver


def test_none_is_announced_to_a_device_in_the_interval_between_two_trainings() -> None:
    driver = up()
    assert ev.FollowVersions() not in driver.wait(5.9 * HOURS)
    assert driver.wait(0.2 * HOURS)[:1] == [ev.FollowVersions()]
    (fetch,) = driver(told(49))
    assert isinstance(fetch, ev.FetchModel)


def test_a_version_that_was_announced_long_ago_is_not_trained_from() -> None:
    driver = up()
    assert driver(told(26)) == [], "it was on its way"
    assert kinds(driver.wait(6 * HOURS)) == [ev.FollowVersions]
    (fetch,) = driver(told(49))
    assert isinstance(fetch, ev.FetchModel) and fetch.announcement.version == 49


@pytest.mark.parametrize(("skipped", "interval"), [(2, 6 * HOURS), (24, 0.0)])
def test_where_few_versions_pass_or_each_is_of_use_a_device_listens(skipped: int, interval: float) -> None:
    driver = up(skipped=skipped, interval=interval)
    assert ev.IgnoreVersions() not in driver.wait(7 * HOURS)


def test_a_device_that_may_not_train_reads_now_and_then_and_at_once_when_it_may() -> None:
    """An announcement may allow it more bytes or energy."""
    driver = up()
    driver(ev.Hindered("on battery", None, None))
    assert kinds(driver.wait(6 * HOURS)) == [ev.FollowVersions]
    assert driver(told(49)) == [ev.IgnoreVersions()]
    assert kinds(driver.wait(HINDERED)) == [ev.FollowVersions]
    assert driver(told(53)) == [ev.IgnoreVersions()]
    assert driver(ev.Hindered(None, None, None)) == [ev.FollowVersions()]
    assert driver(ev.Hindered(None, None, None)) == [], "it has not come yet"
    assert kinds(driver(told(54))) == [ev.FetchModel]


def test_a_new_connection_and_a_restarted_aggregator_are_listened_to() -> None:
    """The aggregator may come back with another interval, or ask for statistics again."""
    driver = up()
    driver(ev.AggregatorSeen(status(boot=2)))
    assert ev.FollowVersions() in driver.wait(0)
    assert kinds(driver(told(49, interval=0.0), receipt(2))) == [ev.FetchModel]

    driver = up()
    driver(ev.Disconnected())
    assert ev.IgnoreVersions() in driver(ev.Connected(), ev.AggregatorSeen(status()), receipt(2)), "in the interval"
    driver(ev.Disconnected())
    assert kinds(driver(ev.Connected(), ev.AggregatorSeen(status()), told(50, interval=0.0))) == [ev.Greet]
    assert kinds(driver(receipt(2))) == [ev.FetchModel]


@pytest.mark.virtual
async def test_a_fleet_with_an_interval_trains_as_before_and_hears_of_few_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: a device heard of each version, 16 for each of its trainings."""
    twin, log, heard = Twin(), Log(), Counter[str]()
    handle = DeviceSession.handle

    def counted(session: DeviceSession, event: ev.Event, now: float) -> list[ev.Action]:
        heard.update([type(event).__name__])
        return handle(session, event, now)

    monkeypatch.setattr(DeviceSession, "handle", counted)
    paced = replace(STRATEGY, pace=Pace(interval=6.0, rest=0.0))
    devices = [device(twin, f"d{number}", log) for number in range(30)]
    async with serving(aggregator(twin, tmp_path / "store", log, strategy=paced), *devices):
        await log.until(lambda: len(log.of("update", verdict="accepted")) >= 90)
        begun = log.of("release")[-1]["version"]
        heard.clear()
        await log.until(lambda: heard["Trained"] >= 300)
        versions = log.of("release")[-1]["version"] - begun
    assert versions >= 10 * 12, "each device skips many"
    assert heard["Announced"] < 6 * heard["Trained"]
    assert max(event["staleness"] for event in log.of("update")) <= 2 * len(devices), "trained from the newest"
