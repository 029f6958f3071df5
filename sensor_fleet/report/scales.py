"""Axis scales: from values to positions, with tick marks."""

import calendar
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from midge.sensor_fleet.report.quantities import plain, significant, size, whole

_TIMES: Final = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Round intervals of time, in seconds."""
_MONTHS_FROM: Final = 20 * 86400.0
"""Seconds between two ticks from which on they are at the beginnings of months."""


@dataclass(frozen=True, slots=True)
class AxisScale:
    """Maps [low, high] to [start, end], linearly or logarithmically. `text` formats a tick."""

    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str]
    log: bool = False
    start: float = 0.0
    end: float = 1.0

    def __call__(self, value: float) -> float:
        """The position of a value, clipped to the ends."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def over(self, start: float, end: float) -> "AxisScale":
        """The same scale at other positions."""
        return replace(self, start=start, end=end)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def linear(
    low: float, high: float, text: Callable[[float], str] = plain, *, count: int = 5, tight: bool = False
) -> AxisScale:
    """About `count` round ticks. The ends are extended to ticks unless `tight`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if tight:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    return AxisScale(low, high, tuple(number * step for number in range(first, last + 1)), text)


def logarithmic(low: float, high: float, text: Callable[[float], str] = significant, *, count: int = 6) -> AxisScale:
    """Ticks at powers of ten, and at 2 and 5 if there is room."""
    low, high = low / 1.15, high * 1.15
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = _decades(low, high, digits)
        if len(ticks) <= count:
            break
    return AxisScale(low, high, tuple(ticks), text, log=True)


def of_time(end: float, *, count: int = 6) -> AxisScale:
    """From 0 to `end` seconds, with round ticks in a suitable unit."""
    end = end if end > 0 else 1.0
    if end < 6:
        return linear(0, end, plain, count=count, tight=True)
    step = next((step for step in _TIMES if end / step <= count), 86400 * math.ceil(end / 86400 / count))
    unit = 1 if step < 60 else 60 if step < 3600 else 3600 if step < 86400 else 86400
    ticks = tuple(float(tick) for tick in range(0, math.floor(end) + 1, step))
    return AxisScale(0.0, end, ticks, lambda value: plain(value / unit))


def of_dates(start: float, end: float, *, count: int = 6) -> AxisScale:
    """From `start` to `end` in seconds since 1970, with ticks at round times in UTC: of a long time, months."""
    end = max(end, start + 1)
    each = (end - start) / count
    if each > _MONTHS_FROM:
        form, ticks = "%b %Y", _months(start, end, math.ceil(each / (30 * 86400)))
    else:
        step = round_interval(each)
        form = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86400 else "%-d %b"
        ticks = [float(tick) for tick in range(math.ceil(start / step) * step, math.floor(end) + 1, step)]
    return AxisScale(start, end, tuple(ticks), lambda value: time.strftime(form, time.gmtime(value)))


def _months(start: float, end: float, stride: int) -> list[float]:
    """Beginnings of every `stride`-th month."""
    first = time.gmtime(start)
    months = range(12 * first.tm_year + first.tm_mon, 12 * (first.tm_year + 200), stride)
    found: list[float] = []
    for month in months:
        at = float(calendar.timegm((month // 12, month % 12 + 1, 1, 0, 0, 0)))
        if at > end:
            break
        found.append(at)
    return found


def unit_of_time(scale: AxisScale) -> str:
    """The unit of the ticks of `of_time`."""
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else 1
    return "seconds" if step < 60 else "minutes" if step < 3600 else "hours" if step < 86400 else "days"


def of_counts(high: float, *, count: int = 5, tight: bool = False) -> AxisScale:
    """From 0, with ticks at whole numbers."""
    scale = linear(0, max(high, 1), whole, count=count, tight=tight)
    return replace(scale, ticks=tuple(tick for tick in scale.ticks if tick == round(tick)))


def of_bytes(end: float, *, count: int = 5) -> AxisScale:
    """From 0 to `end` bytes, with round ticks."""
    return linear(0, end if end > 0 else 1.0, size, count=count, tight=True)


def round_interval(seconds: float, multiple: int = 1) -> int:
    """A round interval of at least that many seconds that is a multiple of another."""
    found = next((step for step in _TIMES if step >= seconds and step % multiple == 0), None)
    longest = max(multiple, _TIMES[-1])
    return found or longest * math.ceil(seconds / longest)


def bins(largest: int, most: int = 30) -> int:
    """A round bin width for whole numbers from 0 to `largest`, with at most `most` bins."""
    width = 1
    while (largest + 1) / width > most:
        width = next(step for step in _ladder() if step > width)
    return width


def _ladder() -> list[int]:
    return [digit * 10**power for power in range(9) for digit in (1, 2, 5)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))


def _decades(low: float, high: float, digits: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
