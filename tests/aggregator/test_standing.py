"""The standing of a device: what it gives to those that agree with most, and takes from those that oppose them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.standings import Standings

COSINES = st.lists(st.floats(-1, 1), max_size=60)


def after(*cosines: float, norm: float = 1.0, reference: float = 1.0) -> Standings:
    """The standings after one device sent deltas of these cosines."""
    found = Standings()
    for cosine in cosines:
        found.take("a", cosine, norm, reference)
    return found


def factor(standings: Standings, agreement: float = 0.0, typical: float = 1.0) -> float:
    return standings.factor("a", agreement, 0.05, typical, 1.0)


@given(COSINES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_it_stays_within_its_bounds(cosines: list[float], norm: float, reference: float) -> None:
    standings = after(*cosines, norm=norm, reference=reference)
    assert -1 <= standings.of("a") <= 1
    assert 3 * reference <= standings.longest("a", 3 * reference, reference) <= 10 * reference
    assert 0.1 * 0.25 <= factor(standings, typical=norm) <= 1


@given(COSINES, COSINES)
def test_a_checkpoint_brings_it_back(before: list[float], later: list[float]) -> None:
    whole, again = after(*before), Standings()
    again.load(after(*before).dump())
    for cosine in later:
        whole.take("a", cosine, 2.0, 1.0)
        again.take("a", cosine, 2.0, 1.0)
    assert again.dump() == whole.dump()


def test_a_new_device_is_held_to_the_usual_bound() -> None:
    assert Standings().of("a") == 0
    assert Standings().longest("a", 3.0, 1.0) == 3
    assert factor(Standings()) == 1


def test_the_room_of_a_device_is_the_length_that_it_agreed_with() -> None:
    """Its reference falls once most have learned what they can; its own deltas stay as they were."""
    standings = after(*[0.3] * 5, norm=2.5, reference=2.5)
    assert standings.longest("a", 3 * 0.7, 0.7) == pytest.approx(5.0)
    assert standings.longest("a", 3 * 0.1, 0.1) == pytest.approx(1.0), "never beyond ten reference norms"


def test_long_deltas_that_agree_earn_no_room_for_longer_ones() -> None:
    standings = after(*[0.3] * 20, norm=100.0)
    assert standings.of("a") == pytest.approx(0.02)
    assert standings.longest("a", 3.0, 1.0) == 3


def test_one_that_always_opposes_counts_a_tenth() -> None:
    assert factor(after(*[-0.3] * 3)) == pytest.approx(0.1)


def test_one_that_once_agreed_does_not_live_on_it() -> None:
    """Six plain contradictions outweigh five clear agreements."""
    standings = after(*[0.3] * 5, *[-0.3] * 6)
    assert standings.of("a") < 0
    assert factor(standings, agreement=-0.3) < 0.4


def test_weak_contradictions_do_not_undo_clear_agreement() -> None:
    """As for honest devices with other data, late in training."""
    assert after(*[0.3] * 5, *[-0.05] * 50).of("a") > 0.5


def test_deltas_that_suddenly_are_very_long_count_less_and_no_less_than_a_quarter() -> None:
    standings = after(*[0.3] * 5)
    assert factor(standings, typical=5.0) == 1
    assert factor(standings, typical=100.0) == 0.25
    assert factor(after(*[0.3] * 5, norm=4.0, reference=2.0), typical=20.0) == 1, "it is as long as it always was"
