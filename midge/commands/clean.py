"""`midge clean`: leave nothing of a federation on a broker."""

import argparse
import asyncio

from midge.commands.parts import Problem, Subparsers, add_federation, read_federation


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
    print(f"{removed} retained messages of federation {topics.federation!r} removed.")
    return 0
