"""What a notebook shows of a simulation: a small curve as SVG, and the classes as a table. Needs no other library."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 560, 180
_HEAD = ("class", "devices", "took part", "updates", "kB up", "kB down", "J", "staleness 50 / 90 / most")


def shown(
    devices: int,
    title: str,
    times: npt.NDArray[np.float64],
    metrics: Mapping[str, npt.NDArray[np.float64]],
    rows: Sequence[Sequence[str]],
) -> str:
    """HTML that stands by itself: the title, a curve of each metric, and a row for each class."""
    curves = [_curve(name, times, values) for name, values in metrics.items()]
    return "".join([f"<p><b>{devices:,} devices</b>, {title}</p>", *curves, _table(rows) if rows else ""])


def _curve(name: str, times: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> str:
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    low, high = (0.0, 1.0) if name == "accuracy" else (0.0, float(values[finite].max()) or 1.0)
    x = times / (times[-1] or 1.0) * (WIDTH - 60) + 50
    y = (HEIGHT - 24) - (np.clip(values, low, high) - low) / (high - low) * (HEIGHT - 40)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[finite], y[finite], strict=True))
    last = float(values[finite][-1])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(name)} over time" '
        'font-family="sans-serif" font-size="11" fill="currentColor">'
        f'<path d="M50 16V{HEIGHT - 24}H{WIDTH - 10}" fill="none" stroke="currentColor" stroke-opacity=".4"/>'
        f'<polyline points="{points}" fill="none" stroke="#1a5fd0" stroke-width="2"/>'
        f'<text x="46" y="20" text-anchor="end">{high:g}</text>'
        f'<text x="46" y="{HEIGHT - 24}" text-anchor="end">{low:g}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">{times[-1] / 3600:,.1f} h</text>'
        f'<text x="50" y="11">{escape(name)}: {last:.4g} at the end</text></svg>'
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
