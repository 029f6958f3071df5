"""Validation of numeric options before anything starts."""

import argparse
import math
from collections.abc import Iterable, Mapping

from midge.commands.parts import Problem

_MOST = 1e6
"""Larger numbers are mistakes in every option that is checked here."""


def refuse_impossible(
    args: argparse.Namespace, above_zero: Mapping[str, float], at_least_one: Iterable[str], at_least_zero: Iterable[str]
) -> None:
    """Check the given numbers of options, by name; `above_zero` has an example for each.

    Raises:
        Problem: one is invalid; the message names its option.
    """
    for name, example in above_zero.items():
        value = getattr(args, name)
        if value is not None and not 0 < value < _MOST:
            raise Problem(f"{_option(name)} is {value:g}: it must be above 0, such as {example:g}.")
    for least, names in ((1, at_least_one), (0, at_least_zero)):
        for name in names:
            value = getattr(args, name)
            if value is not None and not least <= value < math.inf:
                finite = "" if value < least else "a finite number, "
                raise Problem(f"{_option(name)} is {value}: it must be {finite}at least {least}.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
