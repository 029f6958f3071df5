"""The page of an advice: the ways side by side, what they cost, and who sees what."""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.html import FULL, Section, Size, drawn, page
from midge.sensor_fleet.report.quantities import score
from midge.sensor_fleet.report.svg import BarChart

if TYPE_CHECKING:
    from midge.sensor_fleet.advice.advice import Advice

_MADE: Final = (
    "Made by midge advise. The federation ran on the virtual clock with the real aggregator and sessions; pooled, "
    "data-parallel and lone trainings ran on this machine; links and energy are those of the profile."
)


def advice_page(advice: "Advice") -> str:
    """Render the page, as self-contained HTML."""
    return page(f"Advice for {advice.setting.data}", _sections(advice), _MADE)


def _sections(advice: "Advice") -> Iterator[Section | None]:
    yield Section("advice_head", {"advice": advice, "setting": advice.setting})
    yield Section(
        "advice_ways",
        {
            "advice": advice,
            "metric": advice.metric,
            "scores": drawn(partial(_scores, advice), FULL),
        },
    )
    yield Section("advice_costs", {"advice": advice, "setting": advice.setting})
    yield Section("advice_exposure", {"advice": advice})


def _scores(advice: "Advice", room: Size) -> BarChart:
    """On new rows, and below it on the devices' own rows that serve worst."""
    metric, rows = advice.metric, advice.rows
    names = [
        (title, score(value, metric))
        for row in rows
        for title, value in ((row.title, row.score.mean), ("worst devices", row.worst.mean))
    ]
    known = [value for row in rows for value in (row.score.high, row.worst.high) if math.isfinite(value)]
    high = 1.0 if metric == "accuracy" else 1.05 * max(known, default=1.0)
    words = partial(score, metric=metric)
    x = scales.linear(0, high, words, count=3 if room[0] < FULL[0] else 5, tight=True)
    described = ", ".join(f"{name} {word}" for name, word in names)
    drawing = BarChart(room[0], f"Scores: {described}.", names, x, x_name=metric)
    for place, row in enumerate(rows):
        chosen = "fleet" if row.way == advice.decision.way else "fleet faded"
        for below, value, look in ((0, row.score.mean, chosen), (1, row.worst.mean, "fleet faded")):
            if math.isfinite(value):
                drawing.bar(2 * place + below, 0.0, value, look, f"{row.title}{': worst devices' if below else ''}")
    return drawing
