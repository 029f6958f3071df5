"""Judgement of a soak: how fast something grows, with its confidence interval, and which promises were kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

YEAR, MONTH = 365.25 * 24, 365.25 * 24 / 12
"""Hours."""
BLOCKS = 60
"""Medians into which a series is cut: the slope takes each pair of them, and neighbouring samples hardly differ."""
Z95 = 1.959964
"""Of the normal distribution, for an interval of 95 %."""
ENDS = 5
"""The level at the beginning and at the end is the median of this fraction of a series, a fifth."""
MEMORY, DESCRIPTORS, RECONNECT, DELAY, RECORDS = 0.05, 2, 120.0, 2.0, 2.0
"""Limits of the promises: growth of memory, descriptors more than at the beginning, seconds until all are back, the
factor of the p99 of other clients, and a store's growth relative to the records that it keeps."""


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope per hour, and its interval of 95 %."""

    per_hour: float
    low: float
    high: float

    def per_year(self, speed_up: float = 1.0) -> tuple[float, float, float]:
        """Slope and interval in a year of a fleet that does in `speed_up` hours what this one does in one."""
        hours = YEAR / speed_up
        return self.per_hour * hours, self.low * hours, self.high * hours


def blocks(values: Sequence[float] | Values, count: int) -> Values:
    """Medians of at most `count` consecutive blocks of equal length."""
    length = max(1, -(-len(values) // count))
    return np.array([np.median(values[start : start + length]) for start in range(0, len(values), length)])


def slope(hours: Sequence[float], values: Sequence[float]) -> Slope:
    """Slope of a series by Theil and Sen, robust against a quarter of outliers.

    The median of the slopes of all pairs of blocks. The interval is that of Sen (1968) by Kendall's statistic; its
    variance is inflated by (1 + r) / (1 − r), with r the correlation of neighbouring residuals (Yue and Wang 2004),
    because samples of a process's memory are not independent.

    Args:
        hours: times, ascending.
        values: as many values.

    Raises:
        ValueError: there are fewer than four samples.
    """
    if len(hours) != len(values) or len(values) < 4:
        raise ValueError(f"a slope needs four samples or more, each with its time: {len(hours)} and {len(values)}")
    times, levels = blocks(hours, BLOCKS), blocks(values, BLOCKS)
    count = len(levels)
    first, second = np.triu_indices(count, 1)
    slopes = np.sort((levels[second] - levels[first]) / (times[second] - times[first]))
    middle = float(np.median(slopes))
    inflation = _inflation(levels - middle * times)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18 * inflation)
    half = Z95 * deviation
    last = len(slopes) - 1
    low = max(0, math.floor((len(slopes) - half) / 2))
    high = min(last, math.ceil((len(slopes) + half) / 2))
    return Slope(middle, float(slopes[low]), float(slopes[high]))


def _inflation(residuals: Values) -> float:
    """The factor by which correlated neighbours make the variance larger; 1 or more."""
    centred = residuals - residuals.mean()
    if not (total := float(centred @ centred)):
        return 1.0
    correlation = min(0.95, max(0.0, float(centred[1:] @ centred[:-1]) / total))
    return (1 + correlation) / (1 - correlation)


@dataclass(frozen=True, slots=True)
class Growth:
    """Level at the beginning and the end of a series, and its slope."""

    begin: float
    end: float
    slope: Slope

    @classmethod
    def of(cls, hours: Sequence[float], values: Sequence[float]) -> "Growth":
        """Of a series.

        Raises:
            ValueError: it has fewer than four samples.
        """
        fifth = max(1, len(values) // ENDS)
        begin, end = np.median(values[:fifth]), np.median(values[-fifth:])
        return cls(float(begin), float(end), slope(hours, values))

    @property
    def share(self) -> float:
        """Growth relative to the beginning."""
        return self.end / self.begin - 1 if self.begin else 0.0

    def row(self, speed_up: float, unit: float = 1.0) -> dict[str, Any]:
        """As JSON, in `unit`."""
        year = self.slope.per_year(speed_up)
        return {
            "begin": round(self.begin / unit, 3),
            "end": round(self.end / unit, 3),
            "growth": round(self.share, 4),
            "per_hour": [round(each / unit, 3) for each in (self.slope.per_hour, self.slope.low, self.slope.high)],
            "per_year": [round(each / unit, 1) for each in year],
        }


def memory_kept(growths: Sequence[Growth]) -> bool:
    """Whether no process has grown by more than the limit."""
    return all(growth.share <= MEMORY for growth in growths)


def descriptors_flat(growths: Sequence[Growth]) -> bool:
    """Whether no process has more open files than at the beginning."""
    return all(growth.end - growth.begin <= DESCRIPTORS for growth in growths)


def store_bounded(growth: Growth, records_per_hour: float, record: float) -> bool:
    """Whether a store grows by no more than `RECORDS` times the records that it is to keep, of `record` bytes each."""
    return growth.slope.low <= RECORDS * records_per_hour * record


def delay_kept(alone_ms: float, beside_ms: float) -> bool:
    """Whether the p99 of other clients is at most doubled."""
    return beside_ms <= DELAY * alone_ms


def all_back(seconds: float | None) -> bool:
    """Whether all devices were back in time; None if some were not back at all."""
    return seconds is not None and seconds <= RECONNECT


def last(values: Sequence[float]) -> Sequence[float]:
    """The last fifth of a series."""
    return values[-max(4, len(values) // ENDS) :]


def bounded(days: Sequence[float], values: Sequence[float], tolerance: float) -> bool:
    """Whether a series has stopped growing: in its last fifth it rises by at most a share of its level."""
    return Growth.of(last(days), last(values)).share <= tolerance


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one gateway in a soak."""

    payload: float
    """Of messages, both ways."""
    wire: float
    """TLS, MQTT, and headers of TCP and IP, both ways."""
    seconds: float
    idle: float
    """Bytes of the wire per second of a connection without messages: the keep-alive."""

    def month(self, speed_up: float) -> dict[str, float]:
        """Megabytes in a month of a fleet in its own time; keep-alives are not scaled."""
        times = MONTH * 3600 / speed_up / self.seconds
        work = max(0.0, self.wire - self.idle * self.seconds) * times
        idle = self.idle * MONTH * 3600
        found = {"payload": self.payload * times, "work": work, "keepalive": idle, "all": work + idle}
        return {name: round(value / 1e6, 2) for name, value in found.items()}
