"""The notebook view of a simulation: metrics as curves, classes as a table, without further dependencies."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.report import scales
from midge.sensor_fleet.report.svg import Label, Plot, thinned
from midge.wire.plurals import counted

SIZE = (560.0, 220.0)
_HEAD = ("class", "devices", "took part", "updates", "kB up", "kB down", "J", "staleness 50 / 90 / max")

Floats = npt.NDArray[np.float64]


def shown(devices: int, title: str, times: Floats, metrics: Mapping[str, Floats], rows: Sequence[Sequence[str]]) -> str:
    """Self-contained HTML: the title, a curve of each metric, and a table row for each class."""
    curves = [curve(name, times, values).in_notebook() for name, values in metrics.items() if np.isfinite(values).any()]
    return (
        f"<p><b>{counted(devices, 'device')}</b>, {title}</p>"
        + "".join(f'<div style="max-width: {SIZE[0]:.0f}px">{drawing}</div>' for drawing in curves)
        + (_table(rows) if rows else "")
    )


def curve(name: str, times: Floats, values: Floats) -> Plot:
    """Draw a metric over virtual time."""
    points = [(float(x), float(y)) for x, y in zip(times, values, strict=True) if np.isfinite(y)]
    levels = [y for _, y in points]
    x = scales.of_time(float(times[-1]))
    y = scales.linear(0.0, 1.0) if name == "accuracy" else scales.linear(min([0.0, *levels]), max([0.0, *levels]))
    unit = scales.unit_of_time(x)
    plot = Plot(SIZE, f"{name} over time", x, y, x_name=f"virtual {unit}", y_name=name, right=86)
    plot.line(thinned(points, 500), "fleet")
    if points:
        plot.labels([Label(levels[-1], "at the end", f"{levels[-1]:.4g}", "fleet")])
    return plot


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
