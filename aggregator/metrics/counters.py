"""Counters and histograms of a running aggregator: plain numbers, cheap to update.

None has a label for a device: with ten thousand devices and a few metrics, a page has megabytes and takes seconds to
write. Facts about single devices are in the journal.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(slots=True)
class Histogram:
    """Number of observations at or below each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets in Prometheus's form: upper bound as text, number of observations at or below it."""
        below, buckets = 0, []
        for bound, number in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += number
            buckets.append((bound, float(below)))
        return buckets


@dataclass(slots=True)
class Meters:
    """Counters since the start of the process."""

    verdicts: Counter[str] = field(default_factory=Counter)
    """Verdicts given, including `duplicate` and temporary refusals."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Unreadable or unexpected messages, by reason."""
    events: Counter[str] = field(default_factory=Counter)
    """Events by name, whether or not anything listens to them."""
    staleness: Histogram = field(default_factory=lambda: Histogram(STEPS))
    """Staleness of accepted updates, in steps."""
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Duration of one journal transaction, including its sync to disk."""
    receipt_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """From an update's arrival to the broker's acknowledgement of its receipt."""
    bytes_in: int = 0
    bytes_out: int = 0
    connects: int = 0
