"""Lists the keys of a settings file: as an example in TOML, as a JSON schema, as rows for the documentation."""

import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from midge.configuration.derived import Time
from midge.configuration.toml_file import Key, inside

WIDTH: Final = 110
SCHEMA_LINE: Final = "#:schema ./{name}"
_WORDS: Final = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "table", Any: "any"}

_WIDER: Final = {(str, int, float): (int,)}
"""A number is a whole number too."""


@dataclass(frozen=True)
class KeyRow:
    """A key as it is listed."""

    name: str
    kind: str
    default: Any
    """None if there is none; `PydanticUndefined` if it must be given."""
    text: str


def rows(model: type[BaseModel]) -> list[KeyRow]:
    """The keys of one table, without the tables in it."""
    return [
        KeyRow(name, words(_whole(field)), field.default, field.description or "")
        for name, field in model.model_fields.items()
        if not any(True for _ in inside(field.annotation))
    ]


def _whole(field: FieldInfo) -> Any:
    """The type of a field as it was given: pydantic keeps what it is annotated with beside it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def kinds(model: type[BaseModel], name: str) -> dict[str, type[BaseModel]]:
    """The kinds of a table by their names; a table of one kind has the name ""."""
    found = list(inside(model.model_fields[name].annotation))
    return {each.__name__.partition("_")[2] if len(found) > 1 else "": each for each in found}


def words(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return 'seconds or "6 h"' if parts[:2] == get_args(Time)[:2] else words(parts[0])
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in parts)
    if origin in (Union, types.UnionType):
        several = dict.fromkeys(words(each) for each in parts if each not in (type(None), *_WIDER.get(parts, ())))
        return " or ".join(several)
    if origin is list:
        return f"list of {words(parts[0])}s" if get_origin(parts[0]) is None else f"list of {words(parts[0])}"
    if origin is dict:
        return f"table of {words(parts[1])}s"
    return _WORDS.get(annotation, str(annotation))


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}"
    return '"none"' if value is None else json.dumps(value, ensure_ascii=False)


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the file, for editors."""
    found: dict[str, Any] = _without_null(model.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _without_null(value: Any) -> Any:
    """A schema without null, which TOML has not."""
    if isinstance(value, list):
        return [_without_null(each) for each in value if each != {"type": "null"}]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_null(each) for key, each in value.items() if not (key == "default" and each is None)}
    if len(several := kept.get("anyOf", ())) == 1:
        kept |= kept.pop("anyOf")[0]
        assert several
    return kept


def example(model: type[BaseModel], samples: Mapping[Key, Any], kind: str, *, full: bool, head: str) -> str:
    """A file that is valid and means the defaults.

    Args:
        model: of the file.
        samples: values of keys that have no default.
        kind: the name of its schema's file.
        full: with every key and its meaning; otherwise other keys stand in a comment.
        head: what the file is, as a comment.
    """
    lines = [SCHEMA_LINE.format(name=kind), *_comment(head)]
    for name in model.model_fields:
        lines += _table(model, (name,), samples, full=full)
    return "\n".join(lines) + "\n"


def _table(above: type[BaseModel], path: Key, samples: Mapping[Key, Any], *, full: bool) -> Iterator[str]:
    """A table and the tables in it."""
    variants = kinds(above, path[-1])
    wanted = next((samples[key] for key in samples if key[:-1] == path and samples[key] in list(variants)), None)
    model = variants[wanted] if wanted else next(iter(variants.values()))
    field = above.model_fields[path[-1]]
    written = [row for row in rows(model) if (*path, row.name) in samples]
    nested = len(path) > 1
    off = "# " if nested or not (written or full) else ""
    yield ""
    text = field.description or (model.__doc__ or "")
    if len(variants) > 1:
        text = f"{text} One of {', '.join(variants)}.".strip()
    yield from _comment(text)
    yield f"{off}[{'.'.join(path)}]"
    others = []
    for row in rows(model):
        sample = samples.get((*path, row.name))
        value = row.default if sample is None else sample
        line = f"{row.name} = {toml(value)}" if value not in (None, PydanticUndefined) else f"{row.name} = …"
        known = sample is not None or (full and value not in (None, PydanticUndefined) and not nested)
        if full:
            yield from _comment(row.text if is_tag(row) else f"{row.text} ({row.kind})".strip())
        if known:
            yield line
        elif full:
            yield f"# {line}"
        else:
            others.append(row.name)
    if others:
        yield from _comment(f"More: {', '.join(others)}.")
    if full:
        for name, inner in model.model_fields.items():
            if any(True for _ in inside(inner.annotation)):
                yield from _table(model, (*path, name), samples, full=full)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)]


def differing(kind: type[BaseModel], usual: type[BaseModel]) -> list[KeyRow]:
    """Keys of one kind that another does not have, and those that have another default there, without their meaning."""
    known, found = {row.name: row for row in rows(usual)}, []
    for row in rows(kind):
        if row.name not in known:
            found.append(row)
        elif row.default != known[row.name].default and not is_tag(row):
            found.append(replace(row, text=""))
    return found


def is_tag(row: KeyRow) -> bool:
    """Whether a key names the kind of its table."""
    return row.kind.startswith('"') and " or " not in row.kind
