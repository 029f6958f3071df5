"""What a notebook shows of a simulation: its metrics as curves, its classes as a table. Needs no other library."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from sensor_fleet.report import scales
from sensor_fleet.report.svg import Label, Plot, thinned

if TYPE_CHECKING:
    from sensor_fleet.simulation.result import Simulated

SIZE = (560.0, 220.0)
_HEAD = ("class", "devices", "took part", "updates", "kB up", "kB down", "J", "staleness 50 / 90 / most")


def shown(found: "Simulated") -> str:
    """HTML that stands by itself."""
    curves = [curve(found, name).in_notebook() for name, values in found.metrics.items() if np.isfinite(values).any()]
    return (
        f"<p><b>{len(found.devices):,} devices</b>, {found.times[-1] / 3600:,.1f} virtual hours: "
        f"{found.trainings:,} trainings, {len(found.senders):,} updates accepted, "
        f"{int(found.versions[-1]):,} versions ({found.took:,.1f} s)</p>"
        + "".join(f'<div style="max-width: {SIZE[0]:.0f}px">{drawing}</div>' for drawing in curves)
        + (_classes(found) if found.classes else "")
    )


def curve(found: "Simulated", name: str) -> Plot:
    """A metric over virtual time."""
    values = found.metrics[name]
    points = [(float(x), float(y)) for x, y in zip(found.times, values, strict=True) if np.isfinite(y)]
    levels = [y for _, y in points]
    x = scales.of_time(float(found.times[-1]))
    y = scales.linear(0.0, 1.0) if name == "accuracy" else scales.linear(min([0.0, *levels]), max([0.0, *levels]))
    unit = scales.unit_of_time(x)
    plot = Plot(SIZE, f"{name} over time", x, y, x_name=f"virtual {unit}", y_name=name, right=86)
    plot.line(thinned(points, 500), "fleet")
    if points:
        plot.labels([Label(levels[-1], "at the end", f"{levels[-1]:.4g}", "fleet")])
    return plot


def _classes(found: "Simulated") -> str:
    rows = [
        (
            one.name,
            f"{one.devices:,}",
            f"{one.took_part:.0%}",
            f"{one.updates:,}",
            f"{one.bytes_up / 1e3:,.1f}",
            f"{one.bytes_down / 1e3:,.1f}",
            f"{one.joules:,.3g}",
            "–" if one.staleness is None else " / ".join(map(str, one.staleness)),
        )
        for one in found.by_class().values()
    ]
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    lines = ["".join(f"<th>{name}</th>" for name in _HEAD), *cells]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
