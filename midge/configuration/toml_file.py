"""Reads a settings file; a mistake is reported with the file, the line, the key and what to write instead."""

import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from midge.configuration.derived import NONE, Nothing
from midge.wire.field_checks import meant

_MOST: Final = 6
"""Mistakes that are reported at once."""
_FEW: Final = 16
"""Keys that are all listed where none is similar."""
_HEADER: Final = re.compile(r"\s*\[{1,2}\s*([^\[\]]+?)\s*\]{1,2}\s*(#.*)?$")
_KEY: Final = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")

_LIKE: Final = 0.6
"""Similarity of two words from which on one may be a misspelling of the other."""

Key = tuple[str, ...]
Model = TypeVar("Model", bound=BaseModel)


class SettingsError(Exception):
    """A settings file cannot be used; each line of the message says where and what to do."""

    @property
    def lines(self) -> list[str]:
        """One mistake each."""
        return str(self).splitlines()


class TomlFile:
    """The values of a file, with changes of the command line, and where each of them stands.

    Args:
        path: the file.
        changes: assignments such as `strategy.deadline=5`, which replace keys of the file.

    Raises:
        SettingsError: it cannot be read, is no TOML, or a change is none.
    """

    def __init__(self, path: Path, changes: Sequence[str] = ()) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
            self.values: dict[str, Any] = tomllib.loads(text)
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror or error}): name a TOML file.") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path} is no text in UTF-8.") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(_syntax(path, error)) from error
        self._lines = dict(_places(text))
        self._model: type[BaseModel] = BaseModel
        for change in changes:
            self._change(change)

    def _change(self, change: str) -> None:
        name, sign, value = change.partition("=")
        keys = tuple(name.strip().split("."))
        if not sign or not all(keys):
            raise SettingsError(f"--set {change}: write KEY=VALUE, such as --set strategy.deadline=5.")
        try:
            read = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            read = value  # a word without quotes, as a shell leaves it
        table = self.values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise SettingsError(f"--set {change}: {key} is no table.")
        table[keys[-1]] = read
        self._lines[keys] = 0

    def checked(self, model: type[Model]) -> Model:
        """The values as the model has them.

        Raises:
            SettingsError: naming each mistake.
        """
        self._model = model
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            found: dict[Key, list[Any]] = {}
            for each in error.errors(include_url=False):
                found.setdefault(self._written(each["loc"]), []).append(each)
            places = {key: (*key, *_tag(errors[0])) for key, errors in found.items()}
            order = sorted(found, key=lambda key: self._line(places[key]) or 0)
            told = [f"{self.place(places[key])}{_in_words(model, key, found[key])}" for key in order]
            more = f"\n{self.path}: and {len(told) - _MOST} more." if len(told) > _MOST else ""
            raise SettingsError("\n".join(told[:_MOST]) + more) from error

    def wrong(self, error: ValueError, tables: Sequence[str] = ()) -> SettingsError:
        """The mistake of values that are right alone and not together; its line is that of a key that it names.

        Args:
            error: what the constructor said.
            tables: that it may be in; all by default.
        """
        message = str(error) if str(error).endswith((".", "?", "!")) else f"{error}."
        if (found := self._named(message, tables)) is not None:
            return found
        named = set(re.findall(r"\w+", message)) - {"name"}
        keys = [key for key in self._lines if len(key) > 1 and (not tables or key[0] in tables)]
        for key in sorted(keys, key=lambda key: -len(key[-1])):
            if key[-1] in named:
                return SettingsError(f"{self.place(key)}{'.'.join(key)}: {message}")
        for key in keys:
            if isinstance(value := self.value(key), str) and len(value) > 1 and repr(value) in message:
                return SettingsError(f"{self.place(key)}{'.'.join(key)}: {message}")
        return SettingsError(f"{self.place((tables[0],)) if tables else f'{self.path}: '}{message}")

    def _named(self, message: str, tables: Sequence[str]) -> SettingsError | None:
        """The mistake of `wire.field_checks`, which begins with the field, of a key that was written."""
        if (head := re.match(r"([\w.]+) is ", message)) is None:
            return None
        path = tuple(head[1].split("."))
        keys = [key for key in self._lines if not tables or key[0] in tables]
        keys = [key for key in keys if key[-len(path) :] == path] + [
            (*key[:-1], *path)
            for key in keys
            if key[-1] == path[0]  # in an inline table
        ]
        for key in keys:
            if self.value(key) is not None:
                words = re.sub(r", or None\b", self._without(key), message[len(head[1]) :])
                return SettingsError(f"{self.place(key)}{'.'.join(key)}{words}")
        return None

    def _without(self, key: Key) -> str:
        """How a key says None."""
        found = [each.model_fields.get(key[-1]) for each in _models(self._model, key[:-1])]
        said = any(each is not None and Nothing in get_args(each.annotation) for each in found)
        return f', or "{NONE}"' if said else ", or left out"

    def value(self, key: Key) -> Any:
        """What a key is set to; None if it is not."""
        node: Any = self.values
        for part in key:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def place(self, key: Key) -> str:
        """The beginning of a message: file and line of a key, or of the table that it is in."""
        line = self._line(key)
        return "--set " if line == 0 else f"{self.path}: " if line is None else f"{self.path}:{line}: "

    def _line(self, key: Key) -> int | None:
        """The line of a key or of the table that it is in; 0 for a change of the command line."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key)

    def _written(self, loc: Sequence[Any]) -> Key:
        """The key of a place in the model, without the names of kinds that pydantic puts in between."""
        key: list[str] = []
        node: Any = self.values
        for index, part in enumerate(loc):
            if isinstance(node, dict) and (part in node or index == len(loc) - 1):
                key.append(str(part))
                node = node.get(part)
        return tuple(key)


def _syntax(path: Path, error: tomllib.TOMLDecodeError) -> str:
    found = re.search(r"\(at line (\d+), column \d+\)", str(error))
    where = f"{path}:{found[1]}" if found else str(path)
    return f"{where}: this is no TOML: {re.sub(r' [(]at .*[)]$', '', str(error))}. Text stands in quotes."


def _places(text: str) -> Iterator[tuple[Key, int]]:
    """Keys and tables with their lines; of an inline table, its own line stands for what is in it."""
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        if found := _HEADER.match(line):
            table = _parts(found[1])
            yield table, number
        elif found := _KEY.match(line):
            yield (*table, *_parts(found[1])), number


def _parts(name: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _tag(error: Mapping[str, Any]) -> Key:
    """The key that names the kind of a table, if that is what is wrong."""
    return (error["ctx"]["tag"],) if error["type"] == "kind" and isinstance(error["input"], dict) else ()


def _in_words(model: type[BaseModel], key: Key, errors: list[Any]) -> str:
    """What is wrong with a key, and what to do."""
    name, (error, *_) = ".".join(key), errors
    kinds = {each["type"] for each in errors}
    if error["type"] == "extra_forbidden":
        return _unknown(model, key)
    if error["type"] == "missing":
        return f"{name} is missing: add it."
    if error["type"] == "kind" and not isinstance(error["input"], dict):
        return f"{name} is {_shown(error['input'])}: it must be a table, [{name}]."
    if error["type"] == "kind":
        given = error["input"].get(error["ctx"]["tag"])
        tag, names = f"{name}.{error['ctx']['tag']}", error["ctx"]["names"]
        if given is None:
            return f"{tag} is missing: add one of {names}."
        return f"{tag} is {given!r}: it must be one of {names}{meant(given, names.split(', '))}."
    messages = [_message(each) for each in errors if each.get("ctx", {}).get("expected") != f"'{NONE}'"]
    words = " or ".join(dict.fromkeys(messages))
    hint = ""
    if "literal_error" in kinds:
        if len(errors) > len(messages):
            words += f', or "{NONE}"'
        else:
            hint = meant(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return f"{name} is {_shown(error['input'])}: {words}{hint}."


def _message(error: Mapping[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    text = re.sub(r"^.* is none: (?=write )", "", text)
    text = re.sub(r"^greater than or equal to", "at least", re.sub(r"^less than or equal to", "at most", text))
    text = re.sub(r"^greater than\b", "above", re.sub(r"^less than\b", "below", text))
    changed = {"a valid number": "a number", "a valid string": "a text in quotes", "a valid boolean": "true or false"}
    for old, new in {**changed, "a valid integer": "a whole number", "a valid list": "a list"}.items():
        text = text.replace(old, new)
    return text if error["type"] == "value_error" else f"it must be {text}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unknown(model: type[BaseModel], key: Key) -> str:
    """A key that there is not: a similar one, or the table where it belongs."""
    *table, last = key
    known = list(_keys(model, tuple(table)))
    inside = f"[{'.'.join(table)}]" if table else "the file"
    if owners := [
        each.__name__.partition("_")[2] for each in _models(model, tuple(table)) if last in each.model_fields
    ]:
        return f"{'.'.join(key)} is of another kind ({', '.join(owners)}): leave it out."
    if found := get_close_matches(last, known, 1, _LIKE):
        return f"{'.'.join(key)} is not known: did you mean {found[0]}?"
    others = [".".join(each) for each in tables_of(model) if last in _keys(model, each) and list(each) != table]
    if others:
        return f"{'.'.join(key)} is not known here: move it to [{others[0]}]."
    named = f" ({', '.join(known)})" if len(known) <= _FEW else ""
    return f"{'.'.join(key)} is not known: leave it out, or see what {inside} has{named}: midge config example --full."


def tables_of(model: type[BaseModel], above: Key = ()) -> Iterator[Key]:
    """All tables of a file."""
    for name in dict.fromkeys(name for each in _models(model, above) for name in each.model_fields):
        if any(True for _ in _models(model, (*above, name))):
            yield (*above, name)
            yield from tables_of(model, (*above, name))


def _keys(model: type[BaseModel], table: Key) -> dict[str, None]:
    return dict.fromkeys(name for each in _models(model, table) for name in each.model_fields)


def _models(model: type[BaseModel], table: Key) -> list[type[BaseModel]]:
    """The models of a table: several where it is of one of several kinds."""
    found = [model]
    for part in table:
        found = [
            inner for each in found if part in each.model_fields for inner in inside(each.model_fields[part].annotation)
        ]
    return found


def inside(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models in a type: several where it is of one of several kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from inside(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from inside(each)
