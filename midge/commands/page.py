"""The options of a live page, and starting it: `midge aggregate --page`, `midge watch` and `midge demo --page`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from midge.commands.parts import Parser, Problem, password_in, server_side
from midge.wire.topics import Topics

if TYPE_CHECKING:
    from midge.dashboard.actions import Action
    from midge.dashboard.service import PageService

DEFAULT = "127.0.0.1:8080"
_SHORTEST = 16
"""Characters of a token at least."""


def add_live_page(parser: Parser, *, default: str | None = None) -> None:
    """Options of the page."""
    group = parser.add_argument_group("a live page")
    shown = "serve a live page there" if default is None else f"default: {default}"
    group.add_argument("--page", metavar="HOST:PORT", default=default, help=f"{shown}; port 0 takes a free one")
    group.add_argument(
        "--page-token-file",
        metavar="FILE",
        help="the token for actions on the page: the file's first line (default: a new one is printed at each start)",
    )
    group.add_argument(
        "--page-name",
        metavar="NAME",
        action="append",
        default=[],
        help="a host name under which the page is reached, beside addresses and localhost",
    )


@contextmanager
def live_page(args: argparse.Namespace, topics: Topics, store: Path | None) -> Iterator["PageService"]:
    """The page that `--page` asks for, until the block ends.

    Args:
        args: with the options of `add_live_page`, and `json`.
        topics: of the federation.
        store: the aggregator's, for actions; None makes the page read-only.

    Raises:
        Problem: the options contradict each other, the address is in use, or a library is missing.
    """
    place = _place(args.page)
    token = _token(args, place[0])
    try:
        from midge.dashboard.service import PageService, new_token  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise Problem(f'A live page needs {error.name}: pip install "midge[page]"') from error
    made = "" if token or store is None else new_token()
    actions = () if store is None else _actions(store)
    try:
        page = PageService(topics, place, actions=actions, token=token or made, names=args.page_name)
    except OSError as error:
        raise Problem(f"The page cannot be served at {args.page} ({error.strerror or error}): name another.") from error
    page.start()
    out = sys.stderr if args.json else sys.stdout
    print(f"The page is at {page.url}", file=out, flush=True)
    if made:
        print(f"Its token for actions, until this ends: {made}", file=out, flush=True)
    try:
        yield page
    finally:
        page.stop()


def _actions(store: Path) -> "Sequence[Action]":
    with server_side():
        from midge.commands.page_actions import actions_on  # noqa: PLC0415 - an extra
    return actions_on(store)


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise Problem(f"--page is {text!r}: name an address and a port, such as {DEFAULT}.")
    return host.strip("[]") or "127.0.0.1", int(port)


def _token(args: argparse.Namespace, host: str) -> str:
    """The token in the given file; empty if one is to be made."""
    if args.page_token_file is None:
        if host != "localhost" and not _loopback(host):
            raise Problem(
                f"--page {args.page} can be reached from other machines: give the token for actions in a file of "
                "yours, --page-token-file FILE, or serve the page on 127.0.0.1."
            )
        return ""
    token = password_in(args.page_token_file)
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
        raise Problem(
            f"The token in {args.page_token_file} must have at least {_SHORTEST} characters, all of them ASCII: "
            "`openssl rand -base64 24` prints one."
        )
    return token


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
