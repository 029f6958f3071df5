"""Options for when a device goes on using its model because a new one is worse on its own rows."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from midge.commands.guest import seconds
from midge.commands.parts import Parser, Problem, user_errors

if TYPE_CHECKING:
    from midge.iot_client.device import Device

_FIELDS = {"try_rows": "rows", "try_margin": "margin", "try_alpha": "alpha", "try_limit": "limit"}


def add_keeping(parser: Parser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "when it keeps its model", "A new model is tried on the device's own rows before it predicts with it."
    )
    group.add_argument("--try-rows", type=int, metavar="ROWS", help="last rows to try it on (default: 256)")
    group.add_argument(
        "--try-margin", type=float, metavar="SHARE", help="worse if its loss is larger by this share (default: 0.1)"
    )
    group.add_argument(
        "--try-alpha", type=float, metavar="P", help="chance of refusing one that is not worse (default: 0.01)"
    )
    group.add_argument(
        "--try-limit", type=seconds, metavar="TIME", help="use it if no row came to try it on for so long (default: 7d)"
    )
    group.add_argument("--take-any-model", action="store_true", help="predict with every new model, untried")


def keep(app: "Device", args: argparse.Namespace) -> None:
    """Apply the options to the app.

    Raises:
        Problem: one of them is invalid, or contradicts another.
    """
    given = {field: value for name, field in _FIELDS.items() if (value := getattr(args, name)) is not None}
    if args.take_any_model and given:
        raise Problem("--take-any-model tries no model: leave the other options that begin with --try out.")
    if args.take_any_model:
        app.config = replace(app.config, keep=None)
    elif given:
        from midge.iot_client.state.model_comparison import KeepRule  # noqa: PLC0415 - for those who want it

        with user_errors():
            app.config = replace(app.config, keep=replace(app.config.keep or KeepRule(), **given))
