"""Whether the values of an event are of the types in the registry of events."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from midge.events import FIELDS

_NAMES = {"Any": Any, "Literal": Literal}


@lru_cache
def _checked(field: str) -> TypeAdapter[Any]:
    # Code of our own: annotations in midge/events.py.
    return TypeAdapter(eval(FIELDS[field].type, _NAMES), config=ConfigDict(strict=True))


def mistyped(event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event with values of other types."""
    found = {}
    for field, value in event.items():
        if field in FIELDS:
            try:
                _checked(field).validate_python(value)
            except ValidationError:
                found[field] = value
    return found
