"""`midge clean`: leave nothing of a federation on a broker."""

import argparse
import asyncio
import sys

from midge.broker import Connector
from midge.commands.parts import Problem, Subparsers, add_federation, read_federation
from midge.wire.plurals import counted
from midge.wire.topics import Topics


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "clean",
        help="remove a federation's retained messages from a broker",
        description="Remove every retained message of a federation. Stores and outboxes are not touched: an aggregator "
        "that starts again publishes again.",
    )
    add_federation(parser)
    parser.add_argument("--force", action="store_true", help="even while its aggregator is running")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.broker.mqtt.federation_view import clear_federation, is_served  # noqa: PLC0415

    connect, topics = read_federation(args)
    if not args.force and asyncio.run(is_served(connect, topics)):
        raise Problem(
            f"The aggregator of {topics.federation!r} is running and would publish again: "
            "stop it first, or say --force."
        )
    removed = asyncio.run(clear_federation(connect, topics))
    print(f"{counted(removed, 'retained message')} of federation {topics.federation!r} removed.")
    return 0 if removed else _nothing(connect, topics)


def _nothing(connect: Connector, topics: Topics) -> int:
    """Nothing was there: right if the broker knows no federation; otherwise the name is a wrong one."""
    from midge.broker.mqtt.federation_view import explain_missing, list_federations  # noqa: PLC0415

    if not asyncio.run(list_federations(connect, topics.root)):
        return 0
    sys.stderr.write(f"midge: {asyncio.run(explain_missing(connect, topics))}\n")
    return 1
