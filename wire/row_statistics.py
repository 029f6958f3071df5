"""Statistics of one device's rows for a survey of the fleet's data, and their bytes: no row is among them.

The bytes are a frame: `Summary`, then little-endian arrays. By channel, the `Moments` of all values, of the earlier and
the later half, and of the rows' means in both halves; then the low and the high quantile as float64. By class, int64
counts of all rows, and of both halves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.frames import Buffer
from midge.wire.messages import Message
from midge.wire.messages.fields import Id, Names, Word
from midge.wire.moments import BYTES_PER_CHANNEL, MAX_VALUE, Moments

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Task = Literal["regression", "classification", "reconstruction"]
MOST_CHANNELS: Final = 4096
MOST_CLASSES: Final = 4096
MOST_ROWS: Final = 10**8
"""Most rows and values of a channel that one device can claim: numpy's hypergeometric draws end at 10^9."""
_PARTS: Final = 5
"""Moments in the bytes."""
_OF_CHANNEL: Final = _PARTS * BYTES_PER_CHANNEL + 2 * 8
_OF_CLASS: Final = 3 * 8
_Number = Annotated[int, Field(ge=0, le=MOST_ROWS)]


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """Statistics of one device. Arrays by channel have shape (channels,)."""

    device: str
    rows: int
    values: int
    """Values of a channel, missing ones included: a window or an image has several in a row."""
    moments: Moments
    """Of the values that are there."""
    low: Floats
    """The 1 % quantile of each channel; NaN without a value."""
    high: Floats
    """The 99 % quantile."""
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


class Columns(NamedTuple):
    """What the rows of a device consist of. Only summaries with the same columns pool."""

    task: Task
    features: tuple[str, ...]
    """Names of the channels, in order; empty if they do not travel."""
    label: str
    """Name of the target; empty without one."""
    channels: int


class Summary(Message):
    """The header of the bytes: a frame without a kind."""

    task: Task
    features: Names = ()
    """Names of the inputs, in order; empty if they have none that travel (`wire.inputs.sayable`)."""
    label: Word = ""
    """Name of the target; empty without one."""
    rows: _Number
    values: _Number
    """Values of a channel, missing ones included."""
    repeated: _Number = 0
    """Rows that occurred before."""
    digest: Id
    """Of all rows: equal only if the rows are."""
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)] = 0


def packed(statistics: RowStatistics, columns: Columns) -> bytes:
    """The bytes of a summary.

    Raises:
        ValueError: there are more channels, classes or rows than travel.
    """
    header = Summary(
        task=columns.task,
        features=columns.features,
        label=columns.label,
        rows=statistics.rows,
        values=statistics.values,
        repeated=statistics.repeated,
        digest=statistics.digest,
        channels=columns.channels,
        classes=len(statistics.labels),
    )
    parts = (statistics.moments, *statistics.halves, *statistics.row_halves)
    floats = b"".join(each.astype("<f8").tobytes() for each in (statistics.low, statistics.high))
    counts = b"".join(each.astype("<i8").tobytes() for each in (statistics.labels, *statistics.label_halves))
    return frames.encode(header, b"".join(part.to_bytes() for part in parts) + floats + counts)


def unpacked(device: str, data: Buffer) -> tuple[Columns, RowStatistics]:
    """Read a device's summary.

    Raises:
        WireError: it is none, or no rows can have these statistics.
    """
    fields, body = frames.decode(data)
    header = frames.validate(Summary, fields)
    channels, classes = header.channels, header.classes
    expected = channels * _OF_CHANNEL + classes * _OF_CLASS
    if len(body) != expected:
        raise WireError(f"a summary of {channels} channels and {classes} classes has {expected} bytes, not {len(body)}")
    if header.features and len(header.features) != channels:
        raise WireError(f"there are {len(header.features)} names of {channels} channels")
    reader = _Reader(body)
    moments, early, late, early_rows, late_rows = (
        Moments.from_bytes(reader.take(channels * BYTES_PER_CHANNEL), channels) for _ in range(_PARTS)
    )
    low, high = (np.frombuffer(reader.take(8 * channels), "<f8").astype(np.float64) for _ in range(2))
    labels, first, second = (np.frombuffer(reader.take(8 * classes), "<i8").astype(np.int64) for _ in range(3))
    found = RowStatistics(
        device,
        header.rows,
        header.values,
        moments,
        low,
        high,
        (early, late),
        (early_rows, late_rows),
        labels,
        (first, second),
        header.repeated,
        header.digest,
    )
    for why in _contradictions(found):
        raise WireError(f"a summary contradicts itself: {why}")
    return Columns(header.task, header.features, header.label, channels), found


class _Reader:
    """Takes the bytes from front to back."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        self._at += size
        return self._data[self._at - size : self._at]


def _contradictions(one: RowStatistics) -> Iterator[str]:
    """What no rows can have, as text."""
    if one.rows < 1 or one.values < one.rows or one.repeated >= one.rows:
        yield "numbers of rows"
        return
    if np.any(one.moments.count > one.values):
        yield "more values than there are"
    if np.any(one.halves[0].count + one.halves[1].count != one.moments.count):
        yield "values of the halves"
    if any(np.any(half.count > one.rows) for half in one.row_halves):
        yield "means of more rows than there are"
    there = one.moments.count > 0
    ends = np.stack([one.low, one.high])
    if not np.all(np.abs(ends[:, there]) <= MAX_VALUE) or np.any(one.low[there] > one.high[there]):
        yield "the ends of a range"
    if not np.all(np.isnan(ends[:, ~there])):
        yield "a range without a value"
    if len(one.labels):
        halves = np.stack(one.label_halves)
        # Each first, so that no sum wraps around.
        if np.any(halves < 0) or np.any(halves > one.rows) or np.any(halves.sum(axis=0) != one.labels):
            yield "classes of the halves"
        elif one.labels.sum() != one.rows:
            yield "classes of more or fewer rows than there are"
