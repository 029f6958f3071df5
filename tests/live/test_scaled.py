"""Scaled time: lanes of a line, a scaled world and strategy, and the words that both sides are told."""

import math
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.presets import balanced
from midge.sensor_fleet.linked_connection import Lane
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import load
from midge.sensor_fleet.profiles.time_scaling import FASTEST_RATE, scaled_strategy
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.virtual import LIVE_SPEED_UP, ProfileFleet

NAMES = tuple(f"device-{number}" for number in range(40))


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 10**6)), min_size=1, max_size=30),
    st.floats(1, 1e9),
    st.floats(0, 5),
)
def test_a_lane_keeps_order_and_takes_its_time(
    packets: list[tuple[float, int]], bandwidth: float, latency: float
) -> None:
    lane, now, last = Lane(bandwidth, latency), 0.0, -math.inf
    for gap, size in packets:
        now += gap
        there = lane.enter(size, now)
        assert there >= last
        assert there >= now + size / bandwidth + latency - 1e-9
        last = there
    assert last >= sum(size for _, size in packets) / bandwidth + latency - 1e-9
    assert lane.moved == sum(size for _, size in packets)


def test_a_lane_without_limits_delays_nothing() -> None:
    lane = Lane(math.inf, 0.0)
    assert [lane.enter(1000, now) for now in (1.0, 2.0)] == pytest.approx([1.0, 2.0], abs=1e-12)


@pytest.mark.parametrize("profile", ["farm", "phones"])
def test_a_scaled_world_is_the_same_one_faster(profile: str) -> None:
    world = Population(load(profile), NAMES, 3, samples=320, values=1000)
    fast = world.scaled(60)
    for name in NAMES:
        assert fast.seconds(name) * 60 == pytest.approx(world.seconds(name))
        assert fast.joins(name) * 60 == pytest.approx(world.joins(name))
        slow, quick = world.link(name), fast.link(name)
        assert (quick.bandwidth, quick.latency * 60) == pytest.approx((60 * slow.bandwidth, slow.latency))
        left, gone = world.leaves(name), fast.leaves(name)
        assert (left is None) == (gone is None)
        if left and gone:
            assert gone.at * 60 == pytest.approx(left.at) and gone.goodbye == left.goodbye
        for of in ("outages", "pauses"):
            slow_spans, spans = ([*chain(*islice(getattr(one, of)(name), 5))] for one in (world, fast))
            assert [60 * value for value in spans] == pytest.approx(slow_spans)


def test_a_scaled_strategy_goes_with_it() -> None:
    usual = balanced(release_interval=600.0, deadline=900.0)
    fast = scaled_strategy(usual, 60)
    assert (fast.release_interval, fast.deadline) == (10, 15)
    assert fast.byte_rate == FASTEST_RATE
    assert scaled_strategy(usual, 1) == usual


def test_words_say_all_that_is_not_usual() -> None:
    setting = Setting(data="x.npz", seed=4, model="linear", learning_rate=0.05, local_steps=3)
    live = ProfileFleet(setting, profile="farm", devices=77, interval=1800.0, speed_up=50.0, federation="f")
    assert ProfileFleet.parse(live.words()) == live
    assert ProfileFleet(Setting(), speed_up=LIVE_SPEED_UP).words() == ""
    with pytest.raises(ValueError, match="form name=value; names are"):
        ProfileFleet.parse("devices=many")
    with pytest.raises(ValueError, match="speed-up of 0"):
        ProfileFleet.parse("speed_up=0")
