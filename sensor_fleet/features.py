"""Features of dense models: fixed functions of a single row, with nothing fitted.

Devices compute them on their own; only the normalisation that follows needs the federation's statistics. A missing
value (NaN or infinite) makes a feature missing only if nothing remains to compute it from.
"""

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.data import Kind

Array = npt.NDArray[np.float32]
QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
BANDS: Final = 8
"""Number of frequency bands, of equal width on a logarithmic scale from the window's first harmonic."""
SILENCE: Final = np.float32(1e-6)
"""Added before a logarithm, so that a constant signal stays finite."""
MAX_PAIRS: Final = 28
"""Maximum number of channel pairs whose correlations are features: those of 8 channels."""


def raw(x: npt.NDArray[Any], kind: Kind) -> Array:
    """Rows of shape (n, *shape) as float32, for convolutional models; uint8 pixels are scaled to 0–1."""
    with np.errstate(over="ignore"):  # what exceeds float32 becomes infinite, and so missing
        values = x.astype(np.float32)
    return values / np.float32(255) if kind == "image" and x.dtype == np.uint8 else values


def features(x: npt.NDArray[Any], kind: Kind) -> Array:
    """Rows of shape (n, *shape) as features of shape (n, features)."""
    values = raw(x, kind)
    return of_windows(values) if kind == "window" else values.reshape(len(x), prod(x.shape[1:]))


def by_channel(values: Array, kind: Kind) -> Array:
    """Reshape the output of `raw` or `features` to (rows, channels) for the statistics.

    All pixels of all images share one channel; otherwise the last axis holds the channels.
    """
    return values.reshape(-1, 1 if kind == "image" else values.shape[-1])


def of_windows(windows: Array) -> Array:
    """Features in time and frequency of windows of shape (n, time, channels).

    Of each channel: mean and its magnitude, deviation and its logarithm, minimum, maximum, quantiles, mean and maximum
    |difference|, the deviation of the differences, mean crossings, and the logarithm of the energy in each frequency
    band. Of each pair of channels, if there are few, the correlation.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is missing
        return _of_windows(windows.swapaxes(1, 2))


def _of_windows(windows: Array) -> Array:
    """The same for windows of shape (n, channels, time)."""
    present = np.isfinite(windows)
    count = np.count_nonzero(present, axis=2, keepdims=True).astype(np.float32)
    count[count == 0] = np.nan  # no feature is defined for such a channel
    mean = np.sum(windows, axis=2, keepdims=True, where=present) / count
    centred = np.where(present, windows - mean, np.float32(0)) if not present.all() else windows - mean
    deviation = np.sqrt(np.sum(centred**2, axis=2, keepdims=True) / count)

    # A linear model cannot form magnitude and logarithm itself, and gains much from them on motion data.
    pieces = [
        mean,
        np.abs(mean),
        deviation,
        np.log(deviation + SILENCE),
        *_order_statistics(windows, present, count),
        *_differences(centred, present),
    ]
    pieces += [_band_energies(centred, count)]
    table = np.concatenate(pieces, axis=2)  # (n, channels, features)
    channels = table.shape[1]
    parts = [table.reshape(len(table), channels * table.shape[2])]
    if 0 < channels * (channels - 1) // 2 <= MAX_PAIRS:
        parts.append(_correlations(centred))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _order_statistics(windows: Array, present: npt.NDArray[np.bool_], count: Array) -> list[npt.NDArray[Any]]:
    """Minimum, quantiles and maximum of the values present."""
    ordered = np.sort(np.where(present, windows, np.float32(np.inf)), axis=2)
    last = np.nan_to_num(count, nan=1.0) - 1
    found = [np.take_along_axis(ordered, np.rint(last * share).astype(np.intp), axis=2) for share in (0, *QUANTILES, 1)]
    return [np.where(np.isfinite(value), value, np.float32(np.nan)) for value in found]


def _differences(centred: Array, present: npt.NDArray[np.bool_]) -> list[npt.NDArray[Any]]:
    """Mean, maximum and deviation of |difference| between present neighbours; rate of mean crossings."""
    both = present[..., 1:] & present[..., :-1]
    pairs = np.count_nonzero(both, axis=2, keepdims=True).astype(np.float32)
    pairs[pairs == 0] = np.nan
    steps = np.where(both, np.abs(np.diff(centred, axis=2)), np.float32(0))
    mean = np.sum(steps, axis=2, keepdims=True) / pairs
    greatest = np.max(steps, axis=2, keepdims=True, initial=0) * (pairs / pairs)  # NaN if there is no pair
    variance = np.sum(steps**2, axis=2, keepdims=True) / pairs - mean**2
    crossed = both & (np.signbit(centred[..., 1:]) != np.signbit(centred[..., :-1]))
    crossings = np.count_nonzero(crossed, axis=2, keepdims=True) / pairs
    return [mean, greatest, np.sqrt(np.maximum(variance, 0)), crossings]


def _band_energies(centred: Array, count: Array) -> npt.NDArray[Any]:
    """Logarithm of the spectral energy in each band, of shape (n, channels, bands); a gap counts as the mean."""
    time = centred.shape[2]
    spectrum = np.abs(np.fft.rfft(centred, axis=2))[..., 1:] ** 2 / time
    harmonics = spectrum.shape[2]
    if not harmonics:
        return np.empty((*centred.shape[:2], 0), np.float32)
    edges = np.unique(np.rint(np.geomspace(1, harmonics + 1, BANDS + 1)).astype(np.intp) - 1)[:-1]
    energies = np.add.reduceat(spectrum, edges, axis=2)
    # NaN remains if a channel has no value at all.
    return np.asarray(np.log(energies + SILENCE) * (count / count))


def _correlations(centred: Array) -> npt.NDArray[Any]:
    """Pearson correlation of each pair of channels, of shape (n, pairs); missing if a channel is constant."""
    products = centred @ centred.swapaxes(1, 2)
    first, second = np.triu_indices(centred.shape[1], 1)
    norms = np.sqrt(products[:, first, first] * products[:, second, second])
    norms[norms == 0] = np.nan
    return np.asarray(products[:, first, second] / norms)
