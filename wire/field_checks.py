"""Checks of values that a user writes, by annotations: the fields of a dataclass, the arguments of a function.

Type, whole numbers and finite numbers follow from the annotation. In an `Annotated`, a `Range` (or the `Field` of a
message) bounds a number, and a text completes the sentence on what is allowed. Messages are not checked here: on the
wire, unknown values are tolerated.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Callable as Function
from dataclasses import fields, is_dataclass
from functools import cache
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_LONGEST = 60
"""Characters of a value that a message shows."""
_SECRET = frozenset({"password"})
"""Names of values that no message shows."""
_EXACT: frozenset[type] = frozenset({int, float, bool, tuple})
"""Types that need no conversion."""
_CLOSE = 4
"""A word with one wrong letter in this many may be meant."""


class Range(NamedTuple):
    """Bounds of a number, with the names that they have in a message's `Field`."""

    ge: float = -inf
    gt: float = -inf
    le: float = inf
    lt: float = inf
    infinite: bool = False
    """Whether infinity is allowed."""


Count = Annotated[int, Range(ge=1)]
Whole = Annotated[int, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Unlimited = Annotated[float, Range(gt=0, infinite=True)]
NotNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(gt=0, le=1)]


class _Rule(NamedTuple):
    """What a value must be."""

    fits: Callable[[Any], bool]
    words: str
    known: tuple[str, ...] = ()
    """Words of which it must be one."""
    kinds: tuple[type, ...] = ()
    """Our classes of which it must be an instance."""


def check_fields(value: Any, of: str = "") -> None:
    """Check the fields of a dataclass, in its `__post_init__`; lists become tuples where those are annotated.

    Args:
        value: the instance.
        of: a name for it, if the names of its fields alone say too little.

    Raises:
        ValueError: a field has another type, is no number, or is out of range.
    """
    kind: Any = type(value)
    for name, fits, rule, convert in _rules(kind):
        given = getattr(value, name)
        if not fits(given):
            raise _refused(f"{of}.{name}" if of else name, given, rule)
        if convert is not None and type(given) not in _EXACT and given is not None:
            object.__setattr__(value, name, convert(given))


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check the arguments of a function, as its `locals()` at its beginning.

    Raises:
        ValueError: an argument has another type, is no number, or is out of range.
        TypeError: an argument in `**others` is no field of the dataclass that the function returns.
    """
    rules, known = _argument_rules(function)
    for name, rule in rules:
        if not rule.fits(given[name]):
            raise _refused(name, given[name], rule)
    for name in given.get("others", ()) if known else ():
        if name not in known:
            raise TypeError(f"{function.__name__}() has no argument {name!r}{meant(name, known)}.")


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check one value.

    Raises:
        ValueError: it has another type, is no number, or is out of range.
    """
    if (rule := _rule(annotation)) is not None and not rule.fits(value):
        raise _refused(name, value, rule)


def refusal(name: str, value: Any, words: str) -> str:
    """The sentence on a wrong value."""
    return f"{name} is {_shown(name, value)}: it must be {words}."


def allowed(annotation: Any) -> str:
    """What is allowed, in words; empty if everything is."""
    rule = _rule(annotation)
    return "" if rule is None else rule.words


def plain(value: Any) -> Any:
    """A number of NumPy as Python's; anything else unchanged."""
    if type(value) in _EXACT or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def meant(word: Any, known: Iterable[str]) -> str:
    """A suggestion, as the end of a sentence; empty if no word is a likely misspelling of it."""
    from difflib import get_close_matches  # noqa: PLC0415 - for those who made a mistake

    text = str(word).casefold()
    near = [each for each in known if abs(len(each) - len(text)) <= max(1, len(text) // _CLOSE)]
    found = get_close_matches(text, near, 1)
    return f" (did you mean {found[0]}?)" if found else ""


@cache
def _rules(kind: type) -> tuple[tuple[str, Callable[[Any], bool], _Rule, Callable[[Any], Any] | None], ...]:
    """Name and rule of each field of a dataclass, and what makes its values Python's."""
    hints = get_type_hints(kind, include_extras=True)
    found = [(each.name, _rule(hints[each.name]), get_origin(hints[each.name])) for each in fields(kind) if each.init]
    return tuple(
        (name, rule.fits, rule, tuple if origin is tuple else plain if "number" in rule.words else None)
        for name, rule, origin in found
        if rule is not None
    )


@cache
def _argument_rules(function: Callable[..., Any]) -> tuple[tuple[tuple[str, _Rule], ...], tuple[str, ...]]:
    """Name and rule of each argument, and the fields of the dataclass that is returned."""
    hints = get_type_hints(function, include_extras=True)
    made = hints.pop("return", None)
    rules = ((name, _rule(hint)) for name, hint in hints.items())
    known = tuple(each.name for each in fields(made)) if isinstance(made, type) and is_dataclass(made) else ()
    return tuple((name, rule) for name, rule in rules if rule is not None), known


def _rule(annotation: Any, notes: Sequence[Any] = ()) -> _Rule | None:
    """The rule of an annotation; None if it says nothing that can be checked."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        rule = _rule(inside[0], inside[1:])
        more = [note for note in inside[1:] if isinstance(note, str)]
        return rule._replace(words="".join([rule.words, *more])) if rule else None
    if origin in (Union, UnionType):
        return _any_of([_rule(each) for each in inside])
    if origin is Literal:
        return _Rule(lambda value: isinstance(value, str) and value in inside, _listed(map(repr, inside)), inside)
    if annotation is NoneType:
        return _NONE
    if annotation in (int, float):
        return _number(annotation, notes)
    if annotation is str and (lengths := [each.max_length for each in _bounds(notes) if hasattr(each, "max_length")]):
        longest = min(lengths)
        return _Rule(
            lambda value: isinstance(value, str) and len(value) <= longest, f"a text of at most {longest} characters"
        )
    if annotation in _SIMPLE:
        kind, words = _SIMPLE[annotation]
        return _Rule(lambda value: isinstance(value, kind), words)
    if origin is Function:
        return _Rule(lambda value: callable(value) and not isinstance(value, type), "a function")
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*map(_rule, inside))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _list(_rule(inside[0]))
    if getattr(annotation, "_is_protocol", False):
        return _protocol(annotation)
    if isinstance(annotation, type) and annotation.__module__.startswith("midge."):
        words = f"{'an' if annotation.__name__[0] in 'AEIO' else 'a'} {annotation.__name__}"
        return _Rule(lambda value: isinstance(value, annotation), words, kinds=(annotation,))
    return None


_SIMPLE: Mapping[Any, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "True or False"),
    str: (str, "a text"),
    bytes: (bytes, "bytes"),
    Path: (Path, "a path"),
}
_NONE = _Rule(lambda value: value is None, "None")


def _any_of(rules: Sequence[_Rule | None]) -> _Rule | None:
    some = [rule for rule in rules if rule is not None]
    if len(some) < len(rules):
        return None
    others = [rule for rule in some if rule is not _NONE]
    if len(others) == 1 < len(some):
        (fits,) = (rule.fits for rule in others)
        test: Callable[[Any], bool] = lambda value: value is None or fits(value)  # noqa: E731 - twice as fast as any()
    else:
        test = lambda value: any(rule.fits(value) for rule in some)  # noqa: E731
    return _Rule(
        test,
        " or ".join(dict.fromkeys(rule.words for rule in others)) + (", or None" if len(others) < len(some) else ""),
        tuple(word for rule in some for word in rule.known),
        tuple(kind for rule in some for kind in rule.kinds),
    )


def _bounds(notes: Sequence[Any]) -> list[Any]:
    """Whatever bounds a value in an `Annotated`, or in the `Field` of a message there."""
    return [bound for note in notes for bound in (note, *getattr(note, "metadata", ()))]


def _number(kind: type, notes: Sequence[Any]) -> _Rule:
    bounds = _bounds(notes)
    least, above = (max((getattr(each, name, -inf) for each in bounds), default=-inf) for name in ("ge", "gt"))
    most, below = (min((getattr(each, name, inf) for each in bounds), default=inf) for name in ("le", "lt"))
    infinite = any(getattr(each, "infinite", False) for each in bounds)
    largest = inf if infinite or kind is int else sys.float_info.max
    low, high = max(least, -largest), min(most, largest)
    exact = (int,) if kind is int else (int, float)

    def fits(value: Any) -> bool:
        number = plain(value)
        return (
            type(number) in exact
            and low <= number <= high  # NaN is not
            and above < number
            and (below == inf or number < below)
        )

    noun = "a whole number" if kind is int else "a number" if infinite else "a finite number"
    return _Rule(fits, f"{noun}{_bounded(least, above, most, below)}")


def _bounded(least: float, above: float, most: float, below: float) -> str:
    low, high = max(least, above), min(most, below)
    upper = f"below {_figure(high)}" if below < inf else _figure(high)
    if low == -inf:
        return "" if high == inf else f" {upper}" if below < inf else f" of at most {upper}"
    if above > -inf:
        between = "and" if below < inf else "and at most"
        return f" above {_figure(low)}" + ("" if high == inf else f" {between} {upper}")
    return f" of at least {_figure(low)}" if high == inf else f" from {_figure(low)} to {upper}"


def _figure(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _list(item: _Rule | None) -> _Rule:
    def fits(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            return False
        return item is None or all(map(item.fits, value))

    return _Rule(fits, "a list" if item is None else f"a list, each item {item.words}")


def _mapping(key: _Rule | None, item: _Rule | None) -> _Rule:
    def fits(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and (key is None or all(map(key.fits, value)))
            and (item is None or all(map(item.fits, value.values())))
        )

    return _Rule(fits, "a dict" if item is None else f"a dict, each value {item.words}")


def _protocol(kind: Any) -> _Rule:
    if "__call__" in vars(kind):
        return _Rule(callable, "a function")
    members = [name for name in vars(kind) if not name.startswith("_")]

    def fits(value: Any) -> bool:
        return not isinstance(value, type) and all(hasattr(value, name) for name in members)

    return _Rule(fits, f"an object with {_listed(members, 'and')}", kinds=(kind,))


def _listed(words: Iterable[str], last: str = "or") -> str:
    *before, end = words
    return f"{', '.join(before)} {last} {end}" if before else end


def _refused(name: str, value: Any, rule: _Rule) -> ValueError:
    return ValueError(refusal(name, value, f"{rule.words}{''.join(_hints(value, rule))}"))


def _hints(value: Any, rule: _Rule) -> Iterator[str]:
    if isinstance(value, str) and rule.known:
        yield meant(value, rule.known)
    if rule.kinds and callable(value) and hasattr(value, "__name__"):
        yield f" (call it: {value.__name__}(…))"
    elif rule.kinds and isinstance(value, dict):
        yield f" (write {rule.kinds[0].__name__}(…))"


def _shown(name: str, value: Any) -> str:
    if name in _SECRET:
        return f"of type {type(value).__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}…"
