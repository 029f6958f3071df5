"""`--config FILE`: a settings file, or a bundle of `midge broker init`. They are told apart by their tables."""

import argparse
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from midge.commands.parts import Parser, Problem, add_bundle
from midge.configuration.options import BROKER, beside
from midge.configuration.toml_file import Key, SettingsError, TomlFile

_TABLE = re.compile(r"^\s*\[", re.MULTILINE)


def add_settings(parser: Parser) -> None:
    """Add the options."""
    add_bundle(parser, "a settings file (`midge config example`), or a bundle of `midge broker init`")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a key of the settings file, such as strategy.deadline=5; repeated",
    )


def settings_file(args: argparse.Namespace) -> TomlFile | None:
    """The settings file in `--config`; None if there is a bundle or nothing.

    Raises:
        SettingsError: it cannot be read.
        Problem: `--set` without a settings file.
    """
    path = None if args.config is None else Path(args.config).expanduser()
    if path is not None and has_tables(path):
        return TomlFile(path, args.set)
    if args.set:
        raise Problem("--set replaces keys of a settings file: name it with --config.")
    return None


_PLACE: Final[Mapping[Key, str]] = {
    ("broker", "url"): "url",
    **{("broker", key): dest for key, dest in BROKER.items() if key not in ("url", "insecure")},
    ("federation", "name"): "federation",
    ("federation", "root"): "root",
}
"""Keys that say where a federation is, with the options of `add_federation`."""


def read_place(args: argparse.Namespace) -> None:
    """For a command that looks at a federation: its place, if `--config` names a settings file in place of a bundle.

    Raises:
        SettingsError: a key is no text.
    """
    path = Path(args.config).expanduser()
    if not has_tables(path):
        return
    file, args.config = TomlFile(path), None
    for key, dest in _PLACE.items():
        value = file.value(key)
        if value is None or getattr(args, dest) != args.parser.get_default(dest):
            continue
        if not isinstance(value, str):
            raise SettingsError(f"{file.place(key)}{'.'.join(key)} is {value!r}: it must be a text in quotes.")
        setattr(args, dest, value if dest in ("url", "user", "federation", "root") else str(beside(path.parent, value)))


def has_tables(path: Path) -> bool:
    """Whether a file is no bundle: a bundle has no tables."""
    try:
        text = path.read_text(encoding="utf-8")
        return not text.strip() or any(isinstance(value, dict) for value in tomllib.loads(text).values())
    except (OSError, UnicodeDecodeError):
        return False  # a folder, or what is reported of a bundle
    except tomllib.TOMLDecodeError:
        return _TABLE.search(text) is not None
