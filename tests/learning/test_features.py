"""Features of windows, with and without missing values."""

import numpy as np
import pytest

from midge.sensor_fleet.features import by_channel, features, of_windows, raw

RNG = np.random.default_rng(3)


def test_each_row_is_seen_alone() -> None:
    windows = RNG.normal(size=(5, 40, 3)).astype(np.float32)
    whole = of_windows(windows)
    for row in range(5):
        np.testing.assert_allclose(whole[row], of_windows(windows[row : row + 1])[0], rtol=1e-4, atol=1e-4)


def test_the_first_features_are_what_they_are_called() -> None:
    windows = RNG.normal(5, 2, size=(4, 50, 1)).astype(np.float32)
    found = of_windows(windows)
    plain = windows[..., 0]
    np.testing.assert_allclose(found[:, 0], plain.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], plain.std(axis=1), rtol=1e-4)
    np.testing.assert_allclose(found[:, 4], plain.min(axis=1))
    np.testing.assert_allclose(found[:, 10], plain.max(axis=1))
    np.testing.assert_allclose(found[:, 11], np.abs(np.diff(plain, axis=1)).mean(axis=1), rtol=1e-4)


def test_a_slow_and_a_fast_wave_differ_in_their_bands() -> None:
    time = np.arange(100) / 100
    windows = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (2, 40)])[..., None].astype(np.float32)
    slow, fast = of_windows(windows)[:, -8:]
    assert slow.argmax() < fast.argmax()


def test_a_gap_changes_little_and_an_empty_channel_is_missing() -> None:
    windows = RNG.normal(size=(3, 80, 2)).astype(np.float32)
    gap = windows.copy()
    gap[0, 10, 0] = np.nan
    gap[1, :, 1] = np.inf
    whole, holed = of_windows(windows), of_windows(gap)
    assert np.isfinite(whole).all()
    assert np.isfinite(holed[0]).all()
    np.testing.assert_allclose(holed[0, 0], gap[0, np.arange(80) != 10, 0].mean(), rtol=1e-4, atol=1e-6)
    per_channel = (whole.shape[1] - 1) // 2  # and one correlation
    assert np.isfinite(holed[1, :per_channel]).all()
    assert np.isnan(holed[1, per_channel:]).all()
    np.testing.assert_array_equal(holed[2], whole[2])


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 1), (2, 3, 2), (2, 30, 20), (0, 30, 2)])
def test_odd_shapes_and_still_signals_pass(shape: tuple[int, ...]) -> None:
    found = of_windows(np.full(shape, 7, np.float32))
    assert found.shape[0] == shape[0]
    assert not np.isinf(found).any()


def test_images_and_tables() -> None:
    images = RNG.integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)
    found = features(images, "image")
    assert found.shape == (4, 90)
    assert found.dtype == np.float32
    assert found.max() <= 1
    assert by_channel(found, "image").shape == (360, 1)
    assert by_channel(raw(images, "image"), "image").shape == (360, 1)
    table = features(np.array([[300, 1], [2, np.nan]]), "table")
    np.testing.assert_array_equal(table, np.array([[300, 1], [2, np.nan]], np.float32))
    assert by_channel(raw(np.zeros((4, 30, 6)), "window"), "window").shape == (120, 6)
    assert np.isinf(features(np.array([[1e300]]), "table")).all()
