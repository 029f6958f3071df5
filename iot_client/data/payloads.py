"""Parsing of sensor messages, by name: maps in JSON or msgpack, SenML (RFC 8428), lists, or one plain value."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from midge.iot_client.data.values import WORDS
from midge.wire import frames
from midge.wire.errors import WireError

_DEEPEST = 8
_LARGEST = 65_536
"""Maximum bytes of a payload."""
_WORD = 200
"""Maximum bytes of a payload of plain text."""
_MOST_FIELDS = 4096
_LONG = 300
"""Digits from which on an integer exceeds a float, and Python refuses some."""
_GENERIC = ("state", "value", "status", "data", "json")
"""Last levels of a topic that do not name a quantity: the level before does."""
_PLACE = re.compile(r"\[(\d+)\]")
_VALUES = ("v", "vs", "vb", "vd", "s")
"""Value fields of a SenML record: a number, text, a boolean, data, a sum."""

Record = dict[str, Any]


def records_of(topic: str, payload: bytes) -> list[Record]:
    """The records of a message, with values by name: one, or several from a list; none if it has none."""
    if not payload or len(payload) > _LARGEST:
        return []
    value = _read(payload)
    if isinstance(value, Mapping):
        inner = value.get("e")
        if isinstance(inner, list) and _is_senml(inner):  # from drafts of SenML
            return _senml([{key: each for key, each in value.items() if key != "e"}, *inner])
        return [_flat(value)] if value else []
    if isinstance(value, list | tuple):
        maps = [each for each in value if isinstance(each, Mapping)]
        if _is_senml(maps):
            return _senml(maps)
        if maps and all(isinstance(each.get("name"), str) and "value" in each for each in maps):
            return [{each["name"]: each["value"] for each in maps}]
        return [_flat(each) for each in maps if each]
    return [] if value is None else [{name_of(topic): value}]


def fields_of(topic: str, payload: bytes) -> Record:
    """The fields of a message by name: numbers, text, 1 for words such as ON and 0 for OFF; empty if none."""
    return {name: _plain(value) for record in records_of(topic, payload) for name, value in record.items()}


def is_plain(payload_record: Record, topic: str) -> bool:
    """Whether a record is one value that its topic names."""
    return len(payload_record) == 1 and name_of(topic) in payload_record


def name_of(topic: str) -> str:
    """The name of a plain value: the last level of its topic, or the one before."""
    return topic.split("/")[_named_level(topic)]


def place_of(topic: str, *, plain: bool) -> str:
    """The origin of a message: its topic, without the level that names a plain value and those after it."""
    return "/".join(topic.split("/")[: _named_level(topic)]) if plain else topic


def _named_level(topic: str) -> int:
    levels = topic.split("/")
    return len(levels) - (2 if len(levels) > 1 and levels[-1].lower() in _GENERIC else 1)


def spelled(name: str) -> str:
    """A name as in records: `Power[1]` becomes `Power.1`."""
    return _PLACE.sub(r".\1", name)


def _read(payload: bytes) -> Any:
    """Parse JSON, otherwise msgpack if that is a map, otherwise text."""
    for encoding in ("", "cp1252"):
        with suppress(ValueError, RecursionError):
            text = payload.rstrip(b"\0").decode(encoding) if encoding else payload.rstrip(b"\0")
            return json.loads(text, parse_int=_whole)
    with suppress(WireError):
        value = frames.unpack(payload, items=_MOST_FIELDS)
        if isinstance(value, dict):
            return value
    if len(payload) <= _WORD:
        with suppress(UnicodeDecodeError):
            text = payload.decode().strip()
            return None if text.startswith(("{", "[")) else text  # incomplete JSON, or none
    return None


def _whole(digits: str) -> int | float:
    """An integer; one that is too long for a float becomes infinite, so that only this value is lost."""
    return int(digits) if len(digits) < _LONG else float(digits)


def _flat(value: Mapping[Any, Any]) -> Record:
    found: Record = {}
    for name, each in _walk(value, ""):
        found[name] = each
        if len(found) >= _MOST_FIELDS:
            break
    return found


def _walk(value: Mapping[Any, Any], before: str, depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Names and values, nested names joined by points; an element of a list is named by its index, from 0."""
    for key, each in value.items():
        name = f"{before}{key.decode(errors='replace') if isinstance(key, bytes) else key}"
        inner = dict(enumerate(each)) if isinstance(each, list | tuple) else each
        if not isinstance(inner, Mapping):
            yield name, inner
        elif depth < _DEEPEST:
            yield from _walk(inner, f"{name}.", depth + 1)


def _is_senml(records: Sequence[Any]) -> bool:
    """Whether each has a name or an inherited base name, and some have values."""
    maps = [each for each in records if isinstance(each, Mapping)]
    if len(maps) != len(records) or not any(any(key in each for key in _VALUES) for each in maps):
        return False
    named = any("bn" in each for each in maps)
    return all(isinstance(each.get("n", each.get("bn", "" if named else None)), str) for each in maps)


def _senml(pack: Sequence[Mapping[Any, Any]]) -> list[Record]:
    """The records of a pack by their time: base fields apply to those that follow; RFC 8428, section 4.6.

    A value has its full name and, if the pack is of one thing only, also its own without the base name.
    """
    base, at, plus = "", 0.0, 0.0
    resolved: list[tuple[float, str, str, Any]] = []
    for each in pack:
        base = str(each.get("bn", base))
        at, plus = _number(each.get("bt"), at), _number(each.get("bv"), plus)
        key = next((key for key in _VALUES if key in each), None)
        if key is not None:
            value = each[key]
            if key == "v" and plus and isinstance(value, int | float):
                value = value + plus
            own = str(each.get("n", ""))
            resolved.append((at + _number(each.get("t"), 0.0), base + own, own, value))
    owners: dict[str, set[str]] = {}
    for _, whole, own, _ in resolved:
        owners.setdefault(own, set()).add(whole)
    found: dict[float, Record] = {}
    for time, whole, own, value in resolved:
        record = found.setdefault(time, {})
        record[whole] = value
        if own and len(owners[own]) == 1:
            record[own] = value
    return [found[time] for time in sorted(found)]


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def _plain(value: Any) -> Any:
    """A number if it is one; text stays text, for classes."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return WORDS.get(value.strip().casefold(), value.strip())
    return value
