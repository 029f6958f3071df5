"""Tables of a settings file that stand for options of a command: derived from its argument parser, applied to it."""

import argparse
import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from midge.configuration.derived import Fields, SettingsTable

Table = Mapping[str, str]
"""Keys of a table, each with the option's name in the parsed arguments."""

BROKER: Final[Table] = {
    "url": "broker",
    "bundle": "config",
    **{name: name for name in ("user", "password_file", "cafile", "certfile", "keyfile", "insecure", "service")},
}
"""Where to connect to: the options of an aggregator and of a device."""
BROKER_TEXTS: Final = {
    "url": "Address of the broker, such as mqtt://localhost or mqtts://mqtt.lan; goes before that of the bundle.",
    "bundle": "A bundle of `midge broker init`: broker, federation, credentials.",
}

_READ: Final = ("FILE", "PEM", "TOML")
"""Metavars of options that name a file which is read: relative to the settings file."""
_WRITTEN: Final = ("outbox", "export")
"""Keys of files that are written: relative to the working directory, as everything that is written."""


def of_options(parser: argparse.ArgumentParser, table: Table) -> Fields:
    """Keys for options of a command, with their meanings and choices."""
    actions = {action.dest: action for action in parser._actions}  # noqa: SLF001 - argparse shows them nowhere else
    return {key: _key(actions[dest]) for key, dest in table.items()}


def _key(action: argparse.Action) -> tuple[Any, Any]:
    default = None if isinstance(action.default, list) else action.default
    return _type(action) if default is not None else _type(action) | None, Field(default, description=_text(action))


def _text(action: argparse.Action) -> str:
    text = " ".join((action.help or "").split()) % {"default": action.default, "prog": "midge"}
    text = re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda found: found[1].replace("-", "_"), text)
    return text and f"{text[0].upper()}{text[1:]}."


def _type(action: argparse.Action) -> Any:
    if isinstance(action, argparse._StoreTrueAction):  # noqa: SLF001
        return bool
    if action.choices is not None:
        return Literal[tuple(action.choices)]
    if _listed(action) or isinstance(action, argparse._AppendAction):  # noqa: SLF001
        return list[str | int | float]
    if action.type in (int, float):
        return action.type
    return str if action.type is None or action.dest == "name" else str | int | float


def _listed(action: argparse.Action) -> bool:
    """Whether its value is a list with commas."""
    return isinstance(action.metavar, str) and action.metavar.startswith("A,B")


def apply(
    section: SettingsTable | None, table: Table, args: argparse.Namespace, parser: argparse.ArgumentParser, folder: Path
) -> None:
    """Put what a table says where the command line said nothing.

    Args:
        section: the table; None changes nothing.
        table: its keys and options.
        args: the parsed command line.
        parser: that parsed it.
        folder: of the settings file.

    Raises:
        ValueError: a value that the option does not take.
    """
    actions = {action.dest: action for action in parser._actions}  # noqa: SLF001
    for key, value in ({} if section is None else section.given()).items():
        action = actions.get(table.get(key, ""))
        if action is None or getattr(args, action.dest) != action.default:
            continue
        setattr(args, action.dest, _as_parsed(key, value, action, folder))


def _as_parsed(key: str, value: Any, action: argparse.Action, folder: Path) -> Any:
    """A value as the option would have it from the command line."""
    if action.metavar == "URL" and isinstance(value, str) and (parted := urlsplit(value)).password:
        raise ValueError(
            f"{key} holds a password: write {parted.username}@{parted.hostname} without it, and name its file in "
            "password_file."
        )
    if isinstance(value, tuple):
        return _joined(value) if _listed(action) else [str(each) for each in value]
    if action.metavar in _READ and key not in _WRITTEN and isinstance(value, str):
        return str(beside(folder, value))
    if callable(action.type) and not isinstance(value, bool):
        try:
            return action.type(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{error}.") from error
    return value


def _joined(values: tuple[Any, ...]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().rstrip("\r\n")


def beside(folder: Path, name: str) -> Path:
    """A file that is read: relative to the settings file's folder."""
    return folder / Path(name).expanduser()
