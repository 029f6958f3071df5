"""What several commands take: a broker's address, a federation, an app of the user's."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker import Connector, Endpoint, connector
from midge.running import endpoint_of
from wire.topics import DEFAULT_ROOT, Topics

Parser = argparse.ArgumentParser
Subparsers = Any


class Problem(Exception):
    """Something that the person who gave the command can mend; the message says how."""


@contextmanager
def mendable() -> Iterator[None]:
    """A ValueError in here is about what the person gave."""
    try:
        yield
    except ValueError as error:
        raise Problem(str(error)) from error


@contextmanager
def server_side() -> Iterator[None]:
    """An import in here needs the server's libraries."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Problem('The aggregator needs more than a device: pip install "midge[aggregator]"') from error


def add_tls(parser: Parser) -> None:
    """Options for credentials and TLS; the password comes from the URL or the environment, not from an option."""
    parser.add_argument("--user", help="user name at the broker; the password is read from MIDGE_PASSWORD")
    parser.add_argument("--cafile", metavar="PEM", help="certificate authority to trust, for mqtts://")
    parser.add_argument("--certfile", metavar="PEM", help="our own certificate, for a broker that wants one")
    parser.add_argument("--keyfile", metavar="PEM", help="the key of that certificate")


def add_federation(parser: Parser) -> None:
    """A broker's address, a federation and a topic root."""
    parser.add_argument("url", metavar="URL", help="the broker, such as mqtt://localhost:1883")
    parser.add_argument("--federation", required=True, metavar="NAME", help="the federation's name")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    add_tls(parser)


def read_endpoint(args: argparse.Namespace, url: str) -> Endpoint:
    """The address that the options describe."""
    with mendable():
        named = endpoint_of(url, user=args.user, cafile=args.cafile, certfile=args.certfile, keyfile=args.keyfile)
        if named.user is None or named.password is not None:
            return named
        return endpoint_of(
            url,
            user=args.user,
            password=os.environ.get("MIDGE_PASSWORD"),
            cafile=args.cafile,
            certfile=args.certfile,
            keyfile=args.keyfile,
        )


def read_federation(args: argparse.Namespace) -> tuple[Connector, Topics]:
    """What `add_federation` asked for."""
    with mendable():
        return connector(read_endpoint(args, args.url)), Topics(args.federation, args.root)


def load_app(name: str, kind: type[Any], what: str) -> Any:
    """The object of the user's that `module:attribute` names, or what it returns where it is a function."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise Problem(f"{name!r} is not of the form module:attribute, such as pump:app.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name.partition(".")[0]:
            raise Problem(
                f"There is no module {module_name!r} in {Path.cwd()}: go to the directory of {module_name}.py."
            ) from error
        raise Problem(f"{module_name!r} imports {error.name!r}, which is not installed here.") from error
    except ValueError as error:
        raise Problem(str(error)) from error
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        raise Problem(f"{module_name!r} cannot be imported; its error is above.") from error
    try:
        app = getattr(module, attribute)
    except AttributeError as error:
        raise Problem(f"The module {module_name!r} has no {attribute!r}.") from error
    if callable(app) and not isinstance(app, kind):
        app = app()
    if not isinstance(app, kind):
        raise Problem(f"{name} is a {type(app).__name__}; it must be {what}, or a function that returns one.")
    return app
