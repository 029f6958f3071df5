"""`midge watch`: the live page of any federation, from its broker."""

import argparse
import asyncio

from midge.broker import Connector
from midge.commands.page import DEFAULT, add_live_page, live_page
from midge.commands.parts import Problem, Subparsers, add_federation, existing_store, read_endpoint, read_federation
from midge.running import run_until_interrupted
from midge.wire.topics import Topics


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "watch",
        help="a live page of a federation: how it learns, what is wrong, its devices",
        description=(
            "Serve a live page of a federation, from its broker, until interrupted. With --store on the aggregator's "
            "machine, the page can pause and resume the federation and withdraw devices. Without --federation, the "
            "only federation of the broker is taken."
        ),
    )
    add_federation(parser)
    add_live_page(parser, default=DEFAULT)
    parser.add_argument("--store", metavar="DIR", help="the aggregator's store, if it is on this machine: for actions")
    parser.set_defaults(run=run, json=False)


class UntilStopped:
    """A service that does nothing until it is stopped: the page has a thread of its own."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()

    async def serve(self) -> None:
        await self._stop.wait()

    def stop(self) -> None:
        self._stop.set()


def run(args: argparse.Namespace) -> int:
    store = None if args.store is None else existing_store(args.store)
    connect, topics = _only(args) if args.config is None and args.url and not args.federation else read_federation(args)
    with live_page(args, topics, store) as page:
        page.observe(connect)
        run_until_interrupted(UntilStopped())
    return 0


def _only(args: argparse.Namespace) -> tuple[Connector, Topics]:
    """The only federation of a broker."""
    from midge.broker import connector  # noqa: PLC0415
    from midge.broker.mqtt.federation_view import list_federations  # noqa: PLC0415

    connect = connector(read_endpoint(args, args.url))
    names = sorted(asyncio.run(list_federations(connect, args.root)))
    if len(names) == 1:
        return connect, Topics(names[0], args.root)
    known = f"there are {', '.join(names)}" if names else "no aggregator has announced itself there yet"
    raise Problem(f"Say which federation: --federation NAME; {known}.")
