"""Inline SVG drawings: axes with few round ticks, and the marks of our figures.

A drawing has no colours: marks have classes, and the page's style sheet gives them colours for light, dark and print.
Positions are in pixels from the top left; the page scales the drawing as a whole.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from midge.sensor_fleet.report.scales import AxisScale

Point = tuple[float, float]
LINE: Final = 15.0
"""Height of a line of text."""
ROW: Final = 34.0
"""Height of a row of a `Ladder`."""
_APART: Final = 10.0
"""Least pixels between two marks of values beyond an axis."""
_NOTEBOOK: Final = (
    ".midge{font:12px sans-serif}.midge text{fill:#888}.midge .strong{font-weight:bold}"
    ".midge .hair,.midge .base,.midge .leader{stroke:#8884;fill:none}"
    ".midge .line{stroke:#2a78b8;stroke-width:2;fill:none}.midge text.fleet{fill:#2a78b8}"
)
"""Scoped to a class, since a style sheet inside a drawing applies to the whole page."""
_WIDE: Final = frozenset("%MWmw…–")
_SLIM: Final = frozenset(" .,:;'|()ijlt")


@dataclass(frozen=True, slots=True)
class Label:
    """A label at the right end of a line: a name above a value."""

    y: float
    name: str
    value: str
    classes: str


class Drawing:
    """One `<svg>`; marks are appended in painting order."""

    def __init__(self, width: float, height: float, description: str) -> None:
        self.width, self.height = width, height
        self._description = description
        self._parts: list[str] = []

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" '
            f'aria-label="{escape(self._description)}">{"".join(self._parts)}</svg>'
        )

    __html__ = __str__
    """Inserted as it is by a template with autoescape: all its text is escaped."""

    def file(self, style: str) -> str:
        """The drawing as a separate file with its own style sheet."""
        return (
            str(self)
            .replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
            .replace(">", f"><style>{style}</style>", 1)
        )

    def in_notebook(self) -> str:
        """The drawing for a notebook, on light and dark pages."""
        return self.file(_NOTEBOOK).replace("<svg ", '<svg class="midge" ', 1)

    _repr_svg_ = in_notebook

    def text(self, x: float, y: float, words: str, classes: str = "", anchor: str = "start") -> None:
        """Text with its baseline at y."""
        end = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{_class(classes)}{end}>{escape(words)}</text>')

    def path(self, data: str, classes: str, title: str = "") -> None:
        inside = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(f'<path d="{data}"{_class(classes)}>{inside}</path>' if data else "")

    def rule(self, x1: float, y1: float, x2: float, y2: float, classes: str) -> None:
        """A straight line."""
        self.path(f"M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}", classes)

    def box(self, corner: Point, width: float, height: float, classes: str, title: str = "") -> None:
        """A filled rectangle, by its top left corner."""
        self.path(rectangles([(*corner, width, height)]), classes, title)

    def dot(self, x: float, y: float, radius: float, classes: str, title: str = "") -> None:
        inside = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"{_class(classes)}>{inside}</circle>')

    def cross(self, x: float, y: float, radius: float, classes: str, title: str = "") -> None:
        low_x, high_x, low_y, high_y = _n(x - radius), _n(x + radius), _n(y - radius), _n(y + radius)
        self.path(f"M{low_x} {low_y}L{high_x} {high_y}M{low_x} {high_y}L{high_x} {low_y}", classes, title)


class Plot(Drawing):
    """A drawing with two axes. `right` is the width for labels."""

    def __init__(
        self,
        size: tuple[float, float],
        description: str,
        x: AxisScale,
        y: AxisScale,
        *,
        x_name: str,
        y_name: str,
        right: float = 12.0,
    ) -> None:
        width, height = size
        super().__init__(width, height, description)
        ticks = [y.text(tick) for tick in y.ticks]
        left = max(map(text_width, ticks), default=0.0) + 8
        self.left, self.right, self.top, self.bottom = left, width - right, 26.0, height - 38.0
        self.x = x.over(self.left, self.right)
        self.y = y.over(self.bottom, self.top)
        for tick, words in zip(y.ticks, ticks, strict=True):
            place = self.y(tick)
            self.rule(self.left, place, self.right, place, "hair")
            self.text(self.left - 6, place + 4, words, "tick", "end")
        self.text(0, 12, y_name, "axis")
        self.rule(self.left, self.bottom, self.right, self.bottom, "base")
        for tick in x.ticks:
            place = self.x(tick)
            self.rule(place, self.bottom, place, self.bottom + 4, "base")
            self.text(place, self.bottom + 17, x.text(tick), "tick", "middle")
        self.text(self.right, height - 5, x_name, "axis", "end")

    def line(self, points: Iterable[Point], classes: str) -> None:
        """A line through the finite points; those beyond the axis are drawn at its edge, and marked there."""
        placed = finite(points)
        self.path(_polyline([(self.x(x), self.y(y)) for x, y in placed]), f"line {classes}")
        self._mark_beyond(placed)

    def _mark_beyond(self, points: Iterable[Point]) -> None:
        """Mark points beyond the axis at its edge; of those that would overlap, one."""
        beyond = sorted({(round(self.x(x) / _APART), y > self.y.high) for x, y in points if not self.y.holds(y)})
        for place, above in beyond:
            x, y, way = place * _APART, self.top if above else self.bottom, -1 if above else 1
            self.path(f"M{_n(x - 4)} {_n(y)}h8l-4 {_n(7.0 * way)}z", "beyond", "beyond the axis")

    def steps(self, points: Iterable[Point], classes: str) -> None:
        """Levels that hold until the next point."""
        placed = [(self.x(x), self.y(y)) for x, y in finite(points)]
        corners: list[Point] = []
        for point in placed:
            if corners:
                corners.append((point[0], corners[-1][1]))
            corners.append(point)
        self.path(_polyline(corners), f"line {classes}")

    def level(self, value: float, classes: str) -> None:
        """A horizontal line over the whole width."""
        self.rule(self.left, self.y(value), self.right, self.y(value), f"line {classes}")

    def band(self, low: float, high: float, classes: str) -> None:
        """A horizontal band over the whole width."""
        top, bottom = self.y(high), self.y(low)
        self.box((self.left, top), self.right - self.left, max(1.0, bottom - top), classes)

    def stretch(self, low: float, high: float, classes: str, title: str = "") -> None:
        """A vertical band over the whole height."""
        left, right = self.x(low), self.x(high)
        self.box((left, self.top), max(2.0, right - left), self.bottom - self.top, classes, title)

    def mark(self, value: float, words: str, classes: str, row: int = 0) -> None:
        """A vertical line with text at its top, on the side with room."""
        place = self.x(value)
        self.rule(place, self.top + LINE * row, place, self.bottom, f"line {classes}")
        fits = place + 6 + text_width(words) < self.right
        y = self.top + 10 + LINE * row
        self.text(place + (5 if fits else -5), y, words, f"note {classes}", "start" if fits else "end")

    def drop(self, x: float, y: float, words: str, classes: str) -> None:
        """A line from a point down to the axis, with text at its foot, on the side with room."""
        place = self.x(x)
        self.rule(place, self.y(y), place, self.bottom, f"line {classes}")
        fits = place + 8 + text_width(words) < self.right
        self.text(place + (6 if fits else -6), self.bottom - 8, words, f"note {classes}", "start" if fits else "end")

    def bar(self, low: float, high: float, value: float, classes: str, title: str = "") -> None:
        """A bar up from 0."""
        self.stack(low, high, [(value, classes, title)])

    def stack(self, low: float, high: float, parts: Iterable[tuple[float, str, str]]) -> None:
        """A bar of parts on each other, up from 0; each has a value, classes and a title."""
        left, right, base = self.x(low), self.x(high), 0.0
        gap = min(1.0, (right - left) / 5)
        for value, classes, title in parts:
            if value > 0:
                top, bottom = self.y(base + value), self.y(base)
                self.box((left + gap / 2, top), max(0.5, right - left - gap), bottom - top, classes, title)
                base += value

    def ranges(self, spans: Iterable[tuple[float, float, float, float]], classes: str) -> None:
        """Ranges of values over stretches of x: (from, to, low, high)."""
        boxes = []
        for start, end, low, high in spans:
            left, right, top, bottom = self.x(start), self.x(end), self.y(high), self.y(low)
            boxes.append((left, top, right - left, max(1.0, bottom - top)))
            self._mark_beyond(finite([((start + end) / 2, low), ((start + end) / 2, high)]))
        self.path(rectangles(boxes), classes)

    def point(self, x: float, y: float, classes: str, *, radius: float = 3.5, title: str = "") -> None:
        if math.isfinite(x) and math.isfinite(y):
            self.dot(self.x(x), self.y(y), radius, classes, title)

    def labels(self, labels: Sequence[Label]) -> None:
        """Labels to the right of the plot, moved apart where they would overlap; `Label.y` is a value."""
        height = 2 * LINE - 1
        places = apart([self.y(label.y) for label in labels], height, self.top, self.bottom + 6)
        for label, place in zip(labels, places, strict=True):
            self.rule(self.right + 1, self.y(label.y), self.right + 7, place, f"leader {label.classes}")
            self.text(self.right + 10, place - 2, label.name, f"label {label.classes}")
            self.text(self.right + 10, place + LINE - 3, label.value, f"label strong {label.classes}")


class BarChart(Drawing):
    """A drawing with a named row for each entry, horizontal bars, and a word at the end of each."""

    def __init__(
        self, width: float, description: str, rows: Sequence[tuple[str, str]], x: AxisScale, *, x_name: str
    ) -> None:
        """Draw names, words and axis; `rows` are pairs of name and word."""
        super().__init__(width, ROW * len(rows) + 46.0, description)
        left = max((text_width(name) for name, _ in rows), default=0.0) + 10
        right = width - max((text_width(words) for _, words in rows), default=0.0) - 12
        self.x = x.over(left, right)
        bottom = ROW * len(rows) + 8
        for tick in x.ticks:
            self.rule(self.x(tick), 4, self.x(tick), bottom, "hair")
            self.text(self.x(tick), bottom + 15, x.text(tick), "tick", "middle")
        self.rule(left, 4, left, bottom, "base")
        self.text(right, bottom + 33, x_name, "axis", "end")
        for place, (name, words) in enumerate(rows):
            base = self._middle(place) + 4.5
            self.text(left - 8, base, name, "", "end")
            self.text(right + 10, base, words, "strong")

    def bar(self, place: int, low: float, high: float, classes: str, title: str = "") -> None:
        """A bar in a row."""
        start, end = self.x(low), self.x(high)
        self.box((start, self._middle(place) - ROW / 4), max(1.5, end - start), ROW / 2, classes, title)

    @staticmethod
    def _middle(place: int) -> float:
        return 6 + ROW * (place + 0.5)


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move positions apart by at least `least`, as little as possible, and into [low, high] if they fit.

    After subtracting the space of the predecessors, each position must not precede its neighbour: least-squares
    isotonic regression, which pools neighbours that violate the order into their mean.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    pools: list[tuple[float, int]] = []  # (mean, number of places)
    for number, index in enumerate(order):
        mean, size = places[index] - number * least, 1
        while pools and pools[-1][0] >= mean:
            before, many = pools.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        pools.append((mean, size))
    means = [mean for mean, size in pools for _ in range(size)]
    last = high - least * (len(places) - 1)
    found = [0.0] * len(places)
    for number, (index, mean) in enumerate(zip(order, means, strict=True)):
        found[index] = max(low, min(mean, last)) + number * least
    return found


def text_width(words: str) -> float:
    """Approximate width of text, in the widest font that a system may have."""
    return sum(12.0 if letter in _WIDE else 5.0 if letter in _SLIM else 8.0 for letter in words)


def rectangles(rectangles: Iterable[tuple[float, float, float, float]]) -> str:
    """Path data of rectangles (x, y, width, height)."""
    return "".join(f"M{_n(x)} {_n(y)}h{_n(w)}v{_n(h)}h{_n(-w)}z" for x, y, w, h in rectangles)


def finite(points: Iterable[Point]) -> list[Point]:
    """The points that are finite."""
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` of the points, ascending in x: the first, lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    found: list[Point] = []
    stretch = math.ceil(3 * len(points) / most)
    for start in range(0, len(points), stretch):
        part = range(start, min(start + stretch, len(points)))
        kept = {part[0], min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
        found += [points[index] for index in sorted(kept)]
    return [*found, points[-1]] if found[-1] != points[-1] else found


def _polyline(points: Sequence[Point]) -> str:
    return "".join(f"{'L' if number else 'M'}{_n(x)} {_n(y)}" for number, (x, y) in enumerate(points))


def _class(classes: str) -> str:
    return f' class="{classes}"' if classes else ""


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return "0" if text == "-0.0" else text.removesuffix(".0")
