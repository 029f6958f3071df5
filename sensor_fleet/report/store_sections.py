"""The page of a production federation, from the store of its aggregator."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Final

from midge.aggregator.store.history import FederatedScore, Period, ScoreRange, total
from midge.aggregator.store.summary import DeviceSummary, StoreSummary
from midge.sensor_fleet.progress import FINAL, quantile
from midge.sensor_fleet.report import learning, scales
from midge.sensor_fleet.report.html import FULL, Section, Size, drawn, page
from midge.sensor_fleet.report.quantities import MISSING, date, duration, percent, score, size, whole
from midge.sensor_fleet.report.scales import AxisScale
from midge.sensor_fleet.report.svg import Label, Plot
from midge.wire.clocks import DAY
from midge.wire.messages import HealthState

METRICS: Final = 4
"""Most metrics that are drawn."""
ROWS: Final = 40
"""Most devices in the table; JSON has all."""
VERSIONS: Final = 20
"""Most registered versions in the table, and marked in a figure."""
_BARS: Final = 60
"""Most bars of a figure …"""
_POINTS: Final = 240
"""… and most points of a line."""
_INKS: Final = 8
"""Colours of layers; the style sheet has as many."""
_STATES: Final = (*(state.value for state in HealthState), "not served")
_SHARE: Final = 0.02
"""Share of the highest and lowest values that an axis leaves beyond its ends, so that one of them does not set it."""
_MADE: Final = "Made by midge report from the store of an aggregator. Times are in UTC."


def store_page(found: StoreSummary) -> str:
    """Render the page, as self-contained HTML."""
    return page(f"{found.federation}: a Midge federation", sections(found), _MADE)


def sections(found: StoreSummary) -> Iterator[Section | None]:
    """All sections, from the top."""
    history = HistoryView(found.periods)
    yield _head(found, history)
    yield _learned(found, history)
    yield _updates(found, history)
    yield _staleness(history)
    yield _traffic(history)
    yield _service(history)
    yield _devices(found)
    yield _versions(found)
    yield Section("store_setting", {"found": found})


def packed(found: StoreSummary) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    registry = found.registry
    return {
        "federation": found.federation,
        "running": found.running,
        "generation": found.generation,
        "version": found.version,
        "step": found.step,
        "released": found.released,
        "parameters": found.parameters,
        "updates": dict(found.verdicts),
        "applied": found.applied,
        "strategy": found.strategy,
        "privacy": None if found.privacy is None else found.privacy.packed(),
        "aliases": registry.named,
        "registered": list(registry.versions),
        "decisions": found.decisions,
        "devices": {one.name: {k: v for k, v in asdict(one).items() if k != "name"} for one in found.devices},
        "history": [_plain(period) for period in found.periods],
    }


def _plain(one: Period) -> dict[str, Any]:
    names = ("began", "seconds", "steps", "releases", "version", "bytes_in", "bytes_out", "devices", "states")
    return {
        **{name: getattr(one, name) for name in names},
        "verdicts": dict(one.verdicts),
        "staleness": sorted(one.staleness.items()),
        "evaluation": {name: asdict(scores) for name, scores in one.evaluation.items()},
        "federated": {name: asdict(scores) for name, scores in one.federated.items()},
    }


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


# --------------------------------------------------------------------------- sections


def name_of(metric: str) -> str:
    """A metric's name for readers."""
    return {"rmse": "RMSE", "mae": "MAE"}.get(metric, metric.replace("_", " "))


def _head(found: StoreSummary, history: HistoryView) -> Section:
    metric = next(iter(history.metrics), None)
    return Section(
        "store_head",
        {
            "found": found,
            "history": history,
            "metric": metric,
            "name": None if metric is None else name_of(metric),
            "value": None if metric is None else history.value(metric),
            "accepted": found.verdicts["accepted"],
            "refused": _refused(found.verdicts),
            "taus": [quantile(history.whole.staleness, share) for share in (0.5, 0.9, 1.0)],
            "accepted_since": history.whole.verdicts["accepted"],
            "day": _heard_since(found, history.end - DAY),
            "served": _share_served(history),
            "span": history.end - history.began,
        },
    )


def _refused(verdicts: Mapping[str, int]) -> int:
    return sum(number for verdict, number in verdicts.items() if verdict in FINAL and verdict != "accepted")


def _heard_since(found: StoreSummary, since: float) -> int:
    return sum(one.heard >= since for one in found.devices)


def _share_served(history: HistoryView) -> float | None:
    """Share of the time since the first look at the health; None if it was never looked at."""
    began = next((one.began for one in history.periods if one.states), None)
    return None if began is None else min(1.0, history.served / (history.end - began))


def _learned(found: StoreSummary, history: HistoryView) -> Section | None:
    if not history.metrics:
        return None
    marks = [(one.record.at, f"{one.version} registered") for one in list(found.registry.versions.values())[-VERSIONS:]]
    figures = [
        (name_of(name), drawn(partial(_scores, history, name, marks), FULL)) for name in history.metrics[:METRICS]
    ]
    return Section(
        "store_learning",
        {
            "figures": figures,
            "own": bool(history.whole.evaluation),
            "theirs": bool(history.whole.federated),
            "more": history.metrics[METRICS:],
            "marks": len(marks),
        },
    )


def _scores(history: HistoryView, metric: str, marks: Sequence[tuple[float, str]], room: Size) -> Plot:
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


def _updates(found: StoreSummary, history: HistoryView) -> Section | None:
    verdicts = history.whole.verdicts
    if not verdicts.total():
        return None
    others = [verdict for verdict, number in verdicts.most_common() if verdict != "accepted" and number]
    named, rest = others[: _INKS - 1], others[_INKS - 1 :]
    layers = [([verdict], verdict.replace("_", " ")) for verdict in named] + ([(rest, "others")] if rest else [])
    return Section(
        "store_updates",
        {
            "width": history.width,
            "layers": [words for _, words in layers],
            "rows": [(verdict, number) for verdict, number in verdicts.most_common() if number],
            "known": found.verdicts,
            "accepted": drawn(partial(_bars, history, [(["accepted"], "accepted")], ["fleet"], "accepted")),
            "refused": drawn(partial(_bars, history, layers, [f"c{n}" for n in range(len(layers))], "not accepted"))
            if layers
            else None,
        },
    )


def _bars(
    history: HistoryView, layers: Sequence[tuple[Sequence[str], str]], inks: Sequence[str], name: str, room: Size
) -> Plot:
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


def _staleness(history: HistoryView) -> Section | None:
    taus = history.whole.staleness
    if not taus:
        return None
    return Section(
        "store_staleness",
        {
            "taus": [quantile(taus, share) for share in (0.5, 0.9, 1.0)],
            "histogram": drawn(partial(learning.staleness, taus)),
            "over_time": drawn(partial(_stale_over_time, history)),
        },
    )


def _stale_over_time(history: HistoryView, room: Size) -> Plot:
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


def _traffic(history: HistoryView) -> Section | None:
    whole_ = history.whole
    if not whole_.bytes_in + whole_.bytes_out or not history.served:
        return None
    days, updates = history.served / DAY, whole_.verdicts["accepted"]
    moved = {"from devices": whole_.bytes_in, "published": whole_.bytes_out}
    return Section(
        "store_traffic",
        {
            "rows": [
                (name, size(number), size(number / days), size(number / updates) if updates else MISSING)
                for name, number in moved.items()
            ],
            "served": history.served,
            "over_time": drawn(partial(_bytes_over_time, history), FULL),
        },
    )


def _bytes_over_time(history: HistoryView, room: Size) -> Plot:
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


def _service(history: HistoryView) -> Section | None:
    if not history.served:
        return None
    return Section(
        "store_service",
        {
            "states": [(place, name) for place, name in enumerate(_STATES) if name != "not served"],
            "rows": sorted(history.whole.states.items(), key=lambda state: -state[1]),
            "served": history.served,
            "share": _share_served(history),
            "over_time": drawn(partial(_states_over_time, history), (FULL[0], 200.0)),
        },
    )


def _states_over_time(history: HistoryView, room: Size) -> Plot:
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
            for state in _STATES
        ]
        plot.stack(one.began, one.end, parts)
    return plot


def _devices(found: StoreSummary) -> Section | None:
    if not found.devices:
        return None
    shown = sorted(found.devices, key=lambda one: (-bool(one.since), -one.since, one.heard, one.name))[:ROWS]
    return Section(
        "store_devices",
        {
            "found": found,
            "rows": [_device(one, found.version) for one in shown],
            "refused": sum(bool(one.since) for one in found.devices),
            "activity": drawn(partial(_activity, found)),
            "updates": drawn(partial(_contributions, found)),
        },
    )


def _device(one: DeviceSummary, version: int) -> tuple[str, ...]:
    behind = whole(version - one.version) if one.version else MISSING
    last = date(one.heard) if one.heard else MISSING
    problem = f"{one.verdict.replace('_', ' ')} × {one.since}" if one.since else MISSING
    return one.name, last, whole(one.accepted), whole(one.refused), behind, problem


def _activity(found: StoreSummary, room: Size) -> Plot | None:
    """By number of days since its last accepted message, the devices."""
    heard = [one.heard for one in found.devices if one.heard]
    days = [int((max(heard) - at) / DAY) for at in heard]
    if not any(days):  # one bar says nothing
        return None
    return _histogram(days, "days since a device was last heard", "devices", room)


def _contributions(found: StoreSummary, room: Size) -> Plot | None:
    """By number of accepted updates, the devices."""
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


def _versions(found: StoreSummary) -> Section | None:
    registry = found.registry
    if not registry.versions:
        return None
    names = {version: name for name, version in registry.named.items()}
    rows = [
        (
            f"{one.version}" + (f", {names[one.version]}" if one.version in names else ""),
            date(one.record.at),
            whole(one.record.devices),
            whole(one.record.updates),
            ", ".join(f"{name} {score(value, name)}" for name, value in one.server.items()) or MISSING,
            ", ".join(f"{name} {score(spread['mean'], name)}" for name, spread in one.federated.items()) or MISSING,
        )
        for one in list(registry.versions.values())[-VERSIONS:]
    ]
    return Section("store_versions", {"rows": rows, "why": registry.why, "share": registry.share, "registry": registry})
