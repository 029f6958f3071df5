"""Where an app of the user's takes part: as its program says, at another broker, or as a bundle says."""

import argparse
from dataclasses import replace
from typing import Any

from broker import Endpoint, connector
from broker.bundles import Bundle
from midge.commands.parts import Parser, Problem, add_bundle, add_tls, read_config, read_endpoint, user_errors
from wire.topics import Topics


def add_place(parser: Parser) -> None:
    """Options that say where."""
    parser.add_argument("--broker", metavar="URL", help="another broker than the app, or the bundle, names")
    add_bundle(parser)
    add_tls(parser)
    parser.add_argument(
        "--insecure", action="store_true", help="go without TLS to another machine, where all can be read and changed"
    )


def move(app: Any, args: argparse.Namespace) -> Bundle | None:
    """Put the app where the options say, and see that it is a safe place.

    Raises:
        Problem: nothing secures what would leave this machine.
    """
    bundle = None
    endpoint: Endpoint | None = getattr(app, "endpoint", None)  # an app may have a connector of its own
    if args.config is not None:
        bundle = read_config(args.config, args.broker)
        endpoint = bundle.endpoint
    elif args.broker:
        endpoint = read_endpoint(args, args.broker)
    if endpoint is None:
        return None
    if endpoint.exposed and not args.insecure:
        raise Problem(
            f"{endpoint} is another machine, and without TLS whoever is in between reads and changes everything: use "
            "mqtts:// (`midge broker init` makes what it needs), or say --insecure."
        )
    if endpoint.tls is None and not args.json:
        where = "another machine" if endpoint.exposed else "this machine only"
        print(f"Without TLS, to {endpoint}: for trying things out on {where}.", flush=True)
    if args.config is not None or args.broker:
        _move_to(app, endpoint, None if bundle is None else bundle.topics)
    return bundle


def _move_to(app: Any, endpoint: Endpoint, topics: Topics | None) -> None:
    changes: dict[str, Any] = {"connector": connector(endpoint)}
    if topics is not None:
        changes |= {"federation": topics.federation, "root": topics.root}
    if hasattr(app, "config"):
        with user_errors():
            app.config = replace(app.config, **changes)
        return
    app.connector = changes["connector"]
    if topics is not None:
        Topics.__init__(app.topics, topics.federation, topics.root)
