"""Options that several commands share: a broker's address, credentials and a federation."""

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from midge.broker import Connector, Endpoint, connector
from midge.broker.mqtt.services import SERVICES
from midge.broker.provisioning.bundles import Bundle, BundleError, read_bundle
from midge.running import endpoint_of
from midge.wire.topics import DEFAULT_ROOT, Topics

if TYPE_CHECKING:
    from midge.wire.signing import PrivateKey

Parser = argparse.ArgumentParser
Subparsers = Any

_LONGEST_PASSWORD = 65_536
"""Characters, including the line end: MQTT sends the length in 16 bits."""


class Problem(Exception):
    """An error that the user can fix; the message says how."""


@contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError in the block is about the user's input."""
    try:
        yield
    except ValueError as error:
        raise Problem(plainly(error)) from error


@contextmanager
def write_errors(what: object, advice: str = "name a place that can") -> Iterator[None]:
    """An OSError in the block is about a file that the user named."""
    try:
        yield
    except OSError as error:
        raise Problem(f"{what} cannot be written ({error.strerror}): {advice}.") from error


def page_errors() -> AbstractContextManager[None]:
    """The same of a page, which `--output` names."""
    return write_errors("The page", "give another place with --output")


def plainly(error: ValueError) -> str:
    """The error's message; of pydantic's several lines the first, with the field and the value."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or error.title
        return f"{field} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."
    return str(error)


def called(text: str) -> str:
    """A device's name, for argparse; printed if it had to be changed, such as a MAC address."""
    name = text.replace(":", "-")
    if name != text:
        sys.stderr.write(
            f"midge: the device {text} is called {name} here: a colon can stand in no password file, and in no file "
            "name on an SD card.\n"
        )
    return name


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE, several times."""
    found: dict[str, str] = {}
    for text in texts:
        name, equal, value = text.partition("=")
        if not (name and equal):
            raise Problem(f"{option} is {text!r}: say a name and a value, such as site=north.")
        found[name] = value
    return found


def add_page(parser: Parser, default: str) -> None:
    """An option for where a page is written."""
    parser.add_argument("-o", "--output", metavar="FILE.html", default=default, help="the page (default: %(default)s)")


def try_page(path: str) -> None:
    """Refuse a place where no page can be written, before the work for it begins."""
    place = Path(path)
    with page_errors():
        if not os.path.lexists(place):
            place.touch()
            place.unlink()
        elif place.is_file() or place.is_dir():  # a pipe would end
            place.open("ab").close()


def write_page(path: str, page: str) -> Path:
    """Write a page where the option says."""
    with page_errors():
        Path(path).write_text(page, encoding="utf-8")
    return Path(path)


def existing_store(directory: str) -> Path:
    """The directory of an existing aggregator's store."""
    path = Path(directory)
    if not (path / "store.db").is_file():
        raise Problem(f"{path} is no store of an aggregator: there is no store.db in it.")
    return path


@contextmanager
def server_side() -> Iterator[None]:
    """An import in the block needs the server's libraries."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Problem('The aggregator needs more than a device: pip install "midge[aggregator]"') from error


def add_tls(parser: Parser) -> None:
    """Options for credentials and TLS; no password as an argument, because arguments show in `ps`."""
    parser.add_argument("--user", help="user name at the broker; its password: --password-file, or MIDGE_PASSWORD")
    parser.add_argument("--password-file", metavar="FILE", help="the password at the broker: the file's first line")
    parser.add_argument("--cafile", metavar="PEM", help="certificate authority to trust, for mqtts://")
    parser.add_argument("--certfile", metavar="PEM", help="our own certificate, for a broker that wants one")
    parser.add_argument("--keyfile", metavar="PEM", help="the key of that certificate")
    parser.add_argument(
        "--service",
        choices=list(SERVICES),
        help="keep to the limits of this hosted broker that it does not announce (default: by its host name)",
    )


def add_recipe(group: "argparse._ArgumentGroup") -> None:
    """Options for how simulated devices train."""
    group.add_argument("--learning-rate", type=float, help="of the devices (default: the model's)")
    group.add_argument("--local-steps", type=int, help="of the devices (default: the model's)")
    group.add_argument("--batch-size", type=int, help="of the devices (default: the model's)")


def add_federation(parser: Parser) -> None:
    """Options for a broker's address, a federation and a topic root; or a bundle with all of them."""
    parser.add_argument("url", metavar="URL", nargs="?", help="the broker, such as mqtt://localhost:1883")
    parser.add_argument("--federation", metavar="NAME", help="the federation's name")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    add_bundle(parser, "a bundle of `midge broker init`, or a settings file: broker, federation, credentials")
    add_tls(parser)


def add_bundle(parser: Parser, text: str = "a bundle of `midge broker init`: broker, federation, credentials") -> None:
    """An option for a bundle."""
    parser.add_argument("--config", metavar="TOML", help=text)


def read_config(config: str, broker: str | None = None) -> Bundle:
    """The bundle in `--config`; `broker` replaces its address."""
    try:
        return read_bundle(Path(config).expanduser(), broker=broker)
    except BundleError as error:
        raise Problem(str(error)) from error


def read_endpoint(args: argparse.Namespace, url: str) -> Endpoint:
    """The endpoint that the options describe."""
    with user_errors():
        named = endpoint_of(url, user=args.user, cafile=args.cafile, certfile=args.certfile, keyfile=args.keyfile)
        password = named.password
        if args.password_file is not None:
            password = password_in(args.password_file)
            if named.user is None:
                raise Problem("--password-file is given without a user: say --user NAME, or mqtt://NAME@host.")
        elif password is None and named.user is not None:
            password = os.environ.get("MIDGE_PASSWORD")
        return served_by(replace(named, password=password), args)


def served_by(endpoint: Endpoint, args: argparse.Namespace) -> Endpoint:
    """The endpoint, at the service that `--service` names."""
    return replace(endpoint, service=args.service or endpoint.service)


def other_broker(url: str, password_file: str | None) -> Endpoint:
    """A broker beside the federation's: its address, and a file with the password of the user in it."""
    found = endpoint_of(url)
    return found if password_file is None else replace(found, password=password_in(password_file))


def password_in(file: str) -> str:
    """The first line of a file; warns if others can read it."""
    path = Path(file).expanduser()
    try:
        with path.open(encoding="utf-8-sig") as lines:
            mode = os.fstat(lines.fileno()).st_mode
            password = lines.readline(_LONGEST_PASSWORD).rstrip("\r\n")
    except OSError as error:
        raise Problem(f"The password file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Problem(f"The password file {path} is no text in UTF-8.") from error
    if not password:
        raise Problem(f"The password file {path} is empty: its first line must be the password.")
    if stat.S_ISREG(mode) and mode & 0o077:
        sys.stderr.write(f"midge: the password file {path} can be read by others: chmod 600 {path}\n")
    return password


def read_release_key(file: str) -> "PrivateKey":
    """The private key that signs what an operator asks for."""
    from midge.wire import signing  # noqa: PLC0415 - for those who have one

    path = Path(file).expanduser()
    try:
        return signing.read_private(path.read_bytes(), str(path))
    except OSError as error:
        raise Problem(f"The release key {path} cannot be read: {error.strerror}.") from error


def read_federation(args: argparse.Namespace) -> tuple[Connector, Topics]:
    """Connector and topics from the options of `add_federation`."""
    if args.config is not None:
        from midge.commands.settings import read_place  # noqa: PLC0415 - it has options of ours

        read_place(args)
    if args.config is not None:
        bundle = read_config(args.config, args.url)
        if args.federation is not None and args.federation != bundle.topics.federation:
            raise Problem(f"{args.config} is of federation {bundle.topics.federation!r}: leave --federation out.")
        return connector(served_by(bundle.endpoint, args)), bundle.topics
    if args.url is None:
        raise Problem("Say where: the broker's address, such as mqtt://localhost, or --config with a bundle.")
    if args.federation is None:
        raise Problem("Say which federation: --federation NAME; `midge status` with the address lists them.")
    with user_errors():
        return connector(read_endpoint(args, args.url)), Topics(args.federation, args.root)
