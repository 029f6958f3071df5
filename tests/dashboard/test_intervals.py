"""What is kept of the past is bounded, and nothing that was counted is lost by it."""

from itertools import pairwise

from midge.dashboard.intervals import COLUMNS, FIRST, LONGEST, MOST, Interval, Intervals, MetricSpread


def packed(intervals: Intervals, after: int = 0) -> list[dict[str, float | int | None]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in intervals.packed(after)]


def test_intervals_grow_instead_of_their_number_and_every_update_stays_counted() -> None:
    intervals, begun = Intervals(), 1_000_000.0
    for second in range(20_000):
        intervals.at(begun + second).accepted += 1
    found = packed(intervals)
    assert MOST / 2 - 1 <= len(found) <= MOST and intervals.step == 64.0 and intervals.epoch == 5
    assert sum(row["accepted"] or 0 for row in found) + intervals.at(begun + 19_999).accepted == 20_000
    assert all(later["time"] - row["time"] == 64.0 for row, later in pairwise(found))  # type: ignore[operator]


def test_after_a_day_the_oldest_intervals_go() -> None:
    intervals = Intervals()
    for minute in range(7 * 24 * 60):
        intervals.at(60.0 * minute).refused += 1
    found = packed(intervals)
    assert intervals.step == LONGEST and len(found) == MOST
    assert found[0]["time"] >= 60 * 7 * 24 * 60 - LONGEST * (MOST + 2)  # type: ignore[operator]


def test_a_clock_that_jumps_far_ahead_costs_one_new_beginning() -> None:
    intervals = Intervals()
    intervals.at(10.0).accepted += 1
    assert intervals.at(1e9) is intervals.at(1e9 + FIRST / 2)
    assert packed(intervals) == [] and intervals.epoch == 1


def test_a_joined_interval_has_the_sum_of_counts_and_the_last_of_what_is_measured() -> None:
    first, second = Interval(accepted=3, online=5, up=10.0), Interval(accepted=4, refused=1, online=6)
    for steps in (0, 0, 1, 9):
        first.stale(steps)
    second.stale(100_000)
    first.add(second)
    found = dict(zip(COLUMNS[1:], first.packed(), strict=True))
    assert (found["accepted"], found["refused"], found["online"], found["up"]) == (7, 1, 6, 10.0)
    assert (found["stale50"], found["stale90"]) == (1, 4096)


def test_only_what_is_over_is_told_and_only_once() -> None:
    intervals = Intervals()
    intervals.at(100.0).accepted += 1
    assert packed(intervals) == []
    intervals.at(100.0 + FIRST)
    (row,) = packed(intervals)
    assert (row["time"], row["accepted"]) == (100.0, 1) and packed(intervals, intervals.newest) == []


def test_the_spread_is_of_devices_each_counted_once() -> None:
    assert MetricSpread.of(0.9, []) == MetricSpread(0.9)
    assert MetricSpread.of(None, [float(value) for value in range(11)]) == MetricSpread(None, 1.0, 5.0, 9.0)
