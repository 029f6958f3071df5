"""Sections of a settings file, derived from dataclasses, from functions that make a value, and from pydantic models.

A key has the type, the default and the meaning that the argument has in Python. TOML has no null: where None is not
the default and means "no limit", the word "none" is written.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from midge.sensor_fleet.profiles.units import Seconds
from midge.wire.signing import PublicKey

NONE = "none"
"""Stands for None where None is not the default."""
Nothing = Annotated[Literal["none"], "instead of None"]
"""The type of that word, which other words of the same letters do not have."""

Time = Annotated[
    float,
    get_args(Seconds)[-1],
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*(ms|s|min|h|d)\s*$"}]}
    ),
]
"""Seconds, or a text with a unit, such as "6 h"."""
TIMES = frozenset(
    {
        *("deadline", "serve_interval", "release_interval", "max_age", "interval", "rest", "seconds", "evaluate"),
        *("statistics_deadline", "retention", "announcement_lifetime", "quarantine"),
    }
)
"""Names of numbers that are seconds."""

Fields = dict[str, tuple[Any, Any]]
"""Fields of a section by key: type and default, as `pydantic.create_model` takes them."""


class SettingsTable(BaseModel):
    """A table of a settings file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def given(self) -> dict[str, Any]:
        """What was written, in Python's terms: only these keys, "none" as None, tables as dicts."""
        found = {}
        for name, field in type(self).model_fields.items():
            if name in self.model_fields_set:
                value = getattr(self, name)
                found[name] = None if value == NONE and Nothing in get_args(field.annotation) else _plain(value)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, SettingsTable):
        return value.given()
    return tuple(value) if isinstance(value, list) else value


def reworded(key: tuple[Any, Any], text: str | None) -> tuple[Any, Any]:
    """The same key with another meaning, if there is one."""
    kind, field = key
    return (
        key if not text else (kind, FieldInfo.merge_field_infos(field, description=_in_toml(text, kind, field.default)))
    )


def _in_toml(text: str, kind: Any, default: Any) -> str:
    """A sentence on an argument in the words of a settings file; what it says of None goes where there is none."""
    if default is None:
        text = re.sub(r"(?<![;,:] )\bNone\b", "Leaving it out", text)
        text = re.sub(r"\bNone\b", "leaving it out", text)
    elif Nothing in get_args(kind):
        text = re.sub(r"\bNone\b", f'"{NONE}"', text)
    else:
        text = re.sub(r"[;.]?[^.;]*\bNone\b[^.;]*(?=[.;])", "", text)
    return re.sub(r"\b(True|False)\b", lambda found: found[0].lower(), text)


def section(name: str, keys: Fields, text: str = "") -> type[SettingsTable]:
    """A table with these keys."""
    made: type[SettingsTable] = create_model(name, __base__=SettingsTable, __doc__=text or None, **keys)  # type: ignore[call-overload]
    return made


def of_dataclass(kind: Any, names: Collection[str] | None = None, *, like: Any = None) -> Fields:
    """Keys for fields of a dataclass.

    Args:
        kind: the dataclass.
        names: of the fields; None takes all that its constructor does.
        like: an instance whose values are the defaults in place of the class's.
    """
    hints, texts = get_type_hints(kind), meanings(kind)
    found: Fields = {}
    for field in fields(kind):
        if not field.init or (names is not None and field.name not in names):
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = getattr(like, field.name) if like is not None else default
        found[field.name] = _key(field.name, hints[field.name], default, texts.get(field.name, ""))
    return found


def of_function(make: Callable[..., Any], leave: Collection[str] = ()) -> Fields:
    """Keys for the arguments of a function that makes a value."""
    hints, texts = get_type_hints(make), meanings(make)
    found: Fields = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if name not in leave and parameter.kind is not parameter.VAR_KEYWORD:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            found[name] = _key(name, hints[name], default, texts.get(name, ""))
    return found


def of_model(kind: type[BaseModel], leave: Collection[str] = (), *, like: BaseModel | None = None) -> Fields:
    """Keys for the fields of a pydantic model, with its limits."""
    texts = meanings(kind)
    found: Fields = {}
    for name, field in kind.model_fields.items():
        if name not in leave:
            annotated = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            found[name] = _key(name, annotated, getattr(like, name) if like else field.default, texts.get(name, ""))
    return found


def tagged(title: str, tag: str, variants: Mapping[str, Fields], default: str | None, texts: Mapping[str, str]) -> Any:
    """A table of one of several kinds, which the key `tag` names.

    Args:
        title: begins the names of its kinds.
        tag: the key.
        variants: the other keys of each kind.
        default: the kind if `tag` is not written; None requires it.
        texts: what each kind is, in a sentence.
    """
    made = []
    for name, keys in variants.items():
        word: Any = Literal[name]
        chosen = Field(name if name == default else PydanticUndefined, description=texts.get(name, ""))
        made.append(
            Annotated[section(f"{title}_{name}", {tag: (word, chosen), **keys}, texts.get(name, "")), Tag(name)]
        )

    def kind(value: Any) -> Any:
        return value.get(tag, default) if isinstance(value, dict) else getattr(value, tag, None)

    several = made[0] if len(made) == 1 else Union[tuple(made)]  # noqa: UP007 - of a tuple
    return Annotated[
        several,
        Discriminator(
            kind,
            custom_error_type="kind",
            custom_error_message="{tag} must be one of {names}",
            custom_error_context={"tag": tag, "names": ", ".join(variants)},
        ),
    ]


def _key(name: str, annotation: Any, default: Any, text: str) -> tuple[Any, FieldInfo]:
    """Type and field of a key."""
    kind: Any = _kind(annotation)
    if name in TIMES and float in (kind, *get_args(kind)[:1]):
        kind = Time if kind is float else Annotated[Time, *get_args(kind)[1:]]
    if default is MISSING or default is PydanticUndefined:
        return kind, Field(description=_in_toml(text, kind, default))
    if NoneType in get_args(annotation) and default is not None:
        kind = Union[kind, Nothing]  # noqa: UP007 - of a variable
    if is_dataclass(default) or isinstance(default, BaseModel):
        default = None  # a table within, whose keys have defaults of their own
    value: Any = list(default) if isinstance(default, tuple) else default
    field: FieldInfo = Field(value, description=_in_toml(text, kind, value))
    return kind, field


def _kind(annotation: Any) -> Any:
    """A type that TOML has, for one of Python."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[_kind(inside[0]), *inside[1:]]
    if origin in (Union, UnionType):
        kinds = [_kind(each) for each in inside if each is not NoneType and not _foreign(each)]
        kinds = list(dict.fromkeys(kinds))
        if float in kinds and int in kinds:
            kinds.remove(int)
        return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007
    if origin in (tuple, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return list[_kind(inside[0])]  # type: ignore[misc]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[_kind(inside[0]), _kind(inside[1])]  # type: ignore[misc]
    if annotation is Path:
        return str
    if is_dataclass(annotation):
        assert isinstance(annotation, type)
        return section(annotation.__name__, of_dataclass(annotation))
    return annotation


def _foreign(annotation: Any) -> bool:
    """Whether no value of this type can be written in TOML, such as keys in memory."""
    return annotation in (bytes, PublicKey) or any(_foreign(each) for each in get_args(annotation))


@cache
def meanings(thing: Any) -> dict[str, str]:
    """What each field or argument is: of `Args:` in the docstring, or the sentence below a field."""
    found: dict[str, str] = {}
    for base in reversed(thing.__mro__[:-1] if isinstance(thing, type) else [thing]):
        if base.__module__.startswith("midge."):
            found |= _args(inspect.getdoc(base) or "") | (_below(base) if isinstance(base, type) else {})
    return found


def _args(doc: str) -> dict[str, str]:
    part = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    if part is None:
        return {}
    lines = textwrap.dedent(part[1].split("\n\n")[0])
    items = re.split(r"^(\w+): ", lines, flags=re.MULTILINE)[1:]
    return {name: _line(text) for name, text in zip(items[::2], items[1::2], strict=True)}


def _below(kind: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = _line(str(after.value.value))
    return found


def _line(text: str) -> str:
    """On one line, with a capital letter and a full stop."""
    line = " ".join(text.split())
    first = line[:1].upper() if line[:1].isascii() and "←" not in line[:4] else line[:1]
    return line and f"{first}{line[1:]}{'' if line.endswith('.') else '.'}"
