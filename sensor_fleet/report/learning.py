"""Figures of the training: score against time and bytes, and staleness and weights of the updates."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from midge.sensor_fleet.progress import HELD, quantile
from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.quantities import duration, percent, plain, score, significant, size
from midge.sensor_fleet.report.run import Run
from midge.sensor_fleet.report.scales import AxisScale
from midge.sensor_fleet.report.svg import Label, Plot, Point, thinned
from midge.wire.plurals import counted

Size = tuple[float, float]
LABELS: Final = 86.0
"""Width of the labels to the right of a plot."""
_POINTS: Final = 500
"""Maximum points of a line, beyond the resolution of a drawing."""
_DOTS: Final = 300


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the last values at each place, by which a target is held."""
    return [statistics.fmean(values[max(0, end - HELD) : end]) for end in range(1, len(values) + 1)]


def score_scale(runs: Sequence[Run]) -> AxisScale:
    """Scale from 0 to 100% for accuracy, from 0 to a useful maximum for an error, beyond which values are clipped."""
    if runs[0].metric == "accuracy":
        return scales.linear(0.0, 1.0, lambda value: percent(value, 0))
    worth: list[float] = []
    for run in runs:
        values = [evaluation.value for evaluation in run.evaluations if math.isfinite(evaluation.value)]
        if values:
            ordered = sorted(values)
            worth += [values[0], values[-1], ordered[round(0.75 * (len(ordered) - 1))]]
        beside = [run.central.value if run.central else None, run.target]
        if run.alone is not None and run.alone.mean is not None:
            beside.append(run.alone.mean + (run.alone.deviation or 0.0))
        worth += [value for value in beside if value is not None]
    return scales.linear(0.0, 1.05 * max(worth, default=1.0))


def over_time(run: Run, room: Size) -> Plot:
    """The score over time, with both baselines and the target."""
    plot = Plot(
        room,
        f"{axis_of(run)} over {duration(run.seconds)}: {score(run.value, run.metric)} at the end.",
        x := scales.of_time(run.seconds, count=8 if room[0] > 500 else 4),
        score_scale([run]),
        x_name=f"{scales.unit_of_time(x)} since the start",
        y_name=axis_of(run),
        right=LABELS,
    )
    for start, end, what in run.killed:
        low, high = run.since(start), run.seconds if end is None else run.since(end)
        plot.stretch(low, high, "outage", f"{what} killed at {duration(low)}")
    labels = _baselines(plot, run)
    if run.target is not None:
        plot.level(run.target, "target")
        words = f"target {score(run.target, run.metric)}"
        if run.seconds_to_target is not None:
            plot.drop(
                run.seconds_to_target, run.target, f"{words}, held at {duration(run.seconds_to_target)}", "target"
            )
        else:
            plot.text(plot.right - 4, plot.y(run.target) - 5, f"{words}, missed", "note target", "end")
    times = [run.since(evaluation.time) for evaluation in run.evaluations]
    values = [evaluation.value for evaluation in run.evaluations]
    plot.line(thinned(list(zip(times, values, strict=True)), _POINTS), "raw")
    plot.line(thinned(list(zip(times, running_mean(values), strict=True)), _POINTS), "fleet")
    if run.value is not None:
        labels.append(Label(run.value, "federated", score(run.value, run.metric), "fleet"))
    plot.labels(labels)
    return plot


def over_bytes(run: Run, room: Size) -> Plot | None:
    """The score over the mean bytes of a device; pooling and training alone are single points."""
    number = run.size
    known = [evaluation for evaluation in run.evaluations if evaluation.up is not None and evaluation.down is not None]
    if not known or not number:
        return None
    means = running_mean([evaluation.value for evaluation in known])
    sent: list[Point] = [((one.up or 0.0) / number, mean) for one, mean in zip(known, means, strict=True)]
    both: list[Point] = [
        (((one.up or 0.0) + (one.down or 0.0)) / number, mean) for one, mean in zip(known, means, strict=True)
    ]
    raw = statistics.fmean(traits.bytes for traits in run.devices.values()) if run.devices else None
    plot = Plot(
        room,
        f"{axis_of(run)} against bytes: {size(both[-1][0])} a device at the end.",
        scales.of_bytes(max(both[-1][0], raw or 0.0) * 1.03, count=4 if room[0] > 400 else 3),
        score_scale([run]),
        x_name="sent and received per device",
        y_name=axis_of(run),
        right=LABELS,
    )
    labels = []
    plot.line(thinned(sent, _POINTS), "sent")
    plot.line(thinned(both, _POINTS), "fleet")
    x, y = plot.x(sent[-1][0]), plot.y(sent[-1][1])
    if room[0] > 500:  # on a phone only the caption has room for it
        plot.text(x + 6, y + 4, "sent only", "note fleet")  # right of its end, where there is no curve yet
    if run.value is not None:
        labels.append(Label(run.value, "federated", score(run.value, run.metric), "fleet"))
    if run.central is not None and run.central.value is not None and raw is not None:
        plot.level(run.central.value, "central faint")
        plot.point(raw, run.central.value, "central", radius=4.5, title=f"raw data sent once: {size(raw)} a device")
        labels.append(Label(run.central.value, "pooled", score(run.central.value, run.metric), "central"))
    if run.alone is not None and run.alone.mean is not None:
        plot.level(run.alone.mean, "alone faint")
        plot.point(0.0, run.alone.mean, "alone", radius=4.5, title="each device alone: nothing sent")
        labels.append(Label(run.alone.mean, "alone", score(run.alone.mean, run.metric), "alone"))
    plot.labels(labels)
    return plot


def staleness(taus: Counter[int], room: Size) -> Plot | None:
    """Histogram of the staleness of accepted updates, from their numbers by steps."""
    if not taus:
        return None
    median, ninth, most = (quantile(taus, share) for share in (0.5, 0.9, 1.0))
    width = scales.bins(most, 30 if room[0] > 400 else 22)
    counts: Counter[int] = Counter()
    for tau, number in taus.items():
        counts[tau // width] += number
    plot = Plot(
        room,
        f"Staleness of {counted(taus.total(), 'accepted update')}: median {median} steps, at most {most}.",
        scales.of_counts((max(counts) + 1) * width, tight=True),
        scales.of_counts(max(counts.values()) * 1.25, tight=True),
        x_name="steps stale",
        y_name="accepted updates",
    )
    for place, number in sorted(counts.items()):
        low, high = place * width, (place + 1) * width
        about = f"{low}" if width == 1 else f"{low} to {high - 1}"
        plot.bar(low, high, number, "fleet", f"{about} steps: {counted(number, 'update')}")
    plot.mark(median + 0.5, f"median {median}", "mark")
    if ninth > median:
        plot.mark(ninth + 0.5, f"90% up to {ninth}", "mark", 1)
    return plot


def weights(run: Run, room: Size) -> Plot | None:
    """The weights of updates, by staleness."""
    found = Counter((update.staleness, round(update.weight, 3)) for update in run.accepted)
    if not found:
        return None
    top = max(weight for _, weight in found)
    plot = Plot(
        room,
        f"Weight of updates by staleness: from {significant(top)} down to {significant(min(w for _, w in found))}.",
        scales.of_counts(1.02 * max(tau for tau, _ in found), tight=True),
        scales.linear(0, (top or 1.0) * 1.08, plain, count=4, tight=True),
        x_name="steps stale",
        y_name="weight in the model",
    )
    stride = math.ceil(len(found) / _DOTS)
    for (tau, weight), number in sorted(found.items())[::stride]:
        title = f"{tau} steps stale: weight {significant(weight)}, {counted(number, 'update')}"
        plot.point(tau, weight, "fleet dense", radius=min(9.0, 2.2 + 0.6 * math.sqrt(number)), title=title)
    return plot


def axis_of(run: Run) -> str:
    """The axis title of a score."""
    return "accuracy on the test rows" if run.metric == "accuracy" else "RMSE on the test rows (lower is better)"


def _baselines(plot: Plot, run: Run) -> list[Label]:
    """Draw both baselines over the whole width; return their labels."""
    labels = []
    if (alone := run.alone) is not None and alone.mean is not None:
        deviation = alone.deviation or 0.0
        plot.band(alone.mean - deviation, alone.mean + deviation, "alone")
        plot.level(alone.mean, "alone")
        labels.append(Label(alone.mean, "alone", score(alone.mean, run.metric), "alone"))
    if (central := run.central) is not None and central.value is not None:
        plot.level(central.value, "central")
        labels.append(Label(central.value, "pooled", score(central.value, run.metric), "central"))
    return labels
