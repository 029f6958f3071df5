"""Pooled moments are the moments of the pooled rows."""

from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from midge.wire.errors import WireError
from midge.wire.moments import BYTES_PER_CHANNEL, MAX_COUNT, Moments, pool

Rows = npt.NDArray[np.float64]
CHANNELS = 3
VALUES = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e300]),
)
ROWS = st.integers(0, 12).flatmap(lambda n: npst.arrays(np.float64, (n, CHANNELS), elements=VALUES))


def assert_close(a: Moments, b: Moments, unit: float) -> None:
    """Equal, where `unit` is the size of the largest value."""
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-12 * unit)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-10, atol=1e-10 * unit**2)


def size(parts: list[Rows]) -> float:
    rows = np.concatenate(parts)
    return float(np.max(np.abs(rows), initial=1.0, where=np.abs(rows) < 1e38))


@given(st.lists(ROWS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_pooling_equals_computing_on_all_rows_in_any_order(parts: list[Rows], random: Random) -> None:
    whole = Moments.of(np.concatenate(parts))
    moments = [Moments.of(part) for part in parts]
    assert_close(pool(moments), whole, size(parts))
    random.shuffle(moments)
    assert_close(pool(moments), whole, size(parts))
    merged = moments[0]
    for part in moments[1:]:
        merged = merged.merge(part)
    assert_close(merged, whole, size(parts))


@given(ROWS)
def test_they_agree_with_numpy_and_travel(rows: Rows) -> None:
    moments = Moments.of(rows)
    for channel in range(CHANNELS):
        values = rows[:, channel][np.abs(rows[:, channel]) < 1e38]
        assert moments.count[channel] == len(values)
        if len(values):
            np.testing.assert_allclose(moments.mean[channel], values.mean(), rtol=1e-9, atol=1e-6)
    data = moments.to_bytes()
    assert len(data) == CHANNELS * BYTES_PER_CHANNEL
    back = Moments.from_bytes(memoryview(data), CHANNELS)
    for name in ("count", "mean", "m2"):
        np.testing.assert_array_equal(getattr(back, name), getattr(moments, name))


def test_a_constant_channel_and_an_unseen_one_have_scale_one() -> None:
    rows = np.array([[518.67, np.nan, 1e-12, 3.0], [518.67, np.nan, -1e-12, 5.0]] * 1000, np.float32)
    moments = Moments.of(rows)
    np.testing.assert_allclose(moments.scale(), [1.0, 1.0, 1e-12, 1.0], rtol=1e-6)
    np.testing.assert_allclose(moments.mean, [float(np.float32(518.67)), 0.0, 0.0, 4.0], rtol=1e-9)


def test_a_large_mean_does_not_drown_a_small_spread() -> None:
    rows = np.random.default_rng(0).normal(1e6, 1, (10_000, 1))
    parts = [Moments.of(part) for part in np.array_split(rows, 30)]
    assert float(pool(parts).scale()[0]) == pytest.approx(float(rows.std()), rel=1e-9)


def test_the_largest_claims_pool_without_overflow() -> None:
    claim = Moments.from_bytes(Moments(np.array([MAX_COUNT]), np.array([3e38]), np.array([1e88])).to_bytes(), 1)
    other = Moments(claim.count, -claim.mean, claim.m2)
    pooled = pool([claim, other] * 1000)
    assert pooled.count[0] == 2000 * MAX_COUNT
    assert np.isfinite(pooled.scale()).all()


@pytest.mark.parametrize(
    ("count", "mean", "m2", "word"),
    [
        (-1, 0, 0, "count"),
        (MAX_COUNT + 1, 0, 0, "count"),
        (1, np.nan, 0, "mean"),
        (1, np.inf, 0, "mean"),
        (1, 1e39, 0, "mean"),
        (1, 0, -1, "sum of squares"),
        (1, 0, np.nan, "sum of squares"),
        (1, 0, np.inf, "sum of squares"),
        (0, 0, 1, "sum of squares"),
        (0, 1, 0, "without a value"),
    ],
)
def test_what_cannot_be_moments_is_refused(count: int, mean: float, m2: float, word: str) -> None:
    bad = Moments(np.array([5, count]), np.array([1.0, mean]), np.array([1.0, m2]))
    with pytest.raises(WireError, match=word):
        Moments.from_bytes(bad.to_bytes(), 2)


def test_wrong_lengths_and_shapes_are_refused() -> None:
    with pytest.raises(WireError, match="take 48 bytes, not 47"):
        Moments.from_bytes(b"\0" * 47, 2)
    with pytest.raises(ValueError, match="shape"):
        Moments.of(np.zeros(3))
    with pytest.raises(ValueError, match="no moments"):
        pool([])
    with pytest.raises(ValueError, match="different numbers"):
        Moments.of(np.zeros((1, 2))).merge(Moments.of(np.zeros((1, 3))))
