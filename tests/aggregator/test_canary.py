"""The test by which a candidate is judged: its formula, and what peeking at it after each device costs."""

from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.aggregator.core.canary import CanaryTrial, gain
from midge.wire.sign_test import e_value


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (7, 0), (5, 4), (0, 6), (60, 40)])
def test_the_value_is_the_mean_likelihood_ratio(wins: int, losses: int) -> None:
    n = wins + losses
    p = (np.arange(200_000) + 0.5) / 400_000 + 0.5
    ratio = np.exp(wins * np.log(2 * p) + losses * np.log(2 * (1 - p)))
    assert e_value(wins, losses) == pytest.approx(float(ratio.mean()), rel=1e-6), n


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_looking_after_each_device_does_not_raise_the_error(alpha: float) -> None:
    """Exactly, over all sequences of 200 devices of which each is better off with probability ½.

    A test at a fixed number of devices, read after each of them, is wrong far more often: seen to fail on it.
    """
    assert 0.2 * alpha < _ever(lambda k, n: e_value(k, n - k) * alpha >= 1, 200) <= alpha
    assert _ever(lambda k, n: n >= 20 and _sign_test(k, n) <= alpha, 200) > 3 * alpha


def _ever(rejects: Callable[[int, int], bool], most: int) -> Fraction:
    """The probability that a test ever rejects: of all sequences, those that come to where it does."""
    open_, wrong = {0: 1}, Fraction(0)
    for n in range(1, most + 1):
        reached: dict[int, int] = {}
        for k, sequences in open_.items():
            for won in (k, k + 1):
                reached[won] = reached.get(won, 0) + sequences
        open_ = {k: sequences for k, sequences in reached.items() if not rejects(k, n)}
        wrong += Fraction(sum(reached.values()) - sum(open_.values()), 2**n)
    return wrong


def _sign_test(k: int, n: int) -> float:
    return float(Fraction(sum(comb(n, i) for i in range(k, n + 1)), 2**n))


def test_it_finds_what_is_there_and_needs_enough_devices() -> None:
    trial = CanaryTrial()
    for number in range(6):
        trial.add(f"d{number}", 1.0)
    assert trial.finding(0.05, 2) == "open"
    trial.add("d6", 1.0)
    assert trial.finding(0.05, 2) == "better" and trial.finding(0.05, 8) == "open"


def test_equal_devices_count_towards_the_number_and_not_for_either() -> None:
    trial = CanaryTrial()
    for number in range(7):
        trial.add(f"d{number}", -0.5)
    for number in range(13):
        trial.add(f"e{number}", 0.0)
    assert trial.evidence().worse == 7 and trial.finding(0.05, 20) == "worse"


def test_many_that_gain_little_do_not_outweigh_some_that_lose_much() -> None:
    trial = CanaryTrial()
    for number in range(40):
        trial.add(f"gain{number}", 0.01)
    for number in range(10):
        trial.add(f"loss{number}", -5.0)
    found = trial.evidence()
    assert found.e_better > 20 and found.gain < 0 and trial.finding(0.05, 20) == "open"


def test_one_device_that_lies_turns_nothing() -> None:
    trial = CanaryTrial()
    for number in range(20):
        trial.add(f"d{number}", 0.1)
    trial.add("liar", -1e30)
    trial.add("liar", -1e30)
    assert len(trial) == 21 and trial.finding(0.05, 20) == "better"


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_no_number_of_devices_is_too_large(wins: int, losses: int) -> None:
    assert 0 <= e_value(wins, losses) <= 1e12


def test_a_gain_is_in_the_direction_of_the_metric() -> None:
    assert gain({"loss": 1.0}, {"loss": 3.0}, "loss", lower=True) == 2.0
    assert gain({"accuracy": 0.5}, {"accuracy": 0.75}, "accuracy", lower=False) == -0.25
    assert gain({"accuracy": 0.5}, {"loss": 0.75}, "loss", lower=True) is None
