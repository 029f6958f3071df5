"""The rule of the advice: which way is chosen among the measured ones, by what their devices may give away."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from midge.sensor_fleet.advice.ways import Name, Reach, WayRow
from midge.sensor_fleet.progress import METRICS

_REACH: Final[dict[Reach, int]] = {"nowhere": 0, "site": 1, "anywhere": 2}
POINT: Final = 0.01
"""Least difference between two accuracies that counts."""
ERROR: Final = 0.02
"""The same of two errors, as a share."""
WORTH_DISTRIBUTING: Final = 600.0
"""Seconds of training on one machine above which a second machine is worth its traffic."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Comparison of ways by one metric."""

    metric: str
    own: bool = True
    """Whether devices kept rows of their own out of training; otherwise new rows decide alone."""

    def value(self, row: WayRow) -> float:
        """The mean of both scores: of new rows of the whole fleet, and of the device's own."""
        return (row.score.mean + row.own.mean) / 2 if self.own else row.score.mean

    def spread(self, row: WayRow) -> float:
        """The difference between the seeds, on new rows."""
        return row.score.high - row.score.low

    def gain(self, value: float, other: float) -> float:
        """By how much a value is better than another; below 0 if it is worse."""
        return METRICS[self.metric] * (value - other)

    def margin(self, value: float) -> float:
        """The least difference from a value that counts."""
        return POINT if self.metric == "accuracy" else ERROR * abs(value)

    def good(self, row: WayRow, best: float) -> bool:
        """Whether a way is within the margin of the best value, or within its own spread."""
        return self.gain(best, self.value(row)) <= max(self.margin(best), self.spread(row))


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rule chooses."""

    chosen: WayRow
    allowed: tuple[WayRow, ...]
    """The ways that may be used."""
    good: tuple[WayRow, ...]
    """Those of them that are as good as the best."""


def choose(rows: Sequence[WayRow], judge: Judge, reach: Reach | None) -> Choice:
    """Choose the good way that exposes least; with `anywhere`, the one that moves the fewest bytes.

    A way whose score is no number, because its training diverged, is chosen only if no way has one.
    """
    named = {row.way: row for row in rows}
    allowed = [row for row in rows if _REACH[row.exposure.reach] <= _REACH[reach or "anywhere"]]
    if not _worth_distributing(named):  # the steps are those of the pooled training
        allowed = [row for row in allowed if row.way != "data-parallel"]
    known = [row for row in allowed if math.isfinite(judge.value(row))] or allowed
    best = known[0]
    for row in known:
        best = row if judge.gain(judge.value(row), judge.value(best)) > 0 else best
    good = [row for row in known if row is best or judge.good(row, judge.value(best))]
    fewest = reach == "anywhere"
    chosen = min(good, key=lambda row: (row.bytes if fewest else 0.0, row.exposure.order))
    return Choice(chosen, tuple(allowed), tuple(good))


def _worth_distributing(named: dict[Name, WayRow]) -> bool:
    pooled, parallel = named.get("pooled"), named.get("data-parallel")
    if pooled is None or parallel is None:
        return parallel is not None
    return pooled.seconds > WORTH_DISTRIBUTING and parallel.seconds < pooled.seconds
