"""Figures of the page of a production federation: what its history shows over time, and its devices."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from midge.aggregator.store.history import FederatedScore, Period, ScoreRange, total
from midge.aggregator.store.summary import StoreSummary
from midge.sensor_fleet.progress import quantile
from midge.sensor_fleet.report import learning, scales
from midge.sensor_fleet.report.html import Size
from midge.sensor_fleet.report.quantities import date, duration, percent, score, size
from midge.sensor_fleet.report.scales import AxisScale
from midge.sensor_fleet.report.svg import Label, Plot
from midge.wire.clocks import DAY
from midge.wire.messages import HealthState

_BARS: Final = 60
"""Most bars of a figure …"""
_POINTS: Final = 240
"""… and most points of a line."""
STATES: Final = (*(state.value for state in HealthState), "not served")
_SHARE: Final = 0.02
"""Share of the highest and lowest values that an axis leaves beyond its ends, so that one of them does not set it."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The periods between two times."""

    began: float
    end: float
    period: Period


class HistoryView:
    """The periods as what figures need."""

    def __init__(self, periods: Sequence[Period]) -> None:
        self.periods = [one for one in periods if one.began]

    @cached_property
    def whole(self) -> Period:
        return total(self.periods)

    @property
    def began(self) -> float:
        return float(self.periods[0].began) if self.periods else 0.0

    @property
    def end(self) -> float:
        """The newest known time; the last period may not be over."""
        if not self.periods:
            return 0.0
        last = self.periods[-1]
        return last.began + min(last.seconds, sum(last.states.values()) or last.seconds)

    @property
    def served(self) -> float:
        """Seconds in which the aggregator served."""
        return sum(self.whole.states.values())

    @cached_property
    def bins(self) -> list[Bin]:
        """Periods by equal bins, for bars."""
        return self.divided(_BARS)

    def divided(self, most: int) -> list[Bin]:
        """Periods by equal bins, about `most` or fewer."""
        if not self.periods:
            return []
        width = scales.round_interval((self.end - self.began) / most, max(one.seconds for one in self.periods))
        found: dict[int, list[Period]] = {}
        for one in self.periods:
            found.setdefault(one.began // width, []).append(one)
        places = range(min(found), max(found) + 1)  # also where nothing was served
        return [Bin(place * width, (place + 1) * width, total(found.get(place, ()))) for place in places]

    @property
    def width(self) -> float:
        """Seconds of a bin."""
        return self.bins[0].end - self.bins[0].began if self.bins else 0.0

    def x(self, room: Size) -> AxisScale:
        """The axis of time."""
        return scales.of_dates(self.bins[0].began, self.bins[-1].end, count=8 if room[0] > 500 else 3)

    @property
    def metrics(self) -> list[str]:
        """Metrics that were measured, those with a usual name first."""
        names = dict.fromkeys(name for one in self.periods for name in (*one.evaluation, *one.federated))
        return sorted(names, key=lambda name: (name not in {"accuracy", "rmse"}, name not in self.whole.evaluation))

    def value(self, metric: str) -> float | None:
        """The newest value of a metric: the aggregator's own evaluation, otherwise the devices' mean."""
        for one in reversed(self.periods):
            if metric in one.evaluation:
                return one.evaluation[metric].mean
        newest = self.whole.federated.get(metric)
        return None if newest is None else newest.mean


def name_of(metric: str) -> str:
    """A metric's name for readers."""
    return {"rmse": "RMSE", "mae": "MAE"}.get(metric, metric.replace("_", " "))


def scores(history: HistoryView, metric: str, marks: Sequence[tuple[float, str]], room: Size) -> Plot:
    """Draw a metric over time: the aggregator's evaluation, and the range on devices; marks are times with a text."""
    fine = history.divided(_POINTS)
    own: list[tuple[Bin, ScoreRange | FederatedScore]] = [
        (one, one.period.evaluation[metric]) for one in fine if metric in one.period.evaluation
    ]
    theirs: list[tuple[Bin, ScoreRange | FederatedScore]] = [
        (one, one.period.federated[metric]) for one in fine if metric in one.period.federated
    ]
    values = [value for _, one in own for value in (one.low, one.high)]
    values += [value for _, one in theirs for value in (one.mean, one.low, one.high)]
    plot = Plot(
        room,
        f"{name_of(metric)} over time: {score(history.value(metric), metric)} at the end.",
        history.x(room),
        _score_scale(metric, values),
        x_name="time (UTC)",
        y_name="",
        right=learning.LABELS,
    )
    for time_, words in marks:
        if plot.x.holds(time_):
            plot.rule(plot.x(time_), plot.top, plot.x(time_), plot.bottom, "line target")
            plot.path(f"M{plot.x(time_):.1f} {plot.top:.1f}h0", "line target", words)
    plot.ranges([(one.began, one.end, band.low, band.high) for one, band in theirs], "alone")
    plot.ranges([(one.began, one.end, band.low, band.high) for one, band in own], "fleet faded")
    labels = []
    newest = history.whole.federated.get(metric)
    for points, name, last, ink in (
        (theirs, "on devices", None if newest is None else newest.mean, "alone"),
        (own, "evaluation", history.value(metric), "fleet"),
    ):
        if points and last is not None:
            plot.line([((one.began + one.end) / 2, band.mean) for one, band in points], ink)
            labels.append(Label(points[-1][1].mean, name, score(last, metric), ink))
    plot.labels(labels)
    return plot


def _score_scale(metric: str, values: Sequence[float]) -> AxisScale:
    ordered = sorted(value for value in values if math.isfinite(value)) or [0.0]
    cut = int(_SHARE * len(ordered))
    low, high = ordered[cut], ordered[-1 - cut]
    if metric == "accuracy":
        return scales.linear(max(0.0, math.floor(low * 10 - 0.5) / 10), 1.0, lambda value: percent(value, 0))
    return scales.linear(min(0.0, low), max(0.0, high) * 1.05)


def bars(
    history: HistoryView, layers: Sequence[tuple[Sequence[str], str]], inks: Sequence[str], name: str, room: Size
) -> Plot:
    """Draw the updates with some verdicts, in layers."""

    def number(one: Bin, verdicts: Sequence[str]) -> int:
        return sum(one.period.verdicts[verdict] for verdict in verdicts)

    most = max(sum(number(one, verdicts) for verdicts, _ in layers) for one in history.bins)
    plot = Plot(
        room,
        f"Updates {name} over time.",
        history.x(room),
        scales.of_counts(most * 1.08, tight=True),
        x_name="time (UTC)",
        y_name=f"{name}, in {duration(history.width)}",
    )
    for one in history.bins:
        parts = [
            (float(number(one, verdicts)), f"{ink} layer", f"{date(one.began)}: {number(one, verdicts):,} {words}")
            for (verdicts, words), ink in zip(layers, inks, strict=True)
        ]
        plot.stack(one.began, one.end, parts)
    return plot


def staleness_over_time(history: HistoryView, room: Size) -> Plot:
    """Draw how stale half, nine in ten and all of the accepted updates were."""
    bins = [one for one in history.bins if one.period.staleness]
    lines = [
        ("half", 0.5, "fleet", "run fleet"),
        ("90%", 0.9, "c1", "run c1"),
        ("all", 1.0, "c7", "run c7"),
    ]
    values = {name: [quantile(one.period.staleness, share) for one in bins] for name, share, *_ in lines}
    ordered = sorted(values["all"])
    plot = Plot(
        room,
        "Staleness over time: half, nine in ten and all of the accepted updates were at most this stale.",
        history.x(room),
        scales.of_counts(ordered[-1 - int(_SHARE * len(ordered))] * 1.08, tight=True),
        x_name="time (UTC)",
        y_name="steps stale, at most",
        right=58.0,
    )
    labels = []
    for name, _, ink, classes in lines:
        plot.line([((one.began + one.end) / 2, value) for one, value in zip(bins, values[name], strict=True)], classes)
        labels.append(Label(values[name][-1], name, f"{values[name][-1]}", ink))
    plot.labels(labels)
    return plot


def bytes_over_time(history: HistoryView, room: Size) -> Plot:
    """Draw the bytes from devices and those published."""
    lines = {
        "from devices": ([one.period.bytes_in for one in history.bins], "c0"),
        "published": ([one.period.bytes_out for one in history.bins], "c1"),
    }
    plot = Plot(
        room,
        "Bytes from devices and published, over time.",
        history.x(room),
        scales.of_bytes(1.08 * max(max(values) for values, _ in lines.values())),
        x_name="time (UTC)",
        y_name=f"payload in {duration(history.width)}",
        right=104.0,
    )
    labels = []
    for name, (values, ink) in lines.items():
        points = [((one.began + one.end) / 2, value) for one, value in zip(history.bins, values, strict=True)]
        plot.line(points, f"run {ink}")
        labels.append(Label(values[-1], name, size(values[-1]), ink))
    plot.labels(labels)
    return plot


def states_over_time(history: HistoryView, room: Size) -> Plot:
    """Draw the share of the time in each state of health."""
    plot = Plot(
        (room[0], min(room[1], 200.0)),
        "Share of the time in each state of health.",
        history.x(room),
        scales.linear(0.0, 1.0, lambda value: percent(value, 0), count=2),
        x_name="time (UTC)",
        y_name="share of the time",
    )
    for one in history.bins:
        lasted = one.period.states
        span = max(one.end - one.began, sum(lasted.values()))
        parts = [
            (
                lasted.get(state, 0.0) / span,
                f"health-{state}",
                f"{date(one.began)}: {duration(lasted.get(state))} {state}",
            )
            for state in STATES
        ]
        plot.stack(one.began, one.end, parts)
    return plot


def activity(found: StoreSummary, room: Size) -> Plot | None:
    """Draw the number of devices by days since the last accepted message."""
    heard = [one.heard for one in found.devices if one.heard]
    days = [int((max(heard) - at) / DAY) for at in heard]
    if not any(days):  # one bar says nothing
        return None
    return _histogram(days, "days since a device was last heard", "devices", room)


def contributions(found: StoreSummary, room: Size) -> Plot | None:
    """Draw the number of devices by accepted updates."""
    numbers = [one.accepted for one in found.devices]
    return _histogram(numbers, "accepted updates of a device", "devices", room) if any(numbers) else None


def _histogram(numbers: Sequence[int], x_name: str, y_name: str, room: Size) -> Plot:
    width = scales.bins(max(numbers), 24)
    counts = Counter(number // width for number in numbers)
    plot = Plot(
        room,
        f"{x_name}: from {min(numbers)} to {max(numbers)}.",
        scales.of_counts((max(counts) + 1) * width, tight=True),
        scales.of_counts(max(counts.values()) * 1.15, tight=True),
        x_name=x_name,
        y_name=y_name,
    )
    for place, number in sorted(counts.items()):
        low, high = place * width, (place + 1) * width
        about = f"{low}" if width == 1 else f"{low} to {high - 1}"
        plot.bar(low, high, number, "fleet", f"{about}: {number:,} {y_name}")
    return plot
