"""Rendering of pages: a page is a list of sections, each a template and its values.

The templates escape all values of a run; only drawings, which escape their own text, are inserted as they are.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from midge.sensor_fleet.report import quantities
from midge.sensor_fleet.report.run import finite_number, mapping
from midge.sensor_fleet.report.svg import Drawing
from midge.wire.inert import inert
from midge.wire.plurals import counted

Size = tuple[float, float]
FULL: Final = (900.0, 340.0)
HALF: Final = (440.0, 284.0)
NARROW: Final = (336.0, 264.0)
"""For a phone: drawn again at its width, since scaled-down text is unreadable."""


class Section(NamedTuple):
    """A part of a page: the name of its template, and its values."""

    template: str
    values: Mapping[str, Any]


class Drawn(NamedTuple):
    """A figure for a desktop and for a phone."""

    wide: Drawing
    narrow: Drawing


def drawn(draw: Callable[[Size], Drawing | None], room: Size = HALF) -> Drawn | None:
    """Draw a figure in both sizes; None if there is nothing to draw."""
    wide, narrow = draw(room), draw(NARROW)
    return None if wide is None or narrow is None else Drawn(wide, narrow)


def page(title: str, sections: Iterable[Section | None], made: str) -> str:
    """Render a self-contained page, skipping sections that are None. `made` is its footer."""
    templates = _templates()
    parts = [
        # Rendered by the same templates with autoescape.
        Markup(templates.get_template(f"{section.template}.html.j2").render(section.values))  # noqa: S704
        for section in sections
        if section is not None
    ]
    return templates.get_template("base.html.j2").render(title=title, sections=parts, made=made)


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("midge.sensor_fleet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: inert(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = ("brief", "date", "duration", "energy", "measured", "percent", "score", "significant", "size", "times")
    found.filters |= {name: getattr(quantities, name) for name in (*names, "whole", "years")}
    found.filters |= {"counted": counted, "number": finite_number, "mapping": mapping}
    return found
