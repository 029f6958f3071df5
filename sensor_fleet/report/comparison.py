"""The page of several runs side by side."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from sensor_fleet.progress import HELD
from sensor_fleet.report import learning, scales
from sensor_fleet.report.bill import bill
from sensor_fleet.report.html import Markup, element, figure, figures, page, section, table
from sensor_fleet.report.particulars import flat_setting
from sensor_fleet.report.quantities import MISSING, counted, duration, energy, score, size
from sensor_fleet.report.run import Evaluation, Run, finite_number
from sensor_fleet.report.svg import Label, Plot, Point, thinned

MOST: Final = 8
"""Runs on a page: more colours than these cannot be told apart."""
_LETTERS: Final = 12
"""Of a run's name beside its line; the key has it whole."""
_TITLE: Final = 60
Size = tuple[float, float]


def comparison(runs: Sequence[Run]) -> str:
    """The page, as HTML that stands by itself.

    Raises:
        ValueError: fewer than two runs, or more than can be told apart.
    """
    if not 2 <= len(runs) <= MOST:
        raise ValueError(f"{counted(len(runs), 'run')} cannot be compared: give 2 to {MOST}.")
    names = names_of(runs)
    return page(
        "Midge runs: " + ", ".join(names),
        [
            element("p", "Midge · runs side by side", "eyebrow"),
            _caution(runs),
            element("h1", _title(names)),
            element("p", _lead(runs, names), "lead"),
            section(
                "What came of them",
                "Mean of the last evaluations; bytes are of one device in the mean.",
                table(("", *names), _outcomes(runs), kind="even stacked"),
            ),
            *(_curves(runs, names, metric) for metric in dict.fromkeys(run.metric for run in runs)),
            section(
                "Staleness",
                "Steps of the model between the version that was trained from and the update's arrival.",
                figures(*(_staleness(run, name) for run, name in zip(runs, names, strict=True))),
            ),
            _differences(runs, names),
            element(
                "footer", "Made by midge compare from the files of the runs. This page loads nothing from anywhere."
            ),
        ],
    )


def names_of(runs: Sequence[Run]) -> list[str]:
    """The runs' names; where two are the same, their paths."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.directory) for run, name in zip(runs, names, strict=True)]


def _title(names: Sequence[str]) -> str:
    title = f"{', '.join(names[:-1])} and {names[-1]}"
    return title if len(title) <= _TITLE else f"{len(names)} runs side by side"


def _caution(runs: Sequence[Run]) -> Markup:
    words = []
    if len({run.metric for run in runs}) > 1:
        words.append("These runs are measured differently, by accuracy and by error: each kind has its own figures.")
    elif len({str(flat_setting(run).get("data")) for run in runs}) > 1:
        words.append("These runs learned from different data: their scores cannot be compared.")
    if unfinished := [name for run, name in zip(runs, names_of(runs), strict=True) if not run.finished]:
        words.append(f"Not come to its end: {', '.join(unfinished)}.")
    return element("p", " ".join(words), "warning") if words else Markup("")


def _lead(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Which is ahead, where that can be said."""
    if len({run.metric for run in runs}) > 1 or len({str(flat_setting(run).get("data")) for run in runs}) > 1:
        return ""
    known = [
        (run.value * run.better, run, name) for run, name in zip(runs, names, strict=True) if run.value is not None
    ]
    if len(known) < 2:
        return ""
    known.sort(key=lambda one: one[0], reverse=True)
    (_, best, first), (_, next_best, second) = known[:2]
    told = f"{first} ends ahead, with {score(best.value, best.metric)} against {score(next_best.value, best.metric)}"
    return f"{told} of {second}. One run of each is an observation, no proof: repeat them with other seeds."


def _outcomes(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    def row(what: str, of: Callable[[Run], str]) -> tuple[str, ...]:
        return (what, *(of(run) for run in runs))

    def taus(run: Run) -> str:
        found = sorted(run.taus.elements())
        if not found:
            return MISSING
        return f"{learning.median(found)} / {learning.quantile(found, 0.9)} / {max(found)}"

    def cost(run: Run, part: Callable[..., float | None]) -> str:
        found = bill(run)
        return size(None if found is None else part(found))

    def scored(run: Run, metric: str) -> str:
        return score(run.value, metric) if run.metric == metric else MISSING

    words = {"accuracy": "accuracy", "rmse": "RMSE, less is better"}
    rows = [
        (words[metric], *(scored(run, metric) for run in runs)) for metric in dict.fromkeys(run.metric for run in runs)
    ]
    return [
        *rows,
        row("pooled, central", lambda run: score(run.central.value if run.central else None, run.metric)),
        row("each device alone, mean", lambda run: score(run.alone.mean if run.alone else None, run.metric)),
        row("target", lambda run: score(run.target, run.metric)),
        row("held after", lambda run: duration(run.seconds_to_target)),
        row("took", lambda run: duration(run.seconds)),
        row("devices", lambda run: f"{run.size:,}"),
        row("updates accepted", lambda run: f"{run.taken:,}"),
        row("not accepted", lambda run: f"{run.turned:,}"),
        row("staleness: median / 90% / most", taus),
        row("sent", lambda run: cost(run, lambda found: found.up)),
        row("received", lambda run: cost(run, lambda found: found.down)),
        row("sent and received for an update", lambda run: cost(run, lambda found: found.per_update)),
        *([row("energy of a device", _energy)] if any(run.of_profile for run in runs) else []),
    ]


def _energy(run: Run) -> str:
    joules = finite_number((run.result or {}).get("joules"))
    return MISSING if joules is None or not run.size else energy(joules / run.size)


# ------------------------------------------------------------------------ figures


def _curves(runs: Sequence[Run], names: Sequence[str], metric: str) -> Markup:
    chosen = [(place, run, name) for place, (run, name) in enumerate(zip(runs, names, strict=True)) if run.evaluations]
    chosen = [one for one in chosen if one[1].metric == metric]
    if not chosen:
        return Markup("")
    title = "Accuracy" if metric == "accuracy" else "RMSE, less is better"
    entries = "".join(
        f'<li><i class="line" style="color: var(--c{place})"></i>{escape(name)}</li>' for place, _, name in chosen
    )
    key = Markup(f'<ul class="key">{entries}</ul>')
    return section(
        title,
        f"The mean of the last {HELD} evaluations, on the test rows.",
        figures(figure("Against time", "", lambda room: _over_time(chosen, room), full=True, key=key)),
        figures(figure("Against bytes", "", lambda room: _over_bytes(chosen, room), full=True, key=key)),
    )


def _over_time(chosen: Sequence[tuple[int, Run, str]], room: Size) -> Plot:
    end = max(run.seconds for _, run, _ in chosen)
    x = scales.of_time(end, count=8 if room[0] > 500 else 4)
    lines = [(place, run, name, [run.since(one.time) for one in run.evaluations]) for place, run, name in chosen]
    return _plot(lines, room, x, f"{scales.unit_of_time(x)} since the start")


def _over_bytes(chosen: Sequence[tuple[int, Run, str]], room: Size) -> Plot | None:
    lines = []
    for place, run, name in chosen:
        bytes_then = [_moved(one) for one in run.evaluations]
        if run.size and bytes_then and all(moved is not None for moved in bytes_then):
            lines.append((place, run, name, [(moved or 0.0) / run.size for moved in bytes_then]))
    if not lines:
        return None
    x = scales.of_bytes(1.02 * max(moved[-1] for *_, moved in lines), count=4 if room[0] > 500 else 2)
    return _plot(lines, room, x, "sent and received, a device")


def _moved(evaluation: Evaluation) -> float | None:
    return None if evaluation.up is None or evaluation.down is None else evaluation.up + evaluation.down


def _plot(lines: Sequence[tuple[int, Run, str, list[float]]], room: Size, x: scales.Scale, x_name: str) -> Plot:
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


def _staleness(run: Run, name: str) -> Markup:
    taus = run.taus
    if not taus:
        return Markup("")
    mean = sum(tau * number for tau, number in taus.items()) / taus.total()
    words = f"In the mean {mean:.1f} steps, at most {max(taus)}."
    return figure(name, words, lambda room: learning.staleness(run, room))


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    settings = [flat_setting(run) for run in runs]
    everything = list(dict.fromkeys(name for setting in settings for name in setting))
    rows = [(name, *(setting.get(name, MISSING) for setting in settings)) for name in everything]
    different = [row for row in rows if len(set(row[1:])) > 1]
    if not all(settings):
        return Markup("")
    same = len(rows) - len(different)
    if not different:
        return section("Settings", "", element("p", "All settings are the same."))
    return section(
        "Where their settings differ",
        f"{counted(same, 'other setting')} {'is' if same == 1 else 'are'} the same in all of them.",
        table(("setting", *names), different, kind="even stacked"),
    )
