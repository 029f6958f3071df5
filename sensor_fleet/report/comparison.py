"""The page that compares several runs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from midge.sensor_fleet.progress import HELD, quantile
from midge.sensor_fleet.report import learning, scales
from midge.sensor_fleet.report.html import FULL, Section, Size, drawn, page
from midge.sensor_fleet.report.quantities import MISSING, duration, energy, score, size
from midge.sensor_fleet.report.repeat import flat_setting
from midge.sensor_fleet.report.run import Run, finite_number
from midge.sensor_fleet.report.svg import Label, Plot, Point, thinned
from midge.sensor_fleet.report.traffic import traffic_of
from midge.wire.plurals import counted

MOST: Final = 8
"""Maximum number of runs on a page: more colours cannot be told apart."""
_ALIKE: Final = 1.1
"""Ratio of the run lengths up to which runs are compared at their ends."""
_LETTERS: Final = 12
"""Maximum letters of a run's name beside its line; the legend has the full name."""
_TITLE: Final = 60
_MADE: Final = "Made by midge compare from the files of the runs."


def comparison(runs: Sequence[Run]) -> str:
    """Render the page, as self-contained HTML.

    Raises:
        ValueError: fewer than two runs, or too many.
    """
    if not 2 <= len(runs) <= MOST:
        raise ValueError(f"{counted(len(runs), 'run')} cannot be compared: give 2 to {MOST}.")
    return page("Midge runs: " + ", ".join(names_of(runs)), _sections(runs), _MADE)


def _sections(runs: Sequence[Run]) -> Iterator[Section | None]:
    names = names_of(runs)
    yield _head(runs, names)
    yield Section("comparison_outcomes", {"names": names, "rows": _outcomes(runs)})
    for metric in dict.fromkeys(run.metric for run in runs):
        yield _curves(runs, names, metric)
    yield _staleness(runs, names)
    yield _differences(runs, names)


def names_of(runs: Sequence[Run]) -> list[str]:
    """The runs' names, or their paths where names coincide."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.directory) for run, name in zip(runs, names, strict=True)]


def _head(runs: Sequence[Run], names: Sequence[str]) -> Section:
    title = f"{', '.join(names[:-1])} and {names[-1]}"
    shortest = min(run.seconds for run in runs)
    common = shortest if max(run.seconds for run in runs) > _ALIKE * shortest else None
    least = _common_bytes(runs)
    return Section(
        "comparison_head",
        {
            "headline": title if len(title) <= _TITLE else f"{len(names)} runs side by side",
            "other_settings": any(name != "seed" for name, *_ in differences(runs)),
            "kinds": len({run.metric for run in runs}) > 1,
            "data": len({str(flat_setting(run).get("data")) for run in runs}) > 1,
            "common": common,
            "least": least,
            "apart": _fleets_apart(runs),
            "unfinished": [name for run, name in zip(runs, names, strict=True) if not run.finished],
            "ranked": _ranked(runs, names, [run.value if common is None else run.value_at(common) for run in runs]),
            "by_bytes": [] if least is None else _ranked(runs, names, [run.value_within(least) for run in runs]),
        },
    )


def _common_bytes(runs: Sequence[Run]) -> float | None:
    """The most bytes per device that every run had moved at an evaluation; None if one did not record them."""
    ends = [run.moved(run.evaluations[-1]) if run.evaluations else None for run in runs]
    known = [end for end in ends if end is not None]
    return min(known) if len(known) == len(runs) else None


def _ranked(
    runs: Sequence[Run], names: Sequence[str], values: Sequence[float | None]
) -> list[tuple[float, float, Run, str]]:
    """The runs with a value, the best first: (order, value, run, name)."""
    known = [
        (value * run.better, value, run, name)
        for value, run, name in zip(values, runs, names, strict=True)
        if value is not None
    ]
    return sorted(known, key=lambda one: one[0], reverse=True)


def _fleets_apart(runs: Sequence[Run]) -> str:
    """What differs between the fleets, in words; empty if nothing does."""
    kinds = {"live" if run.live else "virtual" if run.of_profile else "demo" for run in runs}
    sizes = {run.size for run in runs}
    profiles = {flat_setting(run).get("profile", MISSING) for run in runs}
    found = [
        ("the clock", sorted(kinds)),
        ("devices", [f"{number:,}" for number in sorted(sizes)]),
        ("the profile", sorted(profiles)),
    ]
    return "; ".join(f"{what} ({', '.join(each)})" for what, each in found if len(each) > 1)


def _outcomes(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    def row(what: str, of: Callable[[Run], str]) -> tuple[str, ...]:
        return (what, *(of(run) for run in runs))

    def taus(run: Run) -> str:
        return " / ".join(f"{quantile(run.taus, share)}" for share in (0.5, 0.9, 1.0)) if run.taus else MISSING

    def cost(run: Run, part: Callable[..., float | None]) -> str:
        found = traffic_of(run)
        return size(None if found is None else part(found))

    def scored(run: Run, metric: str) -> str:
        return score(run.value, metric) if run.metric == metric else MISSING

    def pooled(run: Run) -> str:
        if (central := run.central) is None:
            return MISSING
        late = "" if central.unfinished is None else f", not yet converged after {duration(central.unfinished)}"
        return score(central.value, run.metric) + late

    words = {"accuracy": "accuracy", "rmse": "RMSE, lower is better"}
    rows = [
        (words[metric], *(scored(run, metric) for run in runs)) for metric in dict.fromkeys(run.metric for run in runs)
    ]
    found = [
        *rows,
        row("pooled, central", pooled),
        row("each device alone, mean", lambda run: score(run.alone.mean if run.alone else None, run.metric)),
        row("target", lambda run: score(run.target, run.metric)),
        row("held after", lambda run: duration(run.seconds_to_target)),
        row("took", lambda run: duration(run.seconds)),
        row("devices", lambda run: f"{run.size:,}"),
        row("updates accepted", lambda run: f"{run.accepted_count:,}"),
        row("not accepted", lambda run: f"{run.rejected_count:,}"),
        row("staleness: median / 90% / maximum", taus),
        row("sent", lambda run: cost(run, lambda found: found.up)),
        row("received", lambda run: cost(run, lambda found: found.down)),
        row("sent and received per update", lambda run: cost(run, lambda found: found.per_update)),
        row("energy per device", _energy),
    ]
    return [each for each in found if set(each[1:]) != {MISSING}]


def _energy(run: Run) -> str:
    joules = finite_number((run.result or {}).get("joules"))
    return MISSING if joules is None or not run.size else energy(joules / run.size)


# ------------------------------------------------------------------------ figures


def _curves(runs: Sequence[Run], names: Sequence[str], metric: str) -> Section | None:
    chosen = [(place, run, name) for place, (run, name) in enumerate(zip(runs, names, strict=True)) if run.evaluations]
    chosen = [one for one in chosen if one[1].metric == metric]
    if not chosen:
        return None
    return Section(
        "comparison_curves",
        {
            "metric": metric,
            "held": HELD,
            "lines": [(place, name) for place, _, name in chosen],
            "over_time": drawn(partial(_over_time, chosen), FULL),
            "over_bytes": drawn(partial(_over_bytes, chosen), FULL),
        },
    )


def _over_time(chosen: Sequence[tuple[int, Run, str]], room: Size) -> Plot:
    end = max(run.seconds for _, run, _ in chosen)
    x = scales.of_time(end, count=8 if room[0] > 500 else 4)
    lines = [(place, run, name, [run.since(one.time) for one in run.evaluations]) for place, run, name in chosen]
    return _plot(lines, room, x, f"{scales.unit_of_time(x)} since the start")


def _over_bytes(chosen: Sequence[tuple[int, Run, str]], room: Size) -> Plot | None:
    lines = []
    for place, run, name in chosen:
        bytes_then = [run.moved(one) for one in run.evaluations]
        if bytes_then and all(moved is not None for moved in bytes_then):
            lines.append((place, run, name, [moved or 0.0 for moved in bytes_then]))
    if not lines:
        return None
    x = scales.of_bytes(1.02 * max(moved[-1] for *_, moved in lines), count=4 if room[0] > 500 else 2)
    return _plot(lines, room, x, "sent and received per device")


def _plot(lines: Sequence[tuple[int, Run, str, list[float]]], room: Size, x: scales.AxisScale, x_name: str) -> Plot:
    runs = [run for _, run, _, _ in lines]
    plot = Plot(
        room,
        f"{learning.axis_of(runs[0])} of {counted(len(lines), 'run')}.",
        x,
        learning.score_scale(runs),
        x_name=x_name,
        y_name=learning.axis_of(runs[0]),
        right=104.0,
    )
    labels = []
    for place, run, name, places in lines:
        means = learning.running_mean([evaluation.value for evaluation in run.evaluations])
        points: list[Point] = list(zip(places, means, strict=True))
        plot.line(thinned(points, 500), f"run c{place}")
        if run.value is not None:
            short = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
            labels.append(Label(run.value, short, score(run.value, run.metric), f"c{place}"))
    plot.labels(labels)
    return plot


def _staleness(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    found = [
        (
            name,
            sum(tau * number for tau, number in run.taus.items()) / run.accepted_count,
            max(run.taus),
            drawn(partial(learning.staleness, run.taus)),
        )
        for run, name in zip(runs, names, strict=True)
        if run.taus
    ]
    return Section("comparison_staleness", {"found": found}) if found else None


def differences(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The settings that are not the same in all runs: the name, and the value in each; none if a run has no record."""
    return [row for row in _settings(runs) if len(set(row[1:])) > 1]


def _settings(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    settings = [flat_setting(run) for run in runs]
    everything = dict.fromkeys(name for setting in settings for name in setting) if all(settings) else ()
    return [(name, *(setting.get(name, MISSING) for setting in settings)) for name in everything]


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    rows, different = _settings(runs), differences(runs)
    if not rows:
        return None
    same = len(rows) - len(different)
    return Section("comparison_settings", {"names": names, "different": different, "same": same})
