"""The command line parser: a sub-command reports its own errors, with suggestions."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

_FEW = 12
"""Most choices that are all listed; with more, only similar ones are suggested."""
_LIKE = 0.7
"""Similarity of two words from which on one may be a misspelling of the other."""


class CommandParser(argparse.ArgumentParser):
    """Parser of `midge` and of each sub-command. `args.parser` is the one of the given command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """Print the error and where to read more, and exit."""
        if "required: " in message and any(isinstance(each, argparse._SubParsersAction) for each in self._actions):  # noqa: SLF001
            self.print_help(sys.stderr)
            self.exit(2)
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} Try --help.\n")

    def refuse(self, more: Sequence[str]) -> NoReturn:
        """Exit because of unknown options."""
        options = [option for action in self._actions for option in action.option_strings]
        hints = [like(word.partition("=")[0], options) for word in more if word.startswith("-")]
        self.error(f"unrecognized arguments: {' '.join(more)}{next(filter(None, hints), '')}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else list(map(str, action.choices))
        if choices is not None and value not in action.choices:  # type: ignore[operator]
            named = f" ({', '.join(choices)})" if len(choices) <= _FEW else ""
            raise argparse.ArgumentError(action, f"there is no {value!r}{named}{like(str(value), choices)}")


def like(word: str, known: Iterable[str]) -> str:
    """A suggestion, as the end of a sentence; empty if no known word is similar."""
    found = get_close_matches(word, known, 1, _LIKE)
    return f": did you mean {found[0]}?" if found else ""
