"""Releases within a rate of bytes."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core import events as ev
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import fedasync
from midge.aggregator.core.release_pacer import AT_ONCE, fetched, interval
from midge.aggregator.core.staleness import constant
from midge.wire import messages
from midge.wire.sharing import MESSAGE
from tests.aggregator.rig import TOPICS, rig


def seconds(**changed: float) -> float:
    usual = {"announcement": 400, "step": 1000, "update": 100.0, "devices": 10, "fetches": 10.0, "rate": 5.0}
    return interval(**{**usual, **changed})  # type: ignore[arg-type]


@given(
    st.integers(100, 10**4),
    st.integers(1, 10**7),
    st.integers(1, 10**5),
    st.floats(0, 1e6),
    st.floats(1.0, 1e9),
)
def test_what_a_release_costs_is_earned_before_the_next(
    announcement: int, step: int, devices: int, fetches: float, rate: float
) -> None:
    update = 0.5 * step
    earned = rate * seconds(
        announcement=announcement, step=step, update=update, devices=devices, fetches=fetches, rate=rate
    )
    sent = (announcement + AT_ONCE * MESSAGE) * devices + (step + 4 * MESSAGE + update) * min(fetches, devices)
    assert abs(sent - earned) <= 1e-6 * sent


def test_without_a_limit_or_anybody_there_is_nothing_to_wait_for() -> None:
    assert seconds() > 0
    assert seconds(rate=0) == 0
    assert seconds(devices=0) == 0
    assert seconds(announcement=0) == 0, "nothing was published, as in a simulation"


def test_the_mean_follows_the_fetches() -> None:
    mean = 50.0
    for _ in range(40):
        mean = fetched(mean, 10)
    assert abs(mean - 10) < 0.1


def test_releases_keep_to_a_rate_of_bytes(tmp_path: Path) -> None:
    """Ten devices are there, an update comes each second: releases cost no more than allowed, and go on."""
    sent = {}
    for rate in (0.0, 80_000.0, 40_000.0):
        strategy = fedasync(
            1.0, constant(), norm_limit=None, release_floor=1, byte_rate=rate, form="delta", bounded=False
        )
        with rig(tmp_path / str(rate), strategy) as life:
            life.core.handle(ev.DevicesOnline(10), 0.0)
            for device in "bc":  # the first step waits until the norms of three devices are known
                life.send(device, 1, [1, 0, 0, 0], now=0.5)
            for second in range(1, 301):
                life.send("a", second, [1, 0, 0, 0], now=float(second))
            posts = [post for post in life.posts if post.topic == TOPICS.announcement()]
            sent[rate] = 10 * sum(len(post.payload) + AT_ONCE * MESSAGE for post in posts) / 300
            version = life.core.version
            assert version > 5
            life.send("a", 301, [1, 0, 0, 0], now=301.0)
            life.tick(1000.0)
            assert life.core.version > version
    assert sent[0.0] > 200_000
    assert 30_000 < sent[80_000.0] < 84_000
    assert 10_000 < sent[40_000.0] < 42_000


def test_a_few_releases_after_a_rest_do_not_wait(tmp_path: Path) -> None:
    strategy = fedasync(1.0, constant(), norm_limit=None, release_floor=1, byte_rate=1e6, form="delta", bounded=False)
    with rig(tmp_path, strategy) as life:
        life.core.handle(ev.DevicesOnline(10), 0.0)
        for device in "bc":
            life.send(device, 1, [1, 0, 0, 0], now=50.0)
        for seq in range(1, 21):
            life.send("a", seq, [1, 0, 0, 0], now=50.0)
        assert 3 < life.core.version < 20, "a second's worth, and no more"


def test_a_fleet_that_is_gone_for_a_moment_is_counted_as_if_it_were_there(tmp_path: Path) -> None:
    """It comes back as a whole: the first ones must not take the rate for theirs alone. Also after a restart."""
    with rig(tmp_path) as life:
        life.core.handle(ev.DevicesOnline(300), 0.0)
        life.tick(10.0)
        life.core.handle(ev.DevicesOnline(2), 0.0)
        life.tick(11.0)
        assert life.core.thrift.devices > 290
        life.core.handle(ev.DevicesOnline(250), 0.0)
        life.tick(20.0)
        life.tick(7000.0)
        assert life.core.thrift.devices == 250
        for number in range(40):
            life.send(f"device-{number}", 1, [1, 0, 0, 0], now=7000.0)
    with rig(tmp_path) as life:
        life.core.handle(ev.DevicesOnline(1), 0.0)
        life.tick(0.1)
        assert life.core.thrift.devices == 40


def test_a_fleet_that_has_grown_is_announced_again(tmp_path: Path) -> None:
    """Devices that wait for the first release learn how many they are, where that makes a difference."""
    strategy = fedasync(1.0, constant(), norm_limit=None, release_floor=1, byte_rate=8e6, form="delta", bounded=False)
    with rig(tmp_path, strategy) as life:
        before = len(life.posts)
        life.core.handle(ev.DevicesOnline(1), 0.0)
        life.core.handle(ev.ReleasePublished(400, 100), 0.0)
        life.tick(9.0)
        assert len(life.posts) == before, "what is small waits for nothing, whoever has it"
        life.core.handle(ev.ReleasePublished(400, 10**6), 0.0)
        life.tick(10.0)
        announced = messages.decode_announcement(life.posts[-1].payload)
        assert announced.devices == 1, "else the only device waits as one of twenty would"
        life.core.handle(ev.DevicesOnline(300), 0.0)
        life.tick(12.0)
        announced = messages.decode_announcement(life.posts[-1].payload)
        assert (announced.devices, announced.byte_rate, announced.version) == (300, 8e6, life.core.version)
        told = len(life.posts)
        life.core.handle(ev.DevicesOnline(310), 0.0)
        life.tick(20.0)
        assert len(life.posts) == told, "not so many more"
        life.core.handle(ev.DevicesOnline(3000), 0.0)
        life.tick(20.5)
        assert len(life.posts) == told + 1
        life.core.handle(ev.DevicesOnline(9000), 0.0)
        life.tick(20.9)
        assert len(life.posts) == told + 1, "once a second"


def test_who_takes_part_and_how_many_they_are_is_told_in_one_announcement(tmp_path: Path) -> None:
    strategy = fedasync(1.0, constant(), release_floor=1, byte_rate=8e6, pace=Pace(updates_per_second=5, share=0.1))
    with rig(tmp_path, strategy) as life:
        life.core.handle(ev.ReleasePublished(400, 10**6), 0.0)
        life.core.handle(ev.DevicesOnline(300), 0.0)
        life.core.steering.begin(0.0)
        actions = life.core.tick(60.0)
        assert actions.count(ev.Announce()) == 1
        assert life.core.tick(62.0).count(ev.Announce()) == 0
