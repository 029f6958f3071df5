"""A month's costs under a clock that was wrong: seen to fail with a month that only ever moved forward."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.iot_client.board.usage_budget import Budget, Costs

COSTS = Costs(bytes_per_month=1000)
NOVEMBER = 1_795_608_000.0
"""25 November 2026."""
DAY = 86_400.0


@pytest.mark.parametrize("ahead", [365 * DAY, 54 * 365 * DAY, 70 * DAY])
def test_a_clock_that_was_once_far_ahead_blocks_no_later_month(tmp_path: Path, ahead: float) -> None:
    budget = Budget(tmp_path / "usage", COSTS)
    budget.spend(moved=600, now=NOVEMBER + ahead)
    budget.save()
    budget = Budget(tmp_path / "usage", COSTS)
    budget.spend(moved=500, now=NOVEMBER)
    assert budget.month == "2026-11" and budget.since <= NOVEMBER
    assert budget.spent(None, NOVEMBER) is not None, "what was spent is this month's"
    for month in range(1, 6):
        now = NOVEMBER + month * 31 * DAY
        assert budget.spent(None, now) is None
        budget.spend(moved=600, now=now)
        assert budget.bytes == 600


@given(st.lists(st.tuples(st.floats(0, 4e9), st.integers(0, 400)), min_size=1, max_size=20))
def test_no_history_of_clocks_blocks_the_month_after_next(readings: list[tuple[float, int]]) -> None:
    budget = Budget(None, COSTS)
    for now, moved in readings:
        budget.spend(moved=moved, now=now)
    budget.spend(moved=1, now=NOVEMBER)
    budget.spend(moved=1, now=NOVEMBER + 70 * DAY)
    assert budget.month == time.strftime("%Y-%m", time.gmtime(NOVEMBER + 70 * DAY)) and budget.bytes <= 8002
    assert budget.spent(None, NOVEMBER + 140 * DAY) is None


def test_an_old_announcement_of_an_aggregator_that_is_away_stops_no_month(tmp_path: Path) -> None:
    """It is retained, and read again at each connection: its date was once taken for today's."""
    budget = Budget(tmp_path / "usage", Costs(bytes_per_month=1000))
    issued = 1_790_000_000.0
    for day in range(200):
        now = issued + day * 86_400
        budget.heard(issued, now, current=False)
        budget.spend(moved=30, now=now)
        assert budget.spent(None, now=now) is None
    budget.heard(now + 400 * 86_400, now, current=False)  # later than our clock: that is behind
    assert budget.month == time.strftime("%Y-%m", time.gmtime(now + 400 * 86_400))


@pytest.mark.parametrize("jump", [-365.0, -31.0, -1.0, 0.0, 1.0, 29.0, 366.0, 20_000.0])
def test_a_clock_that_jumps_over_the_turn_of_a_year_and_back_piles_up_no_months(tmp_path: Path, jump: float) -> None:
    """Whatever the jump, two months later what is spent is that of one month at most."""
    budget, began = Budget(tmp_path / "usage", Costs()), 1_830_254_400.0  # 2027-12-31 08:00
    budget.spend(moved=100, now=began)
    budget.spend(moved=100, now=began + jump * 86_400)
    for day in range(1, 91):
        if day % 7 == 0:  # a restart
            budget.save()
            budget = Budget(tmp_path / "usage", Costs())
        budget.spend(moved=100, now=began + day * 86_400)
    assert budget.month == "2028-03" and budget.bytes <= 3100


def test_after_a_clock_is_put_back_what_is_spent_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steady = tmp_path / "usage", [5.0]
    monkeypatch.setattr("midge.iot_client.board.usage_budget.time.monotonic", lambda: steady[0])
    budget = Budget(path, COSTS)
    budget.spend(moved=10, now=NOVEMBER + 54 * 365 * DAY)
    for second in range(0, 3600, 60):
        steady[0] += 60
        budget.spend(moved=1, now=NOVEMBER + second)
    assert Budget(path, COSTS).bytes >= 10 + 51


def test_a_clock_that_was_never_set_turns_no_month() -> None:
    budget = Budget(None, COSTS)
    budget.spend(moved=700, now=NOVEMBER)
    budget.spend(moved=300, now=1000.0)
    assert budget.month == "2026-11" and budget.spent(None, 2000.0) is not None
