"""An attack on production's aggregator shows less than the accounting allows, and more if there is no noise."""

import math
from fractions import Fraction

import pytest

from benchmarks.privacy_noise import DELTA, RUNS, audit, clopper_pearson, epsilon_lower, noise_for
from midge.aggregator.core.privacy import Privacy


@pytest.mark.slow
def test_an_attacker_shows_less_than_the_accounted_epsilon_and_more_without_noise() -> None:
    """200 runs with the victim's canaries and 200 with zeros; it gives four updates in each.

    A right implementation exceeds the bound in at most one of twenty tests of unlimited power; by the distance between
    what 200 runs can show of ε = 2 and 2, it is far less.
    """
    privacy = Privacy(clip=1.0, noise=noise_for(2.0, 4), epsilon=2.0, delta=DELTA)
    assert privacy.contributions == 4 and RUNS >= 200
    attacked = audit(privacy, 4, RUNS)
    assert attacked.runs == RUNS and attacked.accounted <= 2.0
    assert attacked.lower < attacked.accounted, attacked
    bare = audit(privacy, 4, RUNS, noise=False)
    assert bare.lower > bare.accounted == attacked.accounted, bare


@pytest.mark.parametrize(("hits", "runs"), [(0, 200), (7, 200), (199, 200), (200, 200), (3, 1000)])
@pytest.mark.parametrize("error", [0.025, 0.5])
def test_intervals_are_those_of_clopper_and_pearson(hits: int, runs: int, error: float) -> None:
    """At the bound, as few hits as were seen are as likely as the error."""
    bound = Fraction(clopper_pearson(hits, runs, error))
    as_few = sum(math.comb(runs, k) * bound**k * (1 - bound) ** (runs - k) for k in range(hits + 1))
    assert float(as_few) == pytest.approx(1.0 if hits == runs else error, rel=1e-6)


def test_a_bound_is_that_of_both_rates() -> None:
    least, most = 1 - clopper_pearson(20, 200, 0.025), clopper_pearson(10, 200, 0.025)
    assert epsilon_lower(180, 10, 200, 1e-5) == pytest.approx(math.log((least - 1e-5) / most))
    assert epsilon_lower(100, 100, 200, 1e-5) == 0.0
