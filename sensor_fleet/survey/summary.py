"""What a device tells a survey: statistics of its own rows, and no row."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.features import by_channel, raw
from midge.wire.moments import MAX_VALUE, Moments

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
TAIL: Final = 0.01
"""Share of the values beyond either end of a reported range."""


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Statistics of one device. Arrays by channel have shape (channels,)."""

    device: str
    rows: int
    values: int
    """Values of a channel, missing ones included: a window or an image has several in a row."""
    moments: Moments
    """Of the values that are there."""
    low: Floats
    """Quantile `TAIL` of each channel; NaN without a value."""
    high: Floats
    halves: tuple[Moments, Moments]
    """Of the earlier and of the later half of the rows, in their order."""
    row_halves: tuple[Moments, Moments]
    """The same of the rows' means: neighbouring values in a window are no independent ones."""
    labels: Counts
    """Rows of each class, shape (classes,); empty for regression."""
    label_halves: tuple[Counts, Counts]
    repeated: int
    """Rows that occurred before."""
    digest: bytes
    """Of all rows: equal only if the rows are."""

    @property
    def missing(self) -> Counts:
        """Missing values of each channel."""
        found: Counts = self.values - self.moments.count
        return found


def summarise(device: str, rows: Rows, data: FleetData) -> RowStatistics:
    """The summary of a device's rows, in the order in which they were recorded."""
    inputs = raw(rows.x, data.kind)
    channels = by_channel(inputs, data.kind).astype(np.float64)
    half = len(rows) // 2
    each = channels.reshape(len(rows), -1, channels.shape[1])
    present = np.abs(each) <= MAX_VALUE
    means = np.where(present, each, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    means[~present.any(axis=1)] = np.nan
    classes = data.classes or 0
    count = (lambda y: np.bincount(y.astype(np.int64), minlength=classes)) if classes else (lambda _: np.zeros(0, int))
    # Zeros of both signs, and missing values of any kind, are the same.
    whole = np.nan_to_num(inputs.reshape(len(rows), -1), nan=3e38) + np.float32(0)
    known = np.where(np.abs(channels) <= MAX_VALUE, channels, np.nan)
    there = ~np.isnan(known).all(axis=0)
    low, high = np.full((2, channels.shape[1]), np.nan)
    if there.any():
        low[there], high[there] = np.nanquantile(known[:, there], (TAIL, 1 - TAIL), axis=0)
    return RowStatistics(
        device,
        len(rows),
        len(channels),
        Moments.of(channels),
        low,
        high,
        (Moments.of(channels[: half * each.shape[1]]), Moments.of(channels[half * each.shape[1] :])),
        (Moments.of(means[:half].reshape(half, -1)), Moments.of(means[half:])),
        count(rows.y),
        (count(rows.y[:half]), count(rows.y[half:])),
        len(whole) - len(np.unique(whole, axis=0)),
        hashlib.sha256(whole.tobytes() + rows.y.tobytes()).digest()[:16],
    )
