"""Options for where a user's app takes part: as its program says, at another broker, or by a bundle."""

import argparse
from typing import Any

from midge.broker import Endpoint, connector
from midge.broker.provisioning.bundles import Bundle
from midge.commands.parts import Parser, Problem, add_tls, read_config, read_endpoint, served_by
from midge.commands.settings import add_settings
from midge.commands.telling import in_words


def add_place(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("--broker", metavar="URL", help="a broker that replaces the app's or the bundle's")
    add_settings(parser)
    add_tls(parser)
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow another machine without TLS: others can read and change everything",
    )


def moved(app: Any, args: argparse.Namespace) -> tuple[dict[str, Any], Bundle | None]:
    """Fields of the app's config that the options replace, if the connection is secure.

    Raises:
        Problem: the connection would leave this machine unsecured.
    """
    bundle, endpoint = _place(app, args)
    fields: dict[str, Any] = {} if endpoint is None else {"connector": connector(endpoint)}
    if bundle is not None:
        fields |= {"federation": bundle.topics.federation, "root": bundle.topics.root}
    return fields, bundle


def _place(app: Any, args: argparse.Namespace) -> tuple[Bundle | None, Endpoint | None]:
    """The given bundle, and the broker's address if it replaces the app's."""
    bundle = None
    endpoint: Endpoint | None = getattr(app, "endpoint", None)  # an app may have a connector of its own
    if args.config is not None:
        bundle = read_config(args.config, args.broker)
        endpoint = served_by(bundle.endpoint, args)
    elif args.broker:
        endpoint = read_endpoint(args, args.broker)
    if endpoint is None:
        return None, None
    if endpoint.exposed and not args.insecure:
        raise Problem(
            f"{endpoint} is another machine, and without TLS anyone in between can read and change everything: use "
            "mqtts:// (`midge broker init` makes what it needs), or say --insecure."
        )
    if endpoint.tls is None and in_words(args):
        where = "another machine" if endpoint.exposed else "this machine only"
        print(f"Without TLS, to {endpoint}: for trying things out on {where}.", flush=True)
    return bundle, endpoint if args.config is not None or args.broker else None
