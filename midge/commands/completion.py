"""`midge completion SHELL`: a script that completes commands, options and files in bash, zsh or fish."""

import argparse
from typing import Any

from midge.commands.device import VERBS
from midge.commands.parts import Problem, Subparsers

SHELLS = ("bash", "zsh", "fish")
_HOW = {
    "bash": "midge completion bash > ~/.local/share/bash-completion/completions/midge",
    "zsh": "midge completion zsh > ~/.zfunc/_midge, a folder in your $fpath",
    "fish": "midge completion fish > ~/.config/fish/completions/midge.fish",
}

_NAMES = {
    **dict.fromkeys(("FILE", "PEM", "TOML"), "file"),
    **dict.fromkeys(("DIR", "STORE", "BACKUP"), "folder"),
}
"""What an argument names, by its metavar."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script for a shell. Put it where the shell looks: "
        + "; ".join(f"{shell}: {how}" for shell, how in _HOW.items())
        + ".",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(script(args.shell))
    return 0


def script(shell: str) -> str:
    """The script for a shell.

    Raises:
        Problem: shtab is not installed.
    """
    try:
        import shtab  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem('Completion is written by shtab: pip install "midge[completion]"') from error
    from midge.commands.parser import command_parser  # noqa: PLC0415 - all commands

    parser = command_parser()
    _say_what_completes(parser, {"file": shtab.FILE, "folder": shtab.DIRECTORY})
    made: str = shtab.complete(parser, shell)
    return made


def _say_what_completes(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Mark arguments that name files and folders, and the verbs of `midge device`; of all sub-commands."""
    for action in parser._actions:  # noqa: SLF001 - argparse shows them nowhere else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in action._choices_actions:  # noqa: SLF001 - shells complete one word: `device-add`
                action.choices.pop(each.dest if " " in each.dest else "", None)
                each.dest = each.dest.replace(" ", "-")
            for name, inner in action.choices.items():
                _say_what_completes(inner, kinds)
                if name == "device" and inner.prog == "midge device":
                    _positional(inner).choices = VERBS  # this parser parses nothing
        elif (kind := _NAMES.get(str(action.metavar))) is not None:
            action.complete = kinds[kind]  # type: ignore[attr-defined]


def _positional(parser: argparse.ArgumentParser) -> argparse.Action:
    return next(action for action in parser._actions if not action.option_strings)  # noqa: SLF001
