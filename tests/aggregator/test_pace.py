"""The share of devices that train is steered to a target, against fleets simulated in virtual time."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.aggregator.core.participation_controller import PERIOD, Pace, ParticipationController
from midge.wire.participation import takes_part

LINEAGE = bytes(16)


def simulate(pace: Pace, devices: int, seconds: float, version_every: float, answering: float = 1.0) -> list[float]:
    """When updates come, of a fleet in which each asked device trains once from each version."""
    steering = ParticipationController(pace)
    steering.live = devices
    steering.begin(0.0)
    came: list[float] = []
    share, done = 0.0, set[str]()
    now, version = 0.0, 0
    pending: list[float] = []
    while now < 2000:
        if now % version_every == 0:
            version += 1
            steering.released(now)
            done, share = set(), 0.0
        for device in range(devices if steering.share > share else 0):
            name = f"d{device}"
            if device >= answering * devices or name in done:
                continue
            if takes_part(name, LINEAGE, 0, version, steering.share):
                done.add(name)
                pending.append(now + seconds)
        share = steering.share
        ready = [time for time in pending if time <= now]
        pending = [time for time in pending if time > now]
        for time in ready:
            steering.count_update(seconds)
            came.append(time)
        steering.tick(now)
        now += 5
    return [time for time in came if time > 1000]


@settings(max_examples=6, deadline=None)
@given(st.integers(40, 200), st.floats(0.3, 2.0))
def test_a_rate_is_met(devices: int, target: float) -> None:
    came = simulate(Pace(updates_per_second=target), devices, 5, 30)
    possible = devices / 30
    assert len(came) / 1000 == pytest.approx(min(target, possible), rel=0.4)


def test_a_number_at_once_is_met() -> None:
    came = simulate(Pace(concurrency=10), 200, 20, 20)
    assert len(came) / 1000 * 20 == pytest.approx(10, rel=0.4)


def test_a_cohort_that_does_not_answer_is_widened_until_somebody_does() -> None:
    came = simulate(Pace(cohort=5), 200, 5, 200, answering=0.05)
    assert came


def test_a_cohort_that_makes_no_release_is_widened() -> None:
    """Its devices have answered, and are fewer than a release takes: it would wait for others for ever."""
    steering = ParticipationController(Pace(cohort=2))
    steering.live = 20
    steering.released(0.0)
    steering.count_update(1.0)
    assert not steering.tick(2 * PERIOD)
    assert steering.tick(4 * PERIOD, starved=True)
    assert steering.share == pytest.approx(0.2)


def test_a_share_adds_devices_and_takes_none_away() -> None:
    for share in (0.01, 0.1, 0.5):
        few = {d for d in range(2000) if takes_part(f"d{d}", LINEAGE, 0, 7, share)}
        more = {d for d in range(2000) if takes_part(f"d{d}", LINEAGE, 0, 7, 2 * share)}
        assert few < more
        assert len(few) == pytest.approx(2000 * share, rel=0.4)
    other = {d for d in range(2000) if takes_part(f"d{d}", LINEAGE, 0, 8, 0.5)}
    assert len(other & more) < 1500


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"share": 0.0}, "share"),
        ({"cohort": 3, "concurrency": 4}, "give one of"),
        ({"updates_per_second": -1.0}, "updates_per_second is -1.0: it must be a finite number above 0"),
        ({"bytes_per_month": 0}, "bytes_per_month"),
    ],
)
def test_what_cannot_be_met_is_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Pace(**arguments)
