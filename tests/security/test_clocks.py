"""Clocks that are a year off, once or for ever, on either side: at most their owner is stopped, and it is said."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.aggregator.core import records as rec
from midge.aggregator.core.versions import Versions
from midge.aggregator.publish.dating import Dating
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.board.usage_budget import Budget, Costs
from midge.iot_client.session.trust import Trust, Untrusted
from midge.wire import messages, signing
from midge.wire.clocks import DAY
from tests.federation.live import STRATEGY, Log, aggregator, device, serving
from tests.security.keys import Clock, announced, issuer, write_keys
from tests.security.test_federation import trusting

KEY = signing.new_key()
YEAR = 365 * DAY
NOW = 1_790_000_000.0


# ------------------------------------------------------------------- the device's side


class Pair:
    """An aggregator and a device that pins its key, each with a clock of its own."""

    def __init__(self, theirs: float, ours: float = NOW) -> None:
        self.theirs, self.ours, self.steady = Clock(theirs), Clock(ours), 0.0
        self.issuer = issuer(KEY, self.theirs, lifetime=DAY)
        self.issuer.dating._steady = lambda: self.steady
        self.device = Trust([KEY.public], "f", "a")
        self.version = 0

    def passes(self, seconds: float) -> None:
        self.theirs.now += seconds
        self.ours.now += seconds
        self.steady += seconds

    def announce(self, **fields: Any) -> None:
        """Issue the next version and have the device read it."""
        self.version += 1
        payload = self.issuer.announcement(announced(self.version, **fields))
        self.device.announcement(payload, self.ours.now, self.steady)

    def restart(self) -> None:
        """The device begins again with what it had written; the aggregator with what its store says."""
        self.device = Trust([KEY.public], "f", "a", self.device.packed())
        before, self.issuer = self.issuer, issuer(KEY, self.theirs, epoch=self.issuer.epoch, lifetime=DAY)
        self.issuer.dating._steady = lambda: self.steady
        self.issuer.dating.resume(before.dating.last)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_aggregator_a_year_ahead_once_stops_no_device(restarted: bool) -> None:
    """Its first announcement is dated so: there is nothing to compare the clock with."""
    pair = Pair(NOW + YEAR)
    pair.announce()
    assert "clock" in pair.device.doubt
    pair.theirs.now = NOW
    for _ in range(5):
        if restarted:
            pair.restart()
        pair.passes(3600)
        pair.announce()


def test_a_device_that_an_older_version_had_blocked_goes_on_by_its_clock() -> None:
    """What was verified a year ahead is on its disk as the earliest that it can be."""
    pair = Pair(NOW)
    pair.device.newest = pair.device.newest.__class__(
        **{name: getattr(pair.device.newest, name) for name in ("keys",)},
        lineage=announced().lineage,
        epoch=5,
        issued=NOW + YEAR,
    )
    pair.device = Trust([KEY.public], "f", "a", pair.device.packed())
    pair.announce()
    assert pair.device.newest.issued == NOW


def test_a_raised_epoch_lowers_the_floor_of_a_board_whose_clock_was_never_set() -> None:
    """Such a board has no clock that could know better than the one wrong announcement."""
    pair = Pair(NOW + YEAR, ours=100.0)
    pair.announce()
    pair.theirs.now = NOW
    pair.issuer = issuer(KEY, pair.theirs, lifetime=DAY)  # a new store
    with pytest.raises(Untrusted, match="--raise-epoch"):
        pair.announce()
    with pytest.raises(Untrusted):
        Trust([KEY.public], "f", "a", pair.device.packed()).announcement(
            pair.issuer.announcement(announced(9)), 100.0, 0.0
        )
    pair.issuer.epoch += 1
    pair.announce()
    pair.restart()
    pair.passes(60)
    pair.announce()
    assert abs(pair.device.newest.issued - NOW) < DAY


def test_a_device_a_year_ahead_stops_only_itself_and_says_what_to_do() -> None:
    pair = Pair(NOW, ours=NOW + YEAR)
    with pytest.raises(Untrusted, match="this device's clock, which says 2027"):
        pair.announce()
    pair.ours.now = NOW
    pair.announce()


def test_a_device_a_year_behind_goes_on_and_says_so() -> None:
    pair = Pair(NOW, ours=NOW - YEAR / 2)
    for _ in range(3):
        pair.announce()
        assert "see to both" in pair.device.doubt
        pair.passes(DAY)
    pair.ours.now = pair.theirs.now
    pair.announce()
    assert not pair.device.doubt


# --------------------------------------------------------------- the aggregator's side


@pytest.mark.parametrize("off", [-YEAR, YEAR, -NOW, 30 * YEAR], ids=["behind", "ahead", "1970", "2056"])
@pytest.mark.parametrize("at_start", [True, False])
def test_an_aggregator_dates_nothing_by_a_clock_that_contradicts_what_it_issued(off: float, at_start: bool) -> None:
    pair = Pair(NOW)
    pair.announce()
    pair.passes(60)
    pair.theirs.now += off
    if at_start:
        pair.restart()
    for _ in range(4):
        pair.passes(6 * 3600)
        pair.announce()
        assert "set the clock" in pair.issuer.dating.doubt
        assert "--raise-epoch" in pair.issuer.dating.doubt
        assert abs(pair.device.newest.issued - pair.ours.now) < 120
    pair.theirs.now = pair.ours.now  # it was set
    pair.announce()
    assert not pair.issuer.dating.doubt


def test_a_federation_that_rested_for_a_season_believes_its_clock() -> None:
    clock, steady = Clock(NOW), Clock(0.0)
    dating = Dating(clock, steady)
    dating.issue()
    clock.now += 120 * DAY
    later = Dating(clock, steady)
    later.resume(dating.last)
    assert later.issue() == clock.now
    assert not later.doubt


def test_dates_never_go_back() -> None:
    clock, steady = Clock(NOW), Clock(0.0)
    dating, dates = Dating(clock, steady), []
    for off in (0, 100, -3600, 200, -YEAR, YEAR, -100, 50):
        clock.now, steady.now = NOW + steady.now + off, steady.now + 10
        dates.append(dating.issue())
    assert dates == sorted(dates)


def test_a_clock_that_the_operator_vouches_for_is_believed() -> None:
    clock = Clock(NOW)
    dating = Dating(clock, Clock(0.0))
    dating.resume(NOW + YEAR)
    assert dating.now() != NOW
    assert dating.doubt
    dating.believe()
    assert dating.now() == NOW


# ------------------------------------------------------------------------- whole fleets


def skewed(server: Aggregator, off: Callable[[], float]) -> Aggregator:
    server._issuer._clock = lambda: time.time() + off()
    return server


@pytest.mark.virtual
@pytest.mark.parametrize("off", [YEAR, -YEAR / 2], ids=["ahead", "behind"])
@pytest.mark.parametrize("forever", [False, True])
async def test_a_fleet_goes_on_whatever_its_aggregators_clock_says_at_boot(
    tmp_path: Path, off: float, forever: bool
) -> None:
    twin, log = Twin(), Log()
    private, public = write_keys(tmp_path)
    now = [0.0]

    def server() -> Aggregator:
        return skewed(aggregator(twin, tmp_path / "store", log, release_key=private), lambda: now[0])

    devices = [trusting(twin, name, log, public, tmp_path / f"{name}.outbox") for name in "ab"]
    async with serving(*devices):
        async with serving(server()):
            await log.until(lambda: log.of("release", version=3))
        now[0] = off
        async with serving(server()):
            await log.until(lambda: log.of("release", version=6))
        if not forever:
            now[0] = 0.0
        async with serving(server()):
            await log.until(lambda: log.of("release", version=9))
    assert "set the clock" in log.of("clock")[0]["why"]
    assert log.of("clock")[0]["why"] in [alarm["why"] for alarm in log.of("alarm")], "`midge status` did not show it"


@pytest.mark.virtual
async def test_both_channels_of_a_federation_at_rest_are_issued_again(tmp_path: Path) -> None:
    """The serving model was issued once: a device that came the day after never got it."""
    twin, log = Twin(), Log()
    private, _ = write_keys(tmp_path)
    strategy = replace(STRATEGY, serve_interval=0.0)
    server = aggregator(
        twin, tmp_path / "store", log, strategy=strategy, release_key=private, announcement_lifetime=30.0
    )
    server._issuer._clock = time.time  # the virtual one
    issued: dict[str, set[float]] = {"train": set(), "serve": set()}
    async with serving(server):
        await log.until(lambda: log.of("serve"))

        def both() -> bool:
            for channel, dates in issued.items():
                for message in twin.router._retained_on(f"midge/1/f/model/{channel}"):
                    announcement = messages.decode_announcement(message.payload)
                    assert announcement.expires > time.time()
                    dates.add(announcement.issued)
            return min(map(len, issued.values())) >= 4

        await log.until(both)


@pytest.mark.virtual
async def test_what_is_journaled_is_of_the_wall_clock(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server, device(twin, "a", log), device(twin, "b", log)):
        await log.until(lambda: log.of("release", version=4))
    server.open()
    releases = [e.record for e in server.federation.store.entries(0) if isinstance(e.record, rec.ReleaseRecord)]
    server.close()
    dates = [record.at for record in releases]
    assert dates == sorted(dates)
    assert all(abs(date - time.time()) < DAY for date in dates)


def test_releases_of_an_older_store_leave_no_gap_of_half_a_century() -> None:
    """They were dated by a clock that begins with the machine."""
    versions = Versions()
    for number, at in enumerate((5000.0, 5010.0, NOW, NOW + 10.0), start=1):
        versions.add(number, number, at)
    versions.ahead = NOW - 90.0
    versions.shift(100.0)
    assert [versions.age(number, 100.0) for number in (4, 3, 2, 1)] == [0, 10, 10, 20]
    versions.add(5, 5, NOW + 30.0)
    assert versions.age(5, 125.0) == 5
    assert versions.age(4, 125.0) == 25


# ------------------------------------------------------------------------------ months


def test_a_month_that_only_a_wrong_clock_began_is_given_up(tmp_path: Path) -> None:
    """One boot in 2080 blocked a device for 54 years, and what it had spent was forgotten."""
    costs = Costs(bytes_per_month=1000)
    budget = Budget(tmp_path / "usage", costs)
    budget.spend(moved=600, now=NOW)
    budget.spend(moved=300, now=NOW + 54 * YEAR)
    budget.save()
    again = Budget(tmp_path / "usage", costs)
    again.spend(moved=50, now=NOW)
    again.heard(NOW - 60, NOW)
    assert (again.month, again.bytes) == (time.strftime("%Y-%m", time.gmtime(NOW)), 950)
    again.spend(moved=50, now=NOW)
    assert again.spent(None, NOW)
    assert again.spent(None, NOW + 40 * DAY) is None


def test_a_month_follows_the_aggregator_where_the_devices_clock_is_wrong_for_ever(tmp_path: Path) -> None:
    budget = Budget(None, Costs(bytes_per_month=1000))
    for month in range(3):
        real = NOW + 31 * DAY * month
        wrong = real + 54 * YEAR
        budget.spend(moved=10, now=wrong)
        budget.heard(real, wrong)
        budget.spend(moved=900, now=wrong + 5)
        assert budget.month == time.strftime("%Y-%m", time.gmtime(real))
        assert budget.bytes in (900, 910)
        assert budget.spent(None, wrong + 5) is None


def test_what_was_spent_is_written_by_the_steady_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a clock that was put back nothing was written for as long as it had been ahead."""
    steady = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: steady[0])
    budget = Budget(tmp_path / "usage", Costs())
    budget.spend(moved=1, now=NOW + 54 * YEAR)
    steady[0] += 700
    budget.spend(moved=1, now=NOW)
    assert Budget(tmp_path / "usage", Costs()).bytes == 2
