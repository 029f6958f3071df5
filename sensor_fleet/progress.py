"""Progress of a run, accumulated from the aggregator's events."""

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midge.wire.messages import Verdict

HELD = 5
"""Number of evaluations over which a target must be held: their mean counts, not a single value."""
METRICS = {"accuracy": 1, "rmse": -1}
"""The metrics that a target can be set for: 1 if higher is better, −1 if lower."""
FINAL = tuple(verdict.value for verdict in Verdict if verdict.final)
"""Verdicts that settle an update."""


@dataclass(slots=True)
class Progress:
    """Accumulate events with `add`; read the other attributes."""

    target: float | None = None
    version: int = 0
    step: int = 0
    metric: str = "accuracy"
    updates: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)
    states: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    seconds_to_target: float | None = None
    began: float = 0.0
    """When the run began, in seconds since 1970."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Time since the start and metric of every evaluation."""
    digest: str = ""
    """Digest of the published model at the aggregator's last start."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=HELD))

    def add(self, event: Mapping[str, Any]) -> None:
        """Record one event."""
        match event["event"]:
            case "start":
                self._started(event)
            case "update":
                self.updates[event["verdict"]] += 1
                if event["verdict"] == "accepted":
                    self.staleness[event["staleness"]] += 1
            case "release":
                self.version, self.step = event["version"], event["step"]
            case "evaluation":
                self._evaluated(event)
            case "device":
                self.states[event["device"]] = event["state"]
            case "dropped":
                self.dropped += 1
            case "repeat":
                self.updates["duplicate"] += 1
            case _:
                pass

    def _started(self, event: Mapping[str, Any]) -> None:
        """Restore counts from the aggregator's journal: a killed one may have decided what it did not report."""
        self.version, self.step = event["version"], event["step"]
        self.digest = event.get("digest", "")
        counts = Counter({verdict: event.get("counts", {}).get(verdict, 0) for verdict in FINAL})
        self.updates |= counts  # the maximum of both

    def _evaluated(self, event: Mapping[str, Any]) -> None:
        for name, sign in METRICS.items():
            if name in event["metrics"]:
                self.metric = name
                self._recent.append(event["metrics"][name])
                self.curve.append((event["time"] - self.began, event["metrics"][name]))
                reached = self.target is not None and sign * (self.value or 0.0) >= sign * self.target
                if reached and len(self._recent) == HELD and self.seconds_to_target is None:
                    self.seconds_to_target = event["time"] - self.began

    @property
    def value(self) -> float | None:
        """The mean of the last evaluations; None before the first."""
        return statistics.fmean(self._recent) if self._recent else None

    @property
    def settled(self) -> int:
        """Number of updates with a final verdict, as far as reported."""
        return sum(self.updates[verdict] for verdict in FINAL)

    @property
    def reached(self) -> bool:
        return self.seconds_to_target is not None

    def quantiles(self) -> dict[str, int]:
        """Staleness of the accepted updates in steps: median, 90th percentile and maximum."""
        if not self.staleness:
            return {}
        shares = (("p50", 0.5), ("p90", 0.9), ("max", 1.0))
        return {name: quantile(self.staleness, share) for name, share in shares}


def quantile(histogram: Mapping[int, int], share: float) -> int:
    """The least value that at least this share of the values do not exceed; 0 if there are none."""
    needed, seen = share * sum(histogram.values()), 0
    for value, number in sorted(histogram.items()):
        seen += number
        if seen >= needed:
            return value
    return 0
