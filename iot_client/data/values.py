"""Values as loggers and sensors write them: numbers with either decimal mark, words such as ON, names of classes."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

WORDS = {"on": 1.0, "off": 0.0, "true": 1.0, "false": 0.0, "open": 1.0, "closed": 0.0, "yes": 1.0, "no": 0.0}
"""Words that count as numbers, in any case."""
_TRUE, _FALSE = ("true", "on", "yes"), ("false", "off", "no")
"""Words that say the same. Open and closed do not belong to them: a contact that is true is closed."""
_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_GROUPS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+\.\d+|(?:,\d{3}){2,}|(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})")
"""Thousands in groups, with the other mark for decimals or with two groups or more: nothing else looks like it."""
_ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
"""1,234 is a thousand and more, or one and a little more: only the rest of a file tells."""


def number(value: Any, *, decimal_comma: bool = False) -> float:
    """A finite number, or NaN if it is none.

    Args:
        value: a number, or text that says one.
        decimal_comma: whether 1,234 is less than two.
    """
    if isinstance(value, str):
        value = value.strip()
        if (word := WORDS.get(value.casefold())) is not None:
            return word
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
