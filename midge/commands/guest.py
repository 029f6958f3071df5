"""Options that limit a device's use of its board: when it may train, what it may use, when it sleeps."""

import argparse
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from midge.commands.apps import load_app
from midge.commands.parts import Parser, Problem, user_errors

if TYPE_CHECKING:
    from midge.iot_client.board.training_constraints import Condition
    from midge.iot_client.device import Device
    from midge.iot_client.training.fit import Trainer

_BYTES = {"": 1, "k": 1000, "K": 1000, "M": 10**6, "G": 10**9}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def amount(units: dict[str, int], example: str) -> Callable[[str], float]:
    """Make an argparse type for numbers with a unit."""

    def read(text: str) -> float:
        number = text.rstrip("".join(units))
        try:
            found = float(number) * units[text[len(number) :]]
        except (ValueError, KeyError):
            found = -1.0
        if not 0 < found < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is no amount such as {example}")
        return found

    return read


size = amount(_BYTES, "50M")
seconds = amount({"": 1, **_SECONDS}, "6h")


def add_guest(parser: Parser) -> None:
    """Add the options."""
    when = parser.add_argument_group("when it trains", "Training starts only while all given conditions hold.")
    when.add_argument("--on-mains", action="store_true", help="only with external power")
    when.add_argument(
        "--battery-above", type=float, metavar="SHARE", help="only above this battery charge, such as 0.3"
    )
    when.add_argument("--cooler-than", type=float, metavar="CELSIUS", help="only below this board temperature")
    when.add_argument(
        "--cpu-idle", type=float, metavar="SHARE", help="only while at least this share of the CPU is idle"
    )
    when.add_argument(
        "--hours", action="append", metavar="SPAN", help="only at these hours, such as 22:00-06:00; repeatable"
    )
    when.add_argument("--unmetered", action="store_true", help="fetch and send only on a link that is not metered")
    costs = parser.add_argument_group("what it costs")
    costs.add_argument(
        "--bytes-per-month", type=size, metavar="BYTES", help="most bytes on the link, both ways, such as 50M"
    )
    costs.add_argument("--joules-per-month", type=float, metavar="J", help="most energy for training and bytes")
    costs.add_argument("--watts", type=float, metavar="W", help="power of training above idle")
    costs.add_argument("--joules-per-byte", type=float, metavar="J", help="energy for a byte on the link")
    sleep = parser.add_argument_group("when it sleeps")
    sleep.add_argument(
        "--wake-every",
        type=seconds,
        metavar="TIME",
        help="wake at this interval, train once, wait for receipts, sleep; such as 6h",
    )
    sleep.add_argument(
        "--awake", type=seconds, metavar="TIME", help="maximum time awake per cycle, beside training (default: 5m)"
    )
    sleep.add_argument("--once", action="store_true", help="train once, wait for the receipts, and end")
    child = parser.add_argument_group("in a process of its own")
    child.add_argument("--isolate", action="store_true", help="train in a child process of low priority")
    child.add_argument("--memory", type=size, metavar="BYTES", help="memory limit of that process (with --isolate)")


def conditions_of(args: argparse.Namespace) -> "tuple[list[Condition], list[Condition]]":
    """Conditions from the options: to train, and to use the link.

    Raises:
        Problem: one of them is invalid.
    """
    from midge.iot_client.board import conditions  # noqa: PLC0415 - for those who want one

    found: list[Condition] = []
    with user_errors():
        if args.on_mains:
            found.append(conditions.on_mains())
        if args.battery_above is not None:
            found.append(conditions.battery_above(args.battery_above))
        if args.cooler_than is not None:
            found.append(conditions.cooler_than(args.cooler_than))
        if args.cpu_idle is not None:
            found.append(conditions.cpu_idle(args.cpu_idle))
        if args.hours:
            found.append(conditions.hours(*args.hours))
    return found, [conditions.unmetered()] if args.unmetered else []


def make_guest(app: "Device", args: argparse.Namespace) -> None:
    """Apply the options to the app.

    Raises:
        Problem: one of them is invalid, or contradicts another.
    """
    training, link = conditions_of(args)
    config = app.config
    app.config = replace(
        config,
        conditions=(*config.conditions, *training),
        link_conditions=(*config.link_conditions, *link),
        costs=_costs(args) or config.costs,
        duty=_duty(args) or config.duty,
    )
    check_guest(args)
    if args.isolate:
        _isolate(app, args)


def check_guest(args: argparse.Namespace) -> None:
    """Check the options without an app.

    Raises:
        Problem: one of them is invalid, or contradicts another.
    """
    conditions_of(args)
    _costs(args)
    _duty(args)
    if args.memory is not None and not args.isolate:
        raise Problem("--memory bounds the process that --isolate trains in: say both.")


def _costs(args: argparse.Namespace) -> Any:
    from midge.iot_client.board.usage_budget import Costs  # noqa: PLC0415

    given = {
        "bytes_per_month": None if args.bytes_per_month is None else int(args.bytes_per_month),
        "joules_per_month": args.joules_per_month,
        "watts": args.watts,
        "joules_per_byte": args.joules_per_byte,
    }
    said = {name: value for name, value in given.items() if value is not None}
    if args.joules_per_month is not None and not (args.watts or args.joules_per_byte):
        raise Problem("--joules-per-month needs to know what is spent: --watts for training, --joules-per-byte.")
    with user_errors():
        return Costs(**said) if said else None


def _duty(args: argparse.Namespace) -> Any:
    from midge.iot_client.board.duty_cycle import Duty  # noqa: PLC0415

    if args.wake_every is None and not args.once:
        if args.awake is not None:
            raise Problem("--awake goes with --wake-every or --once: say how long it sleeps, such as --wake-every 6h.")
        return None
    every = math.inf if args.wake_every is None else args.wake_every
    with user_errors():
        return Duty(every, awake=args.awake or min(300.0, every / 2), once=args.once)


def _isolate(app: "Device", args: argparse.Namespace) -> None:
    from midge.iot_client.training.subprocess_trainer import Isolated  # noqa: PLC0415

    if not args.app:
        raise Problem(
            "--isolate is for a MODULE:ATTRIBUTE: a trainer on samples is small, and needs them in its process."
        )
    if inspect.iscoroutinefunction(app.config.train):
        raise Problem("--isolate is for a train() that is an ordinary function.")
    memory = None if args.memory is None else int(args.memory)
    app.config = replace(app.config, train=Isolated(partial(trainer_of, args.app[0]), memory=memory))


def trainer_of(name: str) -> "Trainer":
    """The trainer of the device that `module:attribute` names; called in the training process."""
    from midge.iot_client.device import Device  # noqa: PLC0415

    app: Device = load_app(name, Device, "a midge.Device")
    trainer: Any = app.config.train
    return trainer  # type: ignore[no-any-return]
