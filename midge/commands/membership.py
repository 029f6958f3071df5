"""`midge device add`, `device revoke`, `device rotate` and `device list`: members of a fleet."""

import argparse
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from midge.commands.parts import Problem, Subparsers, called, user_errors
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.broker.provisioning.manage_devices import Applied

VERBS = ("add", "revoke", "rotate", "list")

T = TypeVar("T")

_HERE = "fleet"
_TAKES_EFFECT = 1.0
"""Seconds in which a notified broker reads its files again."""


def register(subparsers: Subparsers) -> None:
    adding = _with_names(subparsers, "add", "add devices to a fleet, each with a bundle")
    adding.set_defaults(run=add)
    revoking = _with_names(subparsers, "revoke", "revoke devices at once, connected or not")
    revoking.set_defaults(run=revoke)
    rotating = _with_names(subparsers, "rotate", "give devices new keys; the old ones stay valid until --finish")
    when = rotating.add_mutually_exclusive_group()
    when.add_argument("--now", action="store_true", help="revoke the old keys at once")
    when.add_argument("--finish", action="store_true", help="make nothing new; revoke the old keys")
    rotating.set_defaults(run=rotate)
    listing = subparsers.add_parser(
        "device list", aliases=["device-list"], help="the devices of a fleet", description="List a fleet's devices."
    )
    listing.add_argument("directory", nargs="?", metavar="FLEET", help="as --fleet")
    add_fleet(listing)
    listing.add_argument("--json", action="store_true", help="as one JSON object")
    listing.add_argument("--renew", action="store_true", help="rewrite the revocation list and the ACL first")
    listing.add_argument(
        "--accept-older",
        action="store_true",
        help="with --renew: accept a register that was restored from a copy; repeat revocations made since",
    )
    listing.set_defaults(run=show)


def _with_names(subparsers: Subparsers, verb: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        f"device {verb}",
        aliases=[f"device-{verb}"],
        help=words,
        description=f"{words[0].upper()}{words[1:]}. A broker on this machine is notified.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="devices; the fleet's directory may stand before them")
    add_fleet(parser)
    return parser


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """An option for a fleet's directory."""
    parser.add_argument("--fleet", metavar="DIR", help=f"what `midge broker init` made (default: {_HERE})")


def _fleet(args: argparse.Namespace) -> Path:
    """The fleet's directory; taken from the names if it stands there. MAC addresses become names."""
    from midge.broker.provisioning.fleet_registry import REGISTER  # noqa: PLC0415

    if args.fleet is None and len(args.names) > 1 and (Path(args.names[0]) / REGISTER).is_file():
        directory = Path(args.names.pop(0))
    else:
        directory = Path(args.fleet or _HERE)
    args.names = [called(name) for name in args.names]
    return directory


def add(args: argparse.Namespace) -> int:
    from midge.broker.provisioning import manage_devices as membership  # noqa: PLC0415 - an extra

    directory = _fleet(args)
    told = do(lambda: membership.add(directory, args.names))
    for name in args.names:
        print(f"{directory}/devices/{name}.tar is for {name} alone.")
    return tell(told, "")


def revoke(args: argparse.Namespace) -> int:
    from midge.broker.provisioning import manage_devices as membership  # noqa: PLC0415

    directory = _fleet(args)
    told = do(lambda: membership.revoke(directory, args.names))
    code = tell(told, f"{', '.join(args.names)}: revoked.")
    if why := _tell_aggregator(directory, args.names, wait=told.broker):
        print(f"What they said last still stands at the broker, and updates of theirs that wait count: {why}")
    return code


def _tell_aggregator(directory: Path, names: Sequence[str], *, wait: bool) -> str:
    """Have the aggregator drop revoked devices' queued updates and retained messages; return why if not.

    As the operator: a second connection as the aggregator would disconnect the first. Signed with the release key.
    """
    from midge.broker import BrokerError, connector  # noqa: PLC0415
    from midge.broker.mqtt.federation_view import say_gone  # noqa: PLC0415
    from midge.broker.provisioning.bundles import BundleError, read_bundle  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import AGGREGATOR, OPERATOR  # noqa: PLC0415
    from midge.wire import signing  # noqa: PLC0415

    async def clear() -> None:
        if wait:
            await asyncio.sleep(_TAKES_EFFECT)  # otherwise a connected device publishes it again
        await say_gone(connector(bundle.endpoint), bundle.topics, names, key)

    path = directory / AGGREGATOR / "release.key"
    try:
        key = signing.read_private(path.read_bytes(), str(path)) if path.is_file() else None
        bundle = read_bundle(directory / OPERATOR)
        asyncio.run(clear())
    except (BundleError, BrokerError, signing.KeyUnusable, OSError) as error:
        return f"{error} Then give the command again."
    return "" if key is not None else f"there is no {path} here to sign the request. Run the command where it is."


def rotate(args: argparse.Namespace) -> int:
    from midge.broker.provisioning import manage_devices as membership  # noqa: PLC0415

    directory = _fleet(args)
    told = do(lambda: membership.rotate(directory, args.names, now=args.now, finish=args.finish))
    if args.finish:
        return tell(told, f"{', '.join(args.names)}: only the newest keys are good.")
    for name in args.names:
        print(f"{name} has new keys: carry its bundle there.")
    if not args.now and not told.broker and not told.todo:
        print(f"Then: midge device rotate --fleet {directory} --finish {' '.join(args.names)}")
    return tell(told, "")


def show(args: argparse.Namespace) -> int:
    from midge.broker.provisioning import manage_devices as membership  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import present  # noqa: PLC0415

    directory = Path(args.fleet or args.directory or _HERE)
    if args.accept_older and not args.renew:
        raise Problem("--accept-older goes with --renew, which writes what the broker reads from the register.")
    if args.renew:
        do(lambda: membership.renew(directory, accept_older=args.accept_older))
    listed = do(lambda: membership.devices(directory))
    soon = do(lambda: membership.warnings(directory, present()))
    if args.json:
        devices = [
            {
                "name": each.name,
                "state": each.state,
                "ends": each.ends and each.ends.isoformat(),
                "revoked": each.since and each.since.isoformat(),
            }
            for each in listed
        ]
        print(json.dumps({"fleet": str(directory), "devices": devices, "warnings": soon}))
        return 0
    for each in listed:
        until = f"  until {each.ends:%Y-%m-%d}" if each.ends and not each.since else ""
        print(f"{each.name:<24} {each.state}{until}")
    gone = sum(each.since is not None for each in listed)
    print(f"{counted(len(listed) - gone, 'device')}, {gone} revoked.", *soon, sep="\n")
    return 0


def do(what: Callable[[], T]) -> T:
    """Run it; an error that the user can fix becomes a Problem."""
    from midge.broker.provisioning.certificates import AuthorityError, SecurityMissing  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import FleetError  # noqa: PLC0415

    try:
        with user_errors():
            return what()
    except (FleetError, SecurityMissing, AuthorityError) as error:
        raise Problem(str(error)) from error


def tell(told: "Applied", words: str) -> int:
    """Print what was done, and what is left to do on the broker's machine."""
    if words:
        print(f"{words} The running broker was notified." if told.broker else words)
    if told.todo:
        untold = "The broker was not notified: none of this fleet runs here. To notify it:"
        print("Left to do:" if told.broker else untold)
        for each in told.todo:
            print(f"  {each}")
    return 0
