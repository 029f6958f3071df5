"""Detection of columns that are not inputs, by their content: text, clocks, counters, constants."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from midge.iot_client.data.values import NumberStyle

FIRST, FEW = 200, 16
"""Rows that are examined, and rows needed to call a column a counter or a constant."""
_CLOCK = re.compile(
    r"(unix|epoch|posix)?[ _-]?(time|date|datum|zeit|uhrzeit|heure|fecha|hora)[ _-]?(stamp|utc|gmt|local)?([ _(\[].*)?"
    r"|timestamp.*|date[ _-]?time.*|time[ _-]?(ms|s|us|ns)|epoch.*|unix|last_?seen|(created|updated|recorded)[ _-]?at"
    r"|ts",
    re.IGNORECASE,
)
"""Names of clocks, for which fewer rows are enough."""
_SECONDS = 0.9e9, 2.6e9
"""Plausible Unix times, 1998 to 2052, in seconds; also in milliseconds and microseconds."""


def no_inputs(columns: Mapping[str, Sequence[Any]], *, comma_separates: bool = False) -> dict[str, str]:
    """Columns that are not inputs, judged by their first rows, and why.

    Args:
        columns: values by name, unparsed.
        comma_separates: whether commas separate the columns, so that they are not decimal marks.
    """
    every = NumberStyle()
    styles = {name: NumberStyle() for name in columns}
    for name, texts in columns.items():
        for each in texts[:FIRST]:
            styles[name].see(str(each))
            every.see(str(each))
    found = {}
    for name, texts in columns.items():
        values = [
            styles[name].number(str(each), every, separates=comma_separates)
            for each in texts[:FIRST]
            if each not in ("", None)
        ]
        why = _why_not(name, [each for each in values if not math.isnan(each)], len(texts))
        if why:
            found[name] = why
    return found


def _why_not(name: str, values: Sequence[float], rows: int) -> str:
    if not name:
        return "it has no name"
    if rows and not values:
        return "no numbers"
    falls = sum(one > other for one, other in pairwise(values))
    rises = sum(one < other for one, other in pairwise(values))
    named = _CLOCK.fullmatch(name.strip()) is not None
    if (_unix(values) and (named or len(values) > 1)) or (named and len(values) > 1 and not falls):
        return "a clock or a counter"
    if len(values) < FEW:
        return ""
    if len(set(values)) == 1:
        return "one value in all of the first rows"
    restarts, distinct = len(values) // 50, len(set(values)) > len(values) // 8
    return "a clock or a counter" if distinct and min(falls, rises) <= restarts else ""


def _unix(values: Sequence[float]) -> bool:
    """Whether numbers are times since 1970, in seconds or in fractions of them."""
    least, most = _SECONDS
    return any(all(least < each / unit < most for each in values) for unit in (1, 1e3, 1e6, 1e9))
