"""Pieces of a page. Whatever comes from a run is escaped here; what is `Markup` already is not escaped again."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final, NewType

from sensor_fleet.report.style import STYLE
from sensor_fleet.report.svg import Drawing

Markup = NewType("Markup", str)

FULL: Final = (900.0, 340.0)
HALF: Final = (440.0, 284.0)
NARROW: Final = (336.0, 264.0)
"""For a telephone: drawn again at its width, for letters that are scaled down cannot be read."""


def page(title: str, body: Iterable[Markup]) -> str:
    """A whole page, which may load nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def element(tag: str, words: str, classes: str = "") -> Markup:
    """An element of plain text."""
    attribute = f' class="{classes}"' if classes else ""
    return Markup(f"<{tag}{attribute}>{escape(words)}</{tag}>")


def section(heading: str, under: str, *parts: Markup) -> Markup:
    """A heading, a paragraph under it, and what follows; nothing where nothing follows."""
    if not any(parts):
        return Markup("")
    first, *rest = (part for part in parts if part)
    head = join(element("h2", heading), element("p", under, "under") if under else Markup(""), first)
    return Markup(f'<section><div class="together">{head}</div>{"".join(rest)}</section>')


def join(*parts: Markup) -> Markup:
    """One after the other."""
    return Markup("".join(parts))


def figure(
    title: str,
    caption: str,
    draw: Callable[[tuple[float, float]], Drawing | None],
    *,
    full: bool = False,
    key: str = "",
) -> Markup:
    """A figure with its finding as the title, drawn for a desktop and for a telephone; nothing where there is none."""
    wide, narrow = draw(FULL if full else HALF), draw(NARROW)
    if wide is None or narrow is None:
        return Markup("")
    words = element("h3", title) + (element("p", caption) if caption else "")
    return Markup(
        f"<figure><figcaption>{words}</figcaption>{key}"
        f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div></figure>'
    )


def figures(*parts: Markup) -> Markup:
    """Figures side by side where there is room."""
    return Markup(f'<div class="figures">{"".join(parts)}</div>') if any(parts) else Markup("")


def value(number: float | None, words: str, classes: str = "") -> Markup:
    """A number as it is written, with the exact one beside it for programs."""
    inside = escape(words) if number is None else f'<data value="{number!r}">{escape(words)}</data>'
    return Markup(f'<span class="{classes}">{inside}</span>' if classes else inside)


def facts(rows: Iterable[tuple[str, Markup, str]]) -> Markup:
    """Key figures: what it is, the number, and a note."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{number}</dd>{f'<dd>{escape(note)}</dd>' if note else ''}</div>"
        for name, number, note in rows
    )
    return Markup(f'<dl class="facts">{cells}</dl>')


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    changed: Callable[[Sequence[str]], bool] | None = None,
    kind: str = "",
) -> Markup:
    """A table whose first column names the row; the others are numbers. Rows that `changed` are set off.

    `kind` is "half" for one that needs no width, "stacked" for one whose rows break in two on a telephone, and "even"
    for columns of the same width.
    """
    columns = "".join(f'<th scope="col"{_right(place)}>{escape(name)}</th>' for place, name in enumerate(head))
    lines = []
    for row in rows:
        cells = "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        mark = ' class="changed"' if changed is not None and changed(row) else ""
        lines.append(f'<tr{mark}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    header = f"<thead><tr>{columns}</tr></thead>" if any(head) else ""
    body = f"<tbody>{''.join(lines)}</tbody>"
    return Markup(f'<div class="scroll {kind}"><table style="--columns: {len(head) - 1}">{header}{body}</table></div>')


def key(entries: Iterable[tuple[str, str]], ends: str = "") -> Markup:
    """What the colours mean: (colour variable, words); `ends` says what a cross means."""
    parts = [f'<li><i style="background: var(--{colour})"></i>{escape(words)}</li>' for colour, words in entries]
    if ends:
        parts.append(f"<li><b>×</b>{escape(ends)}</li>")
    return Markup(f'<ul class="key">{"".join(parts)}</ul>')


def _right(place: int) -> str:
    return ' class="number"' if place else ""
