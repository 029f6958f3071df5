"""A curve in text: Braille patterns with eight dots a cell, or letters without Unicode."""

import math
from collections.abc import Sequence

# The dots of a cell, by (column, row from the top): https://www.unicode.org/charts/PDF/U2800.pdf
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800

Points = Sequence[tuple[float, float]]


def curve(
    points: Points, width: int, height: int, *, until: float, low: float, high: float, ascii_only: bool = False
) -> list[str]:
    """Draw (x, y) with x from 0 to `until` and y from `low` to `high` in `height` lines of `width` cells."""
    across, down = (1, 1) if ascii_only else (2, 4)
    columns, rows = width * across, height * down
    lit: set[tuple[int, int]] = set()
    before: int | None = None
    for column, value in _binned(points, columns, until):
        place = (value - low) / (high - low) if high > low else 0.5
        row = round((1 - min(1.0, max(0.0, place))) * (rows - 1))
        start = row if before is None else before + (row > before) - (row < before)
        for passed in range(min(start, row), max(start, row) + 1):  # no gap on steep parts
            lit.add((column, passed))
        before = row
    if ascii_only:
        return ["".join("*" if (x, y) in lit else " " for x in range(width)) for y in range(height)]
    return ["".join(_cell(lit, x, y) for x in range(width)) for y in range(height)]


def _binned(points: Points, columns: int, until: float) -> list[tuple[int, float]]:
    """The mean of each column's points; a column without points repeats the one before."""
    found: dict[int, list[float]] = {}
    for x, y in points:
        if math.isfinite(y) and until > 0:
            found.setdefault(min(columns - 1, max(0, int(x / until * columns))), []).append(y)
    if not found:
        return []
    means: list[tuple[int, float]] = []
    for column in range(min(found), max(found) + 1):
        values = found.get(column)
        means.append((column, sum(values) / len(values) if values else means[-1][1]))
    return means


def _cell(lit: set[tuple[int, int]], x: int, y: int) -> str:
    bits = sum(_DOTS[dx][dy] for dx in range(2) for dy in range(4) if (2 * x + dx, 4 * y + dy) in lit)
    return chr(_EMPTY + bits) if bits else " "
