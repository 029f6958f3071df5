"""Federated evaluation: the devices' results on their own data, combined, with the spread over devices and speeds.

Devices send numbers and counts of rows. The mean of a metric is weighted by rows; the spread is over devices, each
counted once, because a mean hides the few for which the model does not work. Speed classes are thirds of the devices by
the duration of their trainings: an asynchronous federation must not neglect the slow third.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midge.wire.messages import Report
from midge.wire.overview import spread_of_sites

CLASSES = ("fast", "middle", "slow")
_METRICS = 32
"""Most metrics of a report."""
_MOST = 100_000
"""Devices whose newest report is kept."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the devices that reported it."""

    mean: float
    """Over all rows."""
    lowest: float
    low: float
    """The tenth percentile of devices."""
    median: float
    high: float
    """The ninetieth."""
    highest: float
    classes: Mapping[str, float]
    """The mean over devices of each speed class."""

    def packed(self) -> dict[str, object]:
        """As plain values."""
        return {
            "mean": self.mean,
            "lowest": self.lowest,
            "low": self.low,
            "median": self.median,
            "high": self.high,
            "highest": self.highest,
            "classes": dict(self.classes),
        }


class Reports:
    """The newest report of each device, and the duration of its trainings."""

    def __init__(self) -> None:
        self._newest: dict[str, Report] = {}
        self._seconds: dict[str, float] = {}
        self.new = 0
        """Reports since the last combination."""
        self.taken = 0
        """All reports so far."""

    def __len__(self) -> int:
        return len(self._newest)

    @property
    def devices(self) -> int:
        """The number of devices of which there are results; a site's are as many as its gateway says."""
        return sum(max(1, report.devices) for report in self._newest.values())

    def newest(self, device: str) -> Report | None:
        """The newest report of a device."""
        return self._newest.get(device)

    def take(self, device: str, report: Report) -> None:
        """Add a report, unless it is of an older version than the known one."""
        before = self._newest.get(device)
        if (before is None or before.version <= report.version) and (before is not None or len(self._newest) < _MOST):
            self._newest[device] = report
            self.new += 1
            self.taken += 1

    def trained(self, device: str, seconds: float) -> None:
        """Record the duration of a device's training."""
        if device in self._newest and seconds > 0:
            before = self._seconds.get(device, seconds)
            self._seconds[device] = before + 0.3 * (seconds - before)

    def forget(self, device: str) -> None:
        """Remove a device."""
        self._newest.pop(device, None)
        self._seconds.pop(device, None)

    def combined(self) -> dict[str, Spread]:
        """Each metric by name, over the newest reports of all devices."""
        self.new = 0
        return self._spreads(self._classes())

    def _spreads(self, classes: Mapping[str, str]) -> dict[str, Spread]:
        values: dict[str, list[tuple[float, int, str]]] = {}
        for device, report in self._newest.items():
            for name, value in report.metrics.items():
                values.setdefault(name, []).append((value, report.examples, classes.get(device, "")))
        return {name: _spread(found) for name, found in sorted(values.items())}

    def merged(self, lineage: bytes) -> Report | None:
        """The results of all devices as one report, a gateway's: means over rows, as in `combined`; None if none."""
        if not self._newest:
            return None
        every = list(self._newest.values())
        return Report(
            lineage=lineage,
            version=max(report.version for report in every),
            examples=sum(report.examples for report in every),
            metrics={name: spread.mean for name, spread in list(self._spreads({}).items())[:_METRICS]},
            devices=len(every),
        )

    def sites(self) -> dict[str, dict[str, float]]:
        """Each metric by name: the spread of the sites' means."""
        return spread_of_sites(report.metrics for report in self._newest.values() if report.devices)

    def _classes(self) -> dict[str, str]:
        order = sorted(self._seconds, key=lambda device: (self._seconds[device], device))
        return {device: CLASSES[3 * place // len(order)] for place, device in enumerate(order)}


def _spread(found: Sequence[tuple[float, int, str]]) -> Spread:
    rows = sum(examples for _, examples, _ in found)
    weighted = sum(value * examples for value, examples, _ in found)
    each = sorted(value for value, _, _ in found)
    by_class = {name: [value for value, _, its in found if its == name] for name in CLASSES}
    return Spread(
        mean=weighted / rows if rows else sum(each) / len(each),
        lowest=each[0],
        low=_quantile(each, 0.1),
        median=_quantile(each, 0.5),
        high=_quantile(each, 0.9),
        highest=each[-1],
        classes={name: sum(values) / len(values) for name, values in by_class.items() if values},
    )


def _quantile(each: Sequence[float], part: float) -> float:
    """Interpolated between the two nearest of sorted values."""
    place = part * (len(each) - 1)
    below = int(place)
    above = min(below + 1, len(each) - 1)
    return each[below] + (place - below) * (each[above] - each[below])
