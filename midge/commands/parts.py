"""What several commands take: a broker's address and a federation."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from midge.broker import Connector, Endpoint, connector
from midge.broker.provisioning.bundles import Bundle, BundleError, read_bundle
from midge.running import endpoint_of
from midge.wire.topics import DEFAULT_ROOT, Topics

Parser = argparse.ArgumentParser
Subparsers = Any


class Problem(Exception):
    """Something that the person who gave the command can mend; the message says how."""


@contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError in here is about what the person gave."""
    try:
        yield
    except ValueError as error:
        raise Problem(plainly(error)) from error


def plainly(error: ValueError) -> str:
    """The error's message; of pydantic's many lines the first, with the field and the value."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or error.title
        return f"{field} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
    return str(error)


def existing_store(directory: str) -> Path:
    """The directory of an aggregator's store that is there."""
    path = Path(directory)
    if not (path / "store.db").is_file():
        raise Problem(f"{path} is no store of an aggregator: there is no store.db in it.")
    return path


@contextmanager
def server_side() -> Iterator[None]:
    """An import in here needs the server's libraries."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Problem('The aggregator needs more than a device: pip install "midge[aggregator]"') from error


def add_tls(parser: Parser) -> None:
    """Options for credentials and TLS; the password comes from the environment: an argument shows in `ps`."""
    parser.add_argument("--user", help="user name at the broker; the password is read from MIDGE_PASSWORD")
    parser.add_argument("--cafile", metavar="PEM", help="certificate authority to trust, for mqtts://")
    parser.add_argument("--certfile", metavar="PEM", help="our own certificate, for a broker that wants one")
    parser.add_argument("--keyfile", metavar="PEM", help="the key of that certificate")


def add_federation(parser: Parser) -> None:
    """A broker's address, a federation and a topic root; or a bundle that says all of it."""
    parser.add_argument("url", metavar="URL", nargs="?", help="the broker, such as mqtt://localhost:1883")
    parser.add_argument("--federation", metavar="NAME", help="the federation's name")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    add_bundle(parser)
    add_tls(parser)


def add_bundle(parser: Parser) -> None:
    """An option for a bundle."""
    parser.add_argument(
        "--config",
        metavar="TOML",
        help="a bundle of `midge broker init`: broker, federation, credentials",
    )


def read_config(config: str, broker: str | None = None) -> Bundle:
    """The bundle that `--config` names; `broker` is another address than it says."""
    try:
        return read_bundle(Path(config).expanduser(), broker=broker)
    except BundleError as error:
        raise Problem(str(error)) from error


def read_endpoint(args: argparse.Namespace, url: str) -> Endpoint:
    """The address that the options describe."""
    with user_errors():
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
    if args.config is not None:
        bundle = read_config(args.config, args.url)
        return connector(bundle.endpoint), bundle.topics
    if args.url is None or args.federation is None:
        raise Problem("Say where and what: the broker's address and --federation NAME, or --config with a bundle.")
    with user_errors():
        return connector(read_endpoint(args, args.url)), Topics(args.federation, args.root)
