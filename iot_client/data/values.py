"""Values as loggers and sensors write them: numbers with either decimal mark, words such as ON, names of classes."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

WORDS = {"on": 1.0, "off": 0.0, "true": 1.0, "false": 0.0, "open": 1.0, "closed": 0.0, "yes": 1.0, "no": 0.0}
"""Words that count as numbers, in any case."""
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")
"""Words that say the same. Open and closed do not belong to them: a contact that is true is closed."""
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
"""Words for a value that is not there, in lower case: no mistake of the one who wrote them. Those that pandas takes, of
Excel's errors and of C's printf, and what Home Assistant says."""
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_GROUPS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+\.\d+|(?:,\d{3}){2,}|(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
"""Thousands in groups, with the other mark for decimals or with two groups or more: nothing else looks like it."""
_ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""1,234 is a thousand and more, or one and a little more: only the rest of a file tells."""
_ONE_POINT_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_SPACED = re.compile(r"[+-]?\d{1,3}(?:[ '’\u00a0\u2009\u202f]\d{3})+(?:[.,]\d+)?")
"""Thousands in groups that a space or an apostrophe parts, as in France and in Switzerland."""
_PARTING = str.maketrans("", "", " '’\u00a0\u2009\u202f")
_UNIT = re.compile(
    r"([+-]?[\d.,'’]*\d(?:[eE][+-]?\d+)?)[ \u00a0\u202f]?([%°‰€$£]|°? ?[A-Za-zµμΩ]{1,4}[²³/A-Za-z0-9]{0,4})"
)


def number(value: Any, *, decimal_comma: bool = False, grouped: bool = False) -> float:
    """A finite number, or NaN if it is none.

    Args:
        value: a number, or text that says one.
        decimal_comma: whether 1,234 is less than two.
        grouped: whether one group that the mark which is not for decimals parts is a thousand and more.
    """
    if isinstance(value, str):
        value = value.strip().replace("\u2212", "-")
        if (word := WORDS.get(value.casefold())) is not None:
            return word
        if "_" in value:
            return math.nan  # Python would take 12_34 for a number
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
    """Text with a decimal point and without groups; as it is if that cannot be told."""
    if _COMMA.fullmatch(text) and (decimal_comma or not _ONE_GROUP.fullmatch(text)):
        return text.replace(",", ".")
    if _GROUPS.fullmatch(text):
        mark = max(text.rfind(","), text.rfind("."))
        whole, decimals = text[:mark], text[mark + 1 :]
        if text.count(text[mark]) > 1:  # the last mark is one between groups
            whole, decimals = text, "0"
        return re.sub(r"[,.]", "", whole) + "." + decimals
    return text


def missing(value: str) -> bool:
    """Whether text says that there is no value."""
    return value.strip().casefold() in MISSING


class NumberStyle:
    """How the numbers of one column are written, by what was seen of it: which mark decimals have, and what unit."""

    ENOUGH = 3
    """Values with the same unit behind them before it is taken off."""

    def __init__(self) -> None:
        self.commas = self.points = self.comma_groups = self.point_groups = self.plain = 0
        self._units: Counter[str] = Counter()
        self._bare = 0

    def see(self, text: str) -> None:
        """Learn from a value."""
        text = text.strip()
        if (found := _UNIT.fullmatch(text)) and not missing(text):
            text = found[1]
            self._units[found[2].strip()] += 1
        elif any(map(str.isdigit, text)):
            self._bare += 1
        if _ONE_GROUP.fullmatch(text):
            self.comma_groups += 1
        elif _ONE_POINT_GROUP.fullmatch(text):
            self.point_groups += 1
        elif _COMMA.fullmatch(text) or (_GROUPS.fullmatch(text) and text.count(",") == 1):
            self.commas += 1
        elif _POINT.fullmatch(text) or (_GROUPS.fullmatch(text) and text.count(".") == 1):
            self.points += 1
        elif text.isdigit():
            self.plain += 1

    def number(self, text: str, others: "NumberStyle", *, mark: str = "", separates: bool = False) -> float:
        """The number that a value of this column is; NaN if it is none.

        Args:
            text: the value.
            others: of all columns together, if this one does not tell.
            mark: the decimal mark as the owner says; empty if not.
            separates: whether commas separate columns, so that a decimal comma is unlikely.
        """
        unit = self._units.most_common(1)
        if unit and unit[0][1] >= self.ENOUGH and len(self._units) == 1 and (found := _UNIT.fullmatch(text.strip())):
            text = found[1]
        own = mark or self.mark
        known = own or others.mark
        comma = known == "," or (not known and not separates)
        # Without a mark of its own in this column, 1.234 beside plain numbers is a thousand in a file with commas.
        grouped = bool(known) and (own != "" or known == "." or bool(self.plain))
        return number(text, decimal_comma=comma, grouped=grouped)

    @property
    def mark(self) -> str:
        """The decimal mark that is seen; empty if it cannot be told."""
        return "," if self.commas > self.points else "." if self.points > self.commas else ""


class Classes:
    """Numbers of classes by their names. A value is matched as it came: text in any case, a truth value, a number."""

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
        """The number of a value's class; None if it is of none, or of more than one."""
        if isinstance(value, str) and (place := self._exact.get(value.strip())) is not None:
            return place
        return next((place for key in _keys(value, words=True) if (place := self._loose.get(key)) is not None), None)


def _keys(value: Any, *, words: bool) -> Iterator[object]:
    """What a value and the name of its class have in common, the closest first."""
    text = str(value).strip().casefold()
    yield text
    if text in _TRUE + _FALSE:
        yield ("truth", text in _TRUE)
    if words or text not in WORDS:
        found = number(value)
        if not math.isnan(found):
            yield ("number", found)
