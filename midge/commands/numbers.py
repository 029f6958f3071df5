"""Validation of numeric options before anything starts."""

import argparse
import math

from midge.commands.parts import Problem

_ABOVE_ZERO = {"seconds": "60", "target": "0.93", "learning_rate": "0.1", "alpha": "0.6"}
"""Finite and above 0; with an example each."""
_AT_LEAST_ONE = ("devices", "buffer_size", "local_steps", "batch_size")


def refuse_impossible(args: argparse.Namespace) -> None:
    """Check the given numbers.

    Raises:
        Problem: one is invalid; the message names its option.
    """
    for name, example in _ABOVE_ZERO.items():
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise Problem(f"{_option(name)} is {value:g}: it must be above 0, such as {example}.")
    for name in _AT_LEAST_ONE:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Problem(f"{_option(name)} is {value}: it must be at least 1.")
    if args.micro < 0:
        raise Problem(f"--micro is {args.micro}: it must be at least 0.")
    if args.seed < 0:
        raise Problem(f"--seed is {args.seed}: it must be at least 0.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
