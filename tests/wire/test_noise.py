"""Noise on a grid: its distribution, value by value; exactness where floating point cannot decide; the accounting."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting import GaussianDpEvent, get_epsilon_gaussian
from dp_accounting.rdp import RdpAccountant
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from midge.wire import noise

Draw = Callable[[float, int, noise.Entropy], noise.Integers]
Floats = npt.NDArray[np.float64]


def seeded(seed: int) -> noise.Entropy:
    return np.random.default_rng(seed).bytes


def discrete(deviation: float, reach: int) -> Floats:
    """The probabilities of −reach … reach, from the definition."""
    weights: Floats = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    return weights


def rounded(deviation: float, reach: int) -> Floats:
    edges = (np.arange(-reach, reach + 2) - 0.5) / deviation
    return np.diff([math.erf(edge / math.sqrt(2)) / 2 for edge in edges])


@pytest.mark.parametrize("fine", [2, noise._FINE])
@pytest.mark.parametrize(
    ("draw", "probabilities", "deviation"),
    [
        (noise.discrete_gaussian, discrete, 0.3),
        (noise.discrete_gaussian, discrete, 3.0),
        (noise.discrete_gaussian, discrete, 700.5),
        (noise.rounded_gaussian, rounded, 256.0),
        (noise.rounded_gaussian, rounded, 1000.25),
    ],
)
def test_each_value_has_its_probability(
    draw: Draw,
    probabilities: Callable[[float, int], Floats],
    deviation: float,
    fine: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """χ² over cells of at least twenty expected draws; with two to four blocks in a deviation, much is rejected."""
    monkeypatch.setattr(noise, "_FINE", fine)
    draws, reach = 400_000, math.ceil(6 * deviation)
    counts = np.bincount(np.clip(draw(deviation, draws, seeded(1)), -reach, reach) + reach, minlength=2 * reach + 1)
    expected = draws * probabilities(deviation, reach)
    cells = np.floor(np.cumsum(expected) / 20).astype(int)
    seen, due = np.bincount(cells, counts), np.bincount(cells, expected)
    seen, due = seen[due > 10], due[due > 10]
    chi = float(np.sum((seen - due) ** 2 / due))
    assert abs(chi - len(due)) < 5 * math.sqrt(2 * len(due)) + 5


@pytest.mark.parametrize("deviation", [300.0, 3e6, 2.0**31])
@pytest.mark.parametrize("draw", [noise.discrete_gaussian, noise.rounded_gaussian])
def test_what_floating_point_decides_is_what_exact_arithmetic_decides(
    draw: Draw, deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = draw(deviation, 5000, seeded(2))
    monkeypatch.setattr(noise, "_ERROR", 2.0)  # nothing is left to floating point
    np.testing.assert_array_equal(quick, draw(deviation, 5000, seeded(2)))


def test_lower_halves_decide_where_upper_halves_are_equal() -> None:
    upper, whole = noise._table(3e6, 13)
    for place in (0, 100, 700):
        low = whole[place] & (2**64 - 1)
        for lower, block in ((low - 1, place), (low, place + 1), (low + 1, place + 1)):
            words = [lower.to_bytes(8), int(upper[place]).to_bytes(8, "little")]
            assert noise._blocks(3e6, 13, 1, lambda _: words.pop()).tolist() == [block]  # noqa: B023 - called at once


def test_deviations_out_of_range_are_refused() -> None:
    for deviation in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"2\^32 steps"):
            noise.discrete_gaussian(deviation, 1, seeded(0))
    with pytest.raises(ValueError, match=r"2\^8 to"):
        noise.rounded_gaussian(255.0, 1, seeded(0))


# ---------------------------------------------------------------------------- accounting


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize("multiplier", [0.05, 0.5, 1.0, 4.0, 40.0])
def test_two_accountants_agree(multiplier: float, delta: float) -> None:
    rho = noise.gaussian_rho(1.0, multiplier)
    exact = noise.gaussian_epsilon(rho, delta)
    assert exact == pytest.approx(get_epsilon_gaussian(multiplier, delta), rel=1e-9)
    accountant = RdpAccountant([1 + 1.1**k / 100 for k in range(120)])
    accountant.compose(GaussianDpEvent(multiplier))
    concentrated = noise.zcdp_epsilon(rho, delta)
    assert exact < concentrated <= accountant.get_epsilon(delta) * (1 + 1e-9)
    assert concentrated == pytest.approx(accountant.get_epsilon(delta), rel=0.01)


# ------------------------------------------------------------------- distributed noise


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0.55, 2.5), st.integers(1, 6), st.sampled_from([1.1, 1.5, 2.0, 4.0, 8.0, 16.0]))
def test_shares_of_the_honest_devices_hide_what_their_accounting_says(
    honest: int, share: float, moved: int, order: float
) -> None:
    """The Rényi divergence of the sum of shares, computed from its probabilities, is at most α·ρ of `shared_rho`."""
    total = share * math.sqrt(honest)
    centre = order * moved  # of the values that the divergence depends on
    assume(centre < 25 * total)
    one = discrete(noise.share_deviation(total, honest), math.ceil(centre + 14 * share))
    sums = one
    for _ in range(honest - 1):
        sums = np.convolve(sums, one)
    here, there = np.pad(sums, (0, moved)), np.pad(sums, (moved, 0))
    both = (here > 1e-250) & (there > 1e-250)
    terms = order * np.log(here[both]) + (1 - order) * np.log(there[both])
    peak = float(terms.max())
    divergence = (peak + math.log(float(np.exp(terms - peak).sum()))) / (order - 1)
    assert divergence <= order * noise.shared_rho(moved, total, honest, 1) * (1 + 1e-6) + 1e-9


def test_colluding_devices_take_their_shares_with_them() -> None:
    """Ten devices of which three collude: shares for seven honest ones have the full noise without the three."""
    kept = sum(noise.noise_share(12.0, 7, 50_000, seeded(number)) for number in range(7))
    assert np.std(kept) == pytest.approx(12.0, rel=0.02)
    assert noise.shared_rho(12.0, 12.0, 7, 100_000) == pytest.approx(noise.gaussian_rho(12.0, 12.0), rel=1e-3)
    trusting = sum(noise.noise_share(12.0, 10, 50_000, seeded(number)) for number in range(7))
    assert np.std(trusting) < 0.9 * 12.0
    with pytest.raises(ValueError, match="K_min"):
        noise.share_deviation(12.0, 0)
    with pytest.raises(ValueError, match="too coarse"):
        noise.share_deviation(1.0, 9)
