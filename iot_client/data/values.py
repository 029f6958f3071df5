"""Parsing of values: numbers with either decimal mark, words such as ON, names of classes."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

WORDS = {"on": 1.0, "off": 0.0, "true": 1.0, "false": 0.0, "open": 1.0, "closed": 0.0, "yes": 1.0, "no": 0.0}
"""Words that count as numbers, in any case."""
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")
"""Words with the same meaning. Open and closed are not among them: a contact that is true is closed."""
MISSING = frozenset(
    {
        *(
            "",
            "-",
            "--",
            "---",
            "*",
            "?",
            "nan",
            "-nan",
            "+nan",
            "na",
            "#na",
            "n/a",
            "#n/a",
            "#n/v",
            "n.a.",
            "nv",
            "<na>",
        ),
        *("null", "none", "nil", "nat", "missing", "unavailable", "unknown", "#div/0!", "#value!", "#ref!", "#num!"),
        *("inf", "-inf", "+inf", "infinity", "-infinity", "+infinity", "1.#qnan", "-1.#ind", "1.#ind", "1.#inf"),
        "-1.#inf",
    }
)
"""Words for a missing value, in lower case. Those of pandas, of Excel's errors, of C's printf and of Home Assistant."""
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_GROUPS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+\.\d+|(?:,\d{3}){2,}|(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
"""Digit groups with the other mark for decimals, or two groups or more: unambiguous."""
_ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""1,234 may be either 1234 or 1.234: only the rest of a file decides."""
_ONE_POINT_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_SPACED = re.compile(r"[+-]?\d{1,3}(?:[ '’\u00a0\u2009\u202f]\d{3})+(?:[.,]\d+)?")
"""Digit groups separated by a space or an apostrophe, as in France and in Switzerland."""
_PARTING = str.maketrans("", "", " '’\u00a0\u2009\u202f")
_UNIT = re.compile(
    r"([+-]?[\d.,'’]*\d(?:[eE][+-]?\d+)?)[ \u00a0\u202f]?([%°‰€$£]|°? ?[A-Za-zµμΩ]{1,4}[²³/A-Za-z0-9]{0,4})"
)


def number(value: Any, *, decimal_comma: bool = False, grouped: bool = False) -> float:
    """Parse a finite number; NaN if it is not one.

    Args:
        value: a number, or its text.
        decimal_comma: whether 1,234 is less than two.
        grouped: whether a single group after the non-decimal mark is thousands.
    """
    if isinstance(value, str):
        value = value.strip().replace("\u2212", "-")
        if (word := WORDS.get(value.casefold())) is not None:
            return word
        if "_" in value:
            return math.nan  # Python would accept 12_34 as a number
        if _SPACED.fullmatch(value):
            value = value.translate(_PARTING)
        if grouped and (_ONE_POINT_GROUP if decimal_comma else _ONE_GROUP).fullmatch(value):
            value = re.sub(r"[,.]", "", value)
        if "," in value or value.count(".") > 1:
            value = _pointed(value, decimal_comma=decimal_comma)
    with suppress(TypeError, ValueError, OverflowError):
        found = float(value)
        return found if math.isfinite(found) else math.nan
    return math.nan


def _pointed(text: str, *, decimal_comma: bool) -> str:
    """The text with a decimal point and without groups; unchanged if ambiguous."""
    if _COMMA.fullmatch(text) and (decimal_comma or not _ONE_GROUP.fullmatch(text)):
        return text.replace(",", ".")
    if _GROUPS.fullmatch(text):
        mark = max(text.rfind(","), text.rfind("."))
        whole, decimals = text[:mark], text[mark + 1 :]
        if text.count(text[mark]) > 1:  # the last mark separates a group
            whole, decimals = text, "0"
        return re.sub(r"[,.]", "", whole) + "." + decimals
    return text


def missing(value: str) -> bool:
    """Whether text stands for a missing value."""
    return value.strip().casefold() in MISSING


class NumberStyle:
    """The number format of one column, learned from its values: the decimal mark and the unit."""

    ENOUGH = 3
    """Values with the same unit before it is removed."""

    def __init__(self) -> None:
        self.commas = self.points = self.plain = 0
        self._units: Counter[str] = Counter()

    def see(self, text: str) -> None:
        """Learn from a value."""
        text = text.strip()
        if (found := _UNIT.fullmatch(text)) and not missing(text):
            text = found[1]
            self._units[found[2].strip()] += 1
        if _ONE_GROUP.fullmatch(text) or _ONE_POINT_GROUP.fullmatch(text):
            return  # ambiguous: the mark may be a decimal one, or separate thousands
        if _COMMA.fullmatch(text) or (_GROUPS.fullmatch(text) and text.count(",") == 1):
            self.commas += 1
        elif _POINT.fullmatch(text) or (_GROUPS.fullmatch(text) and text.count(".") == 1):
            self.points += 1
        elif text.isdigit():
            self.plain += 1

    def number(self, text: str, others: "NumberStyle", *, mark: str = "", separates: bool = False) -> float:
        """Parse a value of this column; NaN if it is not a number.

        Args:
            text: the value.
            others: the format of all columns together, if this one is ambiguous.
            mark: the decimal mark that the owner gave; empty if none.
            separates: whether commas separate columns, so that a decimal comma is unlikely.
        """
        unit = self._units.most_common(1)
        if unit and unit[0][1] >= self.ENOUGH and len(self._units) == 1 and (found := _UNIT.fullmatch(text.strip())):
            text = found[1]
        own = mark or self.mark
        known = own or others.mark
        comma = known == "," or (not known and not separates)
        # If this column has no mark of its own, 1.234 beside plain numbers is 1234 in a file with commas.
        grouped = bool(known) and (own != "" or known == "." or bool(self.plain))
        return number(text, decimal_comma=comma, grouped=grouped)

    @property
    def mark(self) -> str:
        """The decimal mark found; empty if ambiguous."""
        return "," if self.commas > self.points else "." if self.points > self.commas else ""


class Classes:
    """Numbers of classes by their names. A value matches as text in any case, as a boolean, or as a number."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact = {name: place for place, name in enumerate(names)}
        self._loose: dict[object, int | None] = {}
        for place, name in enumerate(names):
            for key in _keys(name, words=False):
                self._loose[key] = place if self._loose.get(key, place) == place else None

    def __bool__(self) -> bool:
        return bool(self.names)

    def number(self, value: Any) -> int | None:
        """The number of a value's class; None if it matches none, or several."""
        if isinstance(value, str) and (place := self._exact.get(value.strip())) is not None:
            return place
        return next((place for key in _keys(value, words=True) if (place := self._loose.get(key)) is not None), None)


def _keys(value: Any, *, words: bool) -> Iterator[object]:
    """Keys by which a value and the name of its class match, the closest first."""
    text = str(value).strip().casefold()
    yield text
    if text in _TRUE + _FALSE:
        yield ("truth", text in _TRUE)
    if words or text not in WORDS:
        found = number(value)
        if not math.isnan(found):
            yield ("number", found)
