"""`midge clean`: remove all retained messages of a federation from a broker."""

import argparse
import asyncio
import sys

from midge.broker import Connector
from midge.commands.parts import Problem, Subparsers, add_federation, called, read_federation
from midge.wire.plurals import counted
from midge.wire.topics import Topics, explain_absence

_NAMED = 5
"""Most devices that are named."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "clean",
        help="remove a federation's retained messages from a broker",
        description="Remove every retained message of a federation. Stores and outboxes are not touched: an aggregator "
        "that starts again publishes again.",
    )
    add_federation(parser)
    parser.add_argument(
        "--device",
        action="append",
        type=called,
        default=[],
        metavar="NAME",
        help="a device whose topics are read by name, for brokers that need that; repeatable",
    )
    parser.add_argument("--force", action="store_true", help="even while its aggregator is running")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.broker.mqtt.federation_view import clear_federation, describe_federation, serves  # noqa: PLC0415
    from midge.wire.messages import DeviceState  # noqa: PLC0415

    connect, topics = read_federation(args)
    # An aggregator that runs knows the devices that a broker does not show.
    found = asyncio.run(describe_federation(connect, topics, ask=args.force))
    if not args.force and serves(found):
        raise Problem(
            f"The aggregator of {topics.federation!r} is running and would publish again: "
            "stop it first, or say --force."
        )
    cleared = asyncio.run(clear_federation(connect, topics, {*args.device, *found["devices"]}))
    print(f"{counted(cleared.removed, 'retained message')} of federation {topics.federation!r} removed.")
    if cleared.blind:
        print(
            "This broker shows retained messages only by exact topic, as RabbitMQ does. What other "
            "devices said of themselves may be left: name them, midge clean … --device NAME --device NAME."
        )
    live = sorted(name for name, device in found["devices"].items() if DeviceState(device["state"]).live)
    if live:
        shown = ", ".join(live[:_NAMED]) + (f" and {len(live) - _NAMED} more" if len(live) > _NAMED else "")
        print(f"Still connected: {shown}. A device leaves its status behind when it stops: clean again then.")
    return 0 if cleared.removed else _nothing(connect, topics)


def _nothing(connect: Connector, topics: Topics) -> int:
    """Nothing was found: success if the broker knows no federation; otherwise the name is wrong."""
    from midge.broker.mqtt.federation_view import announced_names  # noqa: PLC0415

    if not (announced := asyncio.run(announced_names(connect, topics.root))):
        return 0
    sys.stderr.write(f"midge: {explain_absence(topics, announced)}\n")
    return 1
