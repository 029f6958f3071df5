"""Figures of the devices: timelines, participation, and the model's score on their own rows."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.quantities import duration, percent, score, seconds_tick
from midge.sensor_fleet.report.run import Run
from midge.sensor_fleet.report.svg import Drawing, Plot, rectangles, text_width
from midge.sensor_fleet.report.timelines import STATES, State, Timeline
from midge.wire.plurals import counted

Size = tuple[float, float]
ROWS: Final = 24
"""Maximum number of timelines drawn."""
_COLUMN: Final = 2.0
"""Pixels of a column, which shows the state that lasted longest in it."""
_FEWEST: Final = 8
"""Minimum number of devices for which the slowest quarter is distinguished."""


@dataclass(frozen=True, slots=True)
class Slow:
    """The slowest quarter of the devices, and the others."""

    slow: list[str]
    others: list[str]
    above: float
    """Seconds of a training on the fastest of the slow devices."""


def slowest(run: Run) -> Slow | None:
    """Find the slowest quarter; None if there are few devices, or all are about equally fast."""
    seconds = run.training_seconds
    names = sorted((name for name in run.names if name in seconds), key=lambda name: seconds[name])
    if len(names) < _FEWEST or seconds[names[-1]] < 1.5 * seconds[names[0]]:
        return None
    cut = len(names) - len(names) // 4
    return Slow(names[cut:], names[:cut], seconds[names[cut]])


def shown(run: Run, found: Mapping[str, Timeline]) -> list[Timeline]:
    """The timelines to draw, from the fastest device to the slowest; of a large fleet, an even selection."""
    seconds = run.training_seconds
    ordered = sorted(found.values(), key=lambda life: (seconds.get(life.device, math.inf), life.device))
    if len(ordered) <= ROWS:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (ROWS - 1))] for place in range(ROWS)]


def timeline(chosen: Sequence[Timeline], width: float) -> Drawing | None:
    """A row for each device, in the colours of its states; ends are marked."""
    if not chosen:
        return None
    end = max((life.spans[-1].end for life in chosen if life.spans), default=0.0)
    wide = width > 500
    row, bar, top = (17.0, 11.0, 20.0) if wide else (15.0, 9.0, 20.0)
    left = max(text_width(life.device) for life in chosen) + 4
    right = width - (58.0 if wide else 34.0)
    axis = top + row * len(chosen) + 2
    drawing = Drawing(width, axis + 38, f"What {counted(len(chosen), 'device')} did over {duration(end)}.")
    scale = scales.of_time(end, count=8 if wide else 4).over(left, right)
    drawing.text(width, 12, "training" if wide else "train", "axis", "end")
    for tick in scale.ticks:
        place = scale(tick)
        drawing.rule(place, top - 2, place, axis + 4, "hair")
        drawing.text(place, axis + 17, scale.text(tick), "tick", "middle")
    drawing.text(right, axis + 33, f"{scales.unit_of_time(scale)} since the start", "axis", "end")
    bars: dict[State, list[tuple[float, float, float, float]]] = {state: [] for state in STATES}
    for number, life in enumerate(chosen):
        y = top + row * number
        for state, start, stop in _columns(life, end, left, right):
            bars[state].append((start, y, stop - start, bar))
        drawing.text(left - 7, y + bar - 1.5, life.device, "tick", "end")
        drawing.text(width, y + bar - 1.5, percent(life.share("training"), 0), "tick", "end")
    for state in STATES:
        drawing.path(rectangles(bars[state]), f"state {state}")
    for number, life in enumerate(chosen):
        for time, how in life.ends:
            drawing.cross(
                scale(time), top + row * number + bar / 2, 4, "end", f"{life.device} {how} at {duration(time)}"
            )
    return drawing


def _columns(life: Timeline, end: float, left: float, right: float) -> list[tuple[State, float, float]]:
    """A timeline in columns of pixels, equal neighbours merged: (state, from, to)."""
    number = max(1, math.floor((right - left) / _COLUMN))
    lasting: list[dict[State, float]] = [{} for _ in range(number)]
    for span in life.spans:
        first, last = span.start / end * number, span.end / end * number
        for place in range(math.floor(first), min(number, math.ceil(last))):
            part = min(last, place + 1) - max(first, place)
            lasting[place][span.state] = lasting[place].get(span.state, 0.0) + part
    found: list[tuple[State, float, float]] = []
    width = (right - left) / number
    for place, parts in enumerate(lasting):
        if not parts:
            continue
        state = max(parts, key=lambda state: parts[state])
        start, stop = left + place * width, left + (place + 1) * width
        if found and found[-1][0] == state and abs(found[-1][2] - start) < 1e-6:
            found[-1] = (state, found[-1][1], stop)
        else:
            found.append((state, start, stop))
    return found


def participation(run: Run, room: Size) -> Plot | None:
    """Number of accepted updates of each device, by its speed."""
    seconds = run.training_seconds
    if not seconds or not run.accepted:
        return None
    counts = Counter(update.device for update in run.accepted)
    most = max(counts.values())
    plot = Plot(
        room,
        f"Accepted updates by speed: from {min(counts[name] for name in seconds)} to {most} a device.",
        scales.logarithmic(min(seconds.values()), max(seconds.values()), seconds_tick, count=5 if room[0] > 400 else 4),
        scales.of_counts(most * 1.08, count=4, tight=True),
        x_name="duration of a training",
        y_name="accepted updates",
    )
    _shade(plot, slowest(run))
    for name, took in sorted(seconds.items()):
        title = f"{name}: {counted(counts[name], 'update')}, {duration(took)} a training"
        plot.point(took, counts[name], "fleet soft", radius=4, title=title)
    return plot


def on_own_rows(run: Run, room: Size) -> Plot | None:
    """The fleet's model on each device's own rows, by the device's speed; slow devices marked, with their mean."""
    seconds, own = run.training_seconds, run.own
    if own is None:
        return None
    placed = {name: value for name, value in own.values.items() if name in seconds}
    if not placed:
        return None
    times = [seconds[name] for name in placed]
    low, high = min(placed.values()), max(placed.values())
    if run.metric == "accuracy":
        y = scales.linear(math.floor(min(low, 0.8) * 10) / 10, 1.0, lambda value: percent(value, 0), count=4)
    else:
        y = scales.linear(0, high * 1.05, count=4, tight=True)
    plot = Plot(
        room,
        f"The model on each device's own rows: from {score(low, run.metric)} to {score(high, run.metric)}.",
        scales.logarithmic(min(times), max(times), seconds_tick, count=5 if room[0] > 400 else 4),
        y,
        x_name="duration of a training",
        y_name="accuracy on own rows" if run.metric == "accuracy" else "RMSE on own rows (lower is better)",
    )
    boundary = _shade(plot, slowest(run))
    if (means := means_of_groups(run)) is not None:
        plot.rule(boundary, plot.y(means[0]), plot.right, plot.y(means[0]), "line mean")
        plot.rule(plot.left, plot.y(means[1]), boundary, plot.y(means[1]), "line mean")
    for name, value in placed.items():
        title = f"{name}: {score(value, run.metric)} on its own rows, {duration(seconds[name])} a training"
        plot.point(seconds[name], value, "fleet soft", radius=4, title=title)
    return plot


def share_of_slow(run: Run) -> float | None:
    """Share of the accepted updates that came from the slowest quarter; None if there is no such quarter or update."""
    apart = slowest(run)
    if apart is None or not run.accepted:
        return None
    slow = set(apart.slow)
    return sum(update.device in slow for update in run.accepted) / len(run.accepted)


def means_of_groups(run: Run) -> tuple[float, float] | None:
    """Mean score on their own rows of the slowest quarter, and of the others."""
    apart, own = slowest(run), run.own
    if apart is None or own is None:
        return None
    groups = [[own.values[name] for name in names if name in own.values] for names in (apart.slow, apart.others)]
    if not all(groups):
        return None
    return statistics.fmean(groups[0]), statistics.fmean(groups[1])


def _shade(plot: Plot, apart: Slow | None) -> float:
    """Shade the area of the slow devices; return its left edge."""
    if apart is None:
        return plot.right
    left = plot.x(apart.above) - 6
    plot.box((left, plot.top), plot.right - left, plot.bottom - plot.top, "zone")
    plot.text(plot.right - 4, plot.top - 5, "slowest quarter", "note", "end")
    return left
