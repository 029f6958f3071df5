"""The summary of rows for a survey of the fleet's data: statistics, and no row."""

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.samples import LEAST, Samples
from midge.wire.inputs import sayable
from midge.wire.moments import MAX_VALUE, Moments
from midge.wire.row_statistics import MOST_CLASSES, Columns, Counts, RowStatistics

TAIL: Final = 0.01
"""Share of the values beyond either end of a reported range."""


class TooFewRows(ValueError):
    """Statistics of so few rows would be nearly the rows themselves."""


def summarise(device: str, x: npt.NDArray[np.float32], y: npt.NDArray[Any], classes: int) -> RowStatistics:
    """The summary of a device's rows, in the order in which they were recorded.

    Args:
        device: its name.
        x: inputs of shape (rows, values of a channel, channels).
        y: targets of shape (rows,).
        classes: number of classes; 0 for targets that are no classes.
    """
    each = x.astype(np.float64)
    channels = each.reshape(-1, each.shape[2])
    half = len(x) // 2
    present = np.abs(each) <= MAX_VALUE
    means = np.where(present, each, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    means[~present.any(axis=1)] = np.nan
    # Zeros of both signs, and missing values of any kind, are the same.
    whole = np.nan_to_num(x.reshape(len(x), -1), nan=3e38) + np.float32(0)
    known = np.where(np.abs(channels) <= MAX_VALUE, channels, np.nan)
    there = ~np.isnan(known).all(axis=0)
    low, high = np.full((2, channels.shape[1]), np.nan)
    if there.any():
        low[there], high[there] = np.nanquantile(known[:, there], (TAIL, 1 - TAIL), axis=0)
    return RowStatistics(
        device,
        len(x),
        len(channels),
        Moments.of(channels),
        low,
        high,
        (Moments.of(channels[: half * each.shape[1]]), Moments.of(channels[half * each.shape[1] :])),
        (Moments.of(means[:half]), Moments.of(means[half:])),
        _counts(y, classes),
        (_counts(y[:half], classes), _counts(y[half:], classes)),
        len(whole) - len(np.unique(whole, axis=0)),
        hashlib.sha256(whole.tobytes() + y.tobytes()).digest()[:16],
    )


def _counts(y: npt.NDArray[Any], classes: int) -> Counts:
    return np.bincount(y.astype(np.int64), minlength=classes) if classes else np.zeros(0, np.int64)


def summary_of(device: str, samples: Samples) -> tuple[Columns, RowStatistics]:
    """The summary of a device's samples: of the rows that it holds now, as they came, in whole blocks of `LEAST`.

    So the difference of two summaries is over at least `LEAST` rows, as each of them is.

    Raises:
        TooFewRows: there is no whole block.
        ValueError: its labels are no numbers of classes, or of too many.
    """
    rows = samples.recorded()
    if len(rows) < LEAST:
        raise TooFewRows(f"a survey needs {LEAST} rows of a device, and there are {len(rows)}")
    x, y = (rows, rows[:, :0]) if samples.label is None else (rows[:, :-1], rows[:, -1])
    classes = 0
    if samples.kind == "classification":
        y = y.astype(np.int64)
        classes = int(y.max()) + 1
        if y.min() < 0 or classes > MOST_CLASSES:
            raise ValueError(f"labels from {y.min()} to {y.max()} are no numbers of at most {MOST_CLASSES} classes")
    label = sayable([samples.label or ""])
    columns = Columns(samples.kind, sayable(samples.features), label[0] if label else "", x.shape[1])
    return columns, summarise(device, x[:, None, :], y, classes)
