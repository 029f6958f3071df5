"""What happened over time, in a bounded number of intervals: the more time, the longer each is, up to a day in all."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

FIRST = 2.0
"""Seconds of an interval at the beginning."""
LONGEST = 256.0
"""Seconds of an interval at most: then the oldest ones are dropped."""
MOST = 360
"""Intervals that are kept: as many as a chart has room for."""
_LATEST = 4096
"""Largest staleness in steps that is counted by itself."""


@dataclass(frozen=True, slots=True)
class MetricSpread:
    """The newest results of one metric: of the aggregator's own evaluation, and over devices on their own data."""

    evaluation: float | None = None
    low: float | None = None
    """The tenth percentile of devices."""
    median: float | None = None
    high: float | None = None
    """The ninetieth."""

    @classmethod
    def of(cls, evaluation: float | None, each: list[float]) -> "MetricSpread":
        """The spread of the devices' values, which get sorted."""
        if not each:
            return cls(evaluation)
        each.sort()
        low, median, high = (each[round(part * (len(each) - 1))] for part in (0.1, 0.5, 0.9))
        return cls(evaluation, low, median, high)


@dataclass(slots=True)
class Interval:
    """Counts within an interval, and the last values of what is measured now and then; None if there was none."""

    accepted: int = 0
    refused: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    """Accepted updates by steps of staleness."""
    up: float | None = None
    """Bytes a second from the devices."""
    down: float | None = None
    """Bytes a second published by the aggregator."""
    online: int | None = None
    version: int | None = None
    scores: MetricSpread | None = None

    def add(self, later: "Interval") -> None:
        """Add the interval that follows."""
        self.accepted += later.accepted
        self.refused += later.refused
        self.staleness.update(later.staleness)
        for name in ("up", "down", "online", "version", "scores"):
            if (value := getattr(later, name)) is not None:
                setattr(self, name, value)

    def stale(self, steps: int) -> None:
        """Count an accepted update of this staleness."""
        self.staleness[min(steps, _LATEST)] += 1

    def packed(self) -> list[float | int | None]:
        """As plain values, in the order of `COLUMNS`."""
        scores = self.scores or MetricSpread()
        return [
            self.accepted,
            self.refused,
            self.quantile(0.5),
            self.quantile(0.9),
            self.up,
            self.down,
            self.online,
            self.version,
            scores.evaluation,
            scores.low,
            scores.median,
            scores.high,
        ]

    def quantile(self, part: float) -> int | None:
        """Steps of staleness that this part of the accepted updates has at most; None if there are none."""
        left = part * self.staleness.total()
        for steps, number in sorted(self.staleness.items()):
            left -= number
            if left <= 0:
                return steps
        return None


COLUMNS = ("time", "accepted", "refused", "stale50", "stale90", "up", "down", "online", "version", "evaluation", "low",
           "median", "high")  # fmt: skip
"""Of a packed interval with its beginning."""


class Intervals:
    """Intervals one after the other, the last of which is open. `now` never goes back by more than an interval."""

    def __init__(self) -> None:
        self.step = FIRST
        self._closed: dict[int, Interval] = {}
        self._place: int | None = None
        """The open interval's number, of those since 1970."""
        self._open = Interval()
        self.epoch = 0
        """Counts the doublings: what was packed before one is of other intervals."""

    def at(self, now: float) -> Interval:
        """The open interval, after those that are over by now have been closed."""
        place = int(now // self.step)
        if self._place is None:
            self._place = place
        while place > self._place:
            if place - self._place > MOST:  # the machine slept, or its clock was set
                self._closed.clear()
                self._place, self._open = place, Interval()
                self.epoch += 1
                break
            self._closed[self._place] = self._open
            self._place, self._open = self._place + 1, Interval()
            if len(self._closed) > MOST:
                self._make_room()
                place = int(now // self.step)
        return self._open

    def _make_room(self) -> None:
        if self.step >= LONGEST:
            del self._closed[min(self._closed)]
            return
        assert self._place is not None
        joined: dict[int, Interval] = {}
        for place, interval in sorted([*self._closed.items(), (self._place, self._open)]):
            if place // 2 in joined:
                joined[place // 2].add(interval)
            else:
                joined[place // 2] = interval
        self.step *= 2
        self._place //= 2
        self._open = joined.pop(self._place)
        self._closed = joined
        self.epoch += 1

    def packed(self, after: int = 0) -> Iterator[list[float | int | None]]:
        """Closed intervals after one of a number, each with its beginning first."""
        for place, interval in self._closed.items():
            if place > after:
                yield [place * self.step, *interval.packed()]

    def drained(self) -> Interval:
        """All since it was asked for last, as one interval; the intervals begin again."""
        total = Interval()
        for each in (*self._closed.values(), self._open):
            total.add(each)
        self._closed.clear()
        self._place, self._open = None, Interval()
        self.epoch += 1
        return total

    @property
    def newest(self) -> int:
        """The number of the last closed interval; 0 if there is none."""
        return max(self._closed, default=0) if self._place is None else self._place - 1
