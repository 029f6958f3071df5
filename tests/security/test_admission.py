"""Token buckets and quarantine: how much is let in, who is kept out, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.ingress.rate_limits import Admission, IngressLimits
from midge.wire.messages import Verdict

QUIET = IngressLimits(rate=None, fleet_rate=None)


def taken(admission: Admission, device: str, times: int, now: float) -> int:
    return sum(admission.refuses(device, now) is None for _ in range(times))


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.5, 20), st.integers(1, 20))
def test_never_more_is_taken_than_the_burst_and_the_rate_allow(pauses: list[float], rate: float, burst: int) -> None:
    admission = Admission(IngressLimits(rate=rate, burst=burst, fleet_rate=None))
    now, let_in = 0.0, 0
    for pause in pauses:
        now += pause
        let_in += admission.refuses("a", now) is None
        assert let_in <= burst + rate * now + 1e-6


@given(st.floats(0.5, 20), st.integers(1, 20))
def test_who_comes_when_told_to_is_let_in(rate: float, burst: int) -> None:
    admission = Admission(IngressLimits(rate=rate, burst=burst, fleet_rate=None))
    now = 0.0
    for _ in range(50):
        refusal = admission.refuses("a", now)
        if refusal is not None:
            assert refusal.verdict is Verdict.BUSY
            now += refusal.retry_after + 1e-9
            assert admission.refuses("a", now) is None


def test_one_device_does_not_use_up_anothers_share_but_the_fleets() -> None:
    admission = Admission(IngressLimits(rate=1, burst=5, fleet_rate=1, fleet_burst=8))
    assert taken(admission, "a", 20, 0.0) == 5
    assert taken(admission, "b", 20, 0.0) == 3
    assert taken(admission, "c", 20, 2.0) == 2


def test_without_limits_everything_is_taken() -> None:
    assert taken(Admission(QUIET), "a", 10_000, 0.0) == 10_000


def test_a_flood_is_not_looked_at_and_not_answered_each_time() -> None:
    admission = Admission(IngressLimits(rate=10, burst=10, fleet_rate=None))
    assert sum(admission.hears("a", 0.0) for _ in range(5000)) == 200
    told = [refusal.answer for _ in range(200) if (refusal := admission.refuses("b", 0.0)) is not None]
    assert 1 <= sum(told) <= 3


def test_repeated_offences_bring_a_quarantine_that_doubles_and_halves() -> None:
    admission = Admission(IngressLimits(rate=None, fleet_rate=None, strikes=4, quarantine=60))

    def offend(now: float, times: int) -> float:
        return max(admission.offended("a", now) for _ in range(times))

    assert offend(0.0, 3) == 0
    assert offend(0.0, 1) == 60
    refusal = admission.refuses("a", 59.0)
    assert refusal is not None
    assert (refusal.verdict, refusal.retry_after) == (Verdict.QUARANTINED, 1.0)
    assert admission.refuses("a", 60.0) is None  # the way back
    assert offend(60.0, 2) == 120  # on probation half as many are enough, and it lasts twice as long
    for _ in range(2):
        admission.accepted("a")
    assert offend(200.0, 4) == 60  # forgiven, step by step
    assert admission.offended("b", 0.0) == 0


def test_a_quarantine_never_lasts_longer_than_a_receipt_can_say() -> None:
    admission = Admission(IngressLimits(rate=None, fleet_rate=None, strikes=1, quarantine=60))
    now = 0.0
    for _ in range(20):
        now += admission.offended("a", now)
    assert now < 20 * 86_400
    admission.offended("a", now)
    refusal = admission.refuses("a", now)
    assert refusal is not None
    assert refusal.retry_after <= 86_400


def test_offences_within_a_quarantine_do_not_lengthen_it() -> None:
    """What was on its way when it began says nothing new; and nobody is to be kept out for ever by what is old."""
    admission = Admission(IngressLimits(rate=None, fleet_rate=None, strikes=2, quarantine=60))
    assert [admission.offended("a", 1.0) for _ in range(9)] == [0, 60, 0, 0, 0, 0, 0, 0, 0]


def test_only_so_many_devices_are_remembered_and_the_silent_make_room() -> None:
    admission = Admission(IngressLimits(rate=1, burst=2, fleet_rate=None, tracked=100))
    heard = sum(admission.hears(f"n{number}", 0.0) for number in range(10_000))
    assert heard == 100
    assert len(admission._devices) == 100
    assert admission.hears("late", 1000.0)
    assert len(admission._devices) == 1


def test_one_who_is_in_quarantine_is_not_forgotten_to_make_room() -> None:
    admission = Admission(IngressLimits(rate=1, burst=2, fleet_rate=None, strikes=1, quarantine=1000, tracked=3))
    admission.offended("bad", 0.0)
    for name in ("a", "b", "c", "d"):
        admission.hears(name, 500.0)
    refusal = admission.refuses("bad", 600.0)
    assert refusal is not None
    assert refusal.verdict is Verdict.QUARANTINED


@pytest.mark.parametrize(
    "fields", [{"rate": 0}, {"burst": 0.5}, {"fleet_rate": -1}, {"strikes": 0}, {"quarantine": 1e9}, {"tracked": 0}]
)
def test_limits_that_make_no_sense_are_refused_by_name(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        IngressLimits(**fields)  # type: ignore[arg-type]
