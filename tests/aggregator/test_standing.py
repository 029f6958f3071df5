"""The standing of a device: what it takes from those that oppose most of the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.standings import Standings
from midge.aggregator.model.consensus import Consensus, direction

COSINES = st.lists(st.floats(-1, 1), max_size=60)


def after(*cosines: float) -> Standings:
    """The standings after one device sent deltas of these cosines."""
    found = Standings()
    for cosine in cosines:
        found.take("a", cosine)
    return found


@given(COSINES)
def test_it_stays_within_its_bounds(cosines: list[float]) -> None:
    standings = after(*cosines)
    assert -1 <= standings.of("a") <= 1
    assert 0.1 <= standings.share("a") <= 1


@given(COSINES, COSINES)
def test_a_checkpoint_brings_it_back(before: list[float], later: list[float]) -> None:
    whole, again = after(*before), Standings()
    again.load(after(*before).dump())
    for cosine in later:
        whole.take("a", cosine)
        again.take("a", cosine)
    assert again.dump() == whole.dump()


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    """It has two further values of each device: the lengths that it earned."""
    found = Standings()
    found.load([["a", -0.5, 0.5, 1.0, 0.2]])
    assert found.of("a") == -1


def test_a_new_device_counts_in_full() -> None:
    assert Standings().of("a") == 0
    assert Standings().share("a") == 1


def test_one_that_always_opposes_counts_a_tenth() -> None:
    assert after(*[-0.4] * 3).share("a") == pytest.approx(0.1)


def test_one_that_once_agreed_does_not_live_on_it() -> None:
    """Six plain contradictions outweigh five clear agreements."""
    assert after(*[0.4] * 5, *[-0.4] * 6).share("a") < 1


def test_weak_contradictions_do_not_undo_clear_agreement() -> None:
    """As for honest devices with other data, late in training."""
    assert after(*[0.4] * 5, *[-0.15] * 50).of("a") == pytest.approx(1.0)


def test_converged_devices_keep_their_share() -> None:
    """Seen to fail: the cosines of random deltas, ±0.03 by their sketches, added up, and a device counted 0.89."""
    rng, consensus, standings = np.random.default_rng(5), Consensus(), Standings()
    names = [f"d{number}" for number in range(10)]
    for _ in range(200):
        for name in names:
            found = direction(rng.standard_normal(20_000).astype(np.float32))
            assert found is not None
            standings.take(name, consensus.agreement(found))
            consensus.take(name, found, None)
    assert [standings.share(name) for name in names] == [1.0] * 10
