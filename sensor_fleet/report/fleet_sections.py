"""Sections of the page of a profile's fleet, virtual or live: participation and costs of each hardware class."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from midge.sensor_fleet.progress import quantile
from midge.sensor_fleet.report import learning, scales
from midge.sensor_fleet.report.html import Section, Size, drawn
from midge.sensor_fleet.report.quantities import energy, size
from midge.sensor_fleet.report.repeat import command
from midge.sensor_fleet.report.run import Run, finite_number, mapping
from midge.sensor_fleet.report.run_sections import learned
from midge.sensor_fleet.report.svg import BarChart
from midge.sensor_fleet.simulation.result import MONTH

_SITES = {"sites", "sums", "root_bytes_up", "root_bytes_down", "lost", "doubled"}
"""What a run with gateways records of them."""


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """One hardware class of the run, as recorded in its files."""

    name: str
    plain: Mapping[str, Any]
    own: Mapping[str, Any]
    taus: Mapping[int, int]

    def number(self, name: str) -> float:
        """A recorded number; 0 if missing."""
        return finite_number(self.plain.get(name)) or 0.0

    @property
    def board(self) -> Mapping[str, Any]:
        """Costs of microcontrollers; empty for other hardware."""
        return mapping(self.plain.get("board"))

    def own_score(self, name: str) -> float | None:
        """Score of the model on its devices' own rows: `name` is mean, low or high."""
        return finite_number(self.own.get(name))

    def stalest(self, share: float) -> int:
        """Quantile of the staleness of its updates."""
        return quantile(self.taus, share)


def classes_of(run: Run) -> list[ClassRecord]:
    """All classes, in the profile's order."""
    result = mapping(run.result)
    own, taus = mapping(result.get("own")), mapping(result.get("staleness"))
    return [
        ClassRecord(name, mapping(plain), mapping(own.get(name)), {int(s): int(n) for s, n in taus.get(name, ())})
        for name, plain in mapping(result.get("classes")).items()
    ]


def kind(run: Run) -> str:
    """The kind of fleet, in a word."""
    return "live" if run.live else "virtual"


def sections(run: Run) -> Iterator[Section | None]:
    """All sections, from the top."""
    found, number = classes_of(run), max(run.size, 1)
    up, down = run.traffic
    joules = finite_number(mapping(run.result).get("joules"))
    yield Section(
        "fleet_head",
        {
            "run": run,
            "kind": kind(run),
            "profile": mapping(run.about.get("profile")),
            "trainings": (finite_number(mapping(run.result).get("trainings")) or 0.0) / number,
        },
    )
    each = {"up": up, "down": down, "joules": joules}
    each = {name: None if value is None else value / number for name, value in each.items()}
    yield Section("fleet_facts", {"run": run, **each})
    yield learned(run)
    yield _sites(run)
    if found:
        energy_bars = drawn(partial(_bars, found, name="monthly_joules", words=energy, axis="energy per month"))
        bytes_bars = drawn(partial(_bars, found, name="monthly_bytes", words=size, axis="bytes per month"))
        yield Section("fleet_classes", {"classes": found, "joules": energy_bars, "bytes": bytes_bars})
    left_out, boards = mapping(run.result).get("left_out", ()), [one for one in found if one.board]
    if boards or left_out:
        yield Section("fleet_boards", {"boards": boards, "left_out": left_out})
    if run.taus:
        of_all, by_class = partial(learning.staleness, run.taus), partial(_spans, [one for one in found if one.taus])
        yield Section("fleet_staleness", {"staleness": drawn(of_all), "by_class": drawn(by_class)})
    if found:
        yield Section("fleet_fairness", {"run": run, "classes": found, "size": number})
    if found and up is not None and down is not None and run.seconds:
        moved = {"up": up, "down": down, "joules": joules or 0.0, "months": MONTH / run.seconds}
        raw = finite_number(mapping(run.result).get("raw_bytes"))
        yield Section("fleet_costs", {"run": run, "classes": found, "raw": raw, **moved})
    yield _setting(run, number)


def _sites(run: Run) -> Section | None:
    sites = {name: finite_number(value) for name, value in mapping(mapping(run.result).get("sites")).items()}
    up, down = run.traffic
    if not {name for name, value in sites.items() if value is not None} >= _SITES or up is None or down is None:
        return None
    at_root = (sites["root_bytes_up"] or 0.0) + (sites["root_bytes_down"] or 0.0)
    ratio = (up + down) / at_root if at_root else None
    accepted = run.accepted_count or 0
    return Section("fleet_sites", {"sites": sites, "up": up, "down": down, "ratio": ratio, "accepted": accepted})


def _bars(
    found: Sequence[ClassRecord], room: Size, *, name: str, words: Callable[[float], str], axis: str
) -> BarChart | None:
    values = [one.number(name) for one in found]
    if not any(values):
        return None
    return _rows(
        [(one.name, words(number)) for one, number in zip(found, values, strict=True)],
        [[(0.0, number, "fleet")] for number in values],
        room,
        scales.linear(0, max(values) * 1.05, words, count=3, tight=True),
        x_name=axis,
    )


def _spans(found: Sequence[ClassRecord], room: Size) -> BarChart | None:
    if not found:
        return None
    spans = [(one.stalest(0.1), one.stalest(0.5), one.stalest(0.9)) for one in found]
    return _rows(
        [(one.name, f"{mid}") for one, (_, mid, _) in zip(found, spans, strict=True)],
        [[(low, high + 0.5, "fleet faded"), (mid, mid + 0.5, "fleet")] for low, mid, high in spans],
        room,
        scales.of_counts(max(high for *_, high in spans) + 1, tight=True),
        x_name="steps stale",
    )


def _rows(
    rows: Sequence[tuple[str, str]],
    bars: Sequence[Sequence[tuple[float, float, str]]],
    room: Size,
    x: scales.AxisScale,
    *,
    x_name: str,
) -> BarChart:
    """A row with its bars (from, to, classes) for each pair of name and word."""
    words = ", ".join(f"{name} {word}" for name, word in rows)
    drawing = BarChart(room[0], f"{x_name}: {words}.", rows, x, x_name=x_name)
    for place, parts in enumerate(bars):
        for low, high, classes in parts:
            drawing.bar(place, low, high, classes, ": ".join(rows[place]))
    return drawing


def _setting(run: Run, number: int) -> Section:
    result = mapping(run.result)
    live = mapping(result.get("live"))
    wire = {name: finite_number(live.get(name)) for name in ("wire_up", "wire_down")}
    return Section(
        "fleet_setting",
        {
            "run": run,
            "command": command(run),
            "classes": [mapping(plain) for plain in mapping(run.about.get("profile")).get("classes", ())],
            "model": mapping(run.about.get("model")),
            "versions": mapping(run.about.get("versions")).items(),
            "result": result,
            "live": live,
            "lag": finite_number(mapping(live.get("lag")).get("p99")),
            **{name: None if moved is None else moved / number for name, moved in wire.items()},
        },
    )
