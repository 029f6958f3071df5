"""`midge release-key`: make the key that signs a federation's announcements, and its successors."""

import argparse
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, server_side, user_errors, write_errors
from midge.storage.files import PUBLIC, atomic_write

_DAY = 86_400.0


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("release-key", help="make the key that signs a federation's announcements")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    making = actions.add_parser("new", help="a first key: FILE, and FILE.pub for the devices to pin")
    making.add_argument("file", metavar="FILE", help="where the private key is written")
    making.add_argument(
        "--type",
        choices=["ed25519", "p256", "both", "hmac"],
        default="ed25519",
        help="p256 for devices that have no Ed25519, such as microcontrollers with a secure element; both writes "
        "FILE.p256 too, which signs beside FILE, for fleets of both; hmac is a secret that one device shares with the "
        "aggregator, NAME.hmac in its device_keys (default: ed25519)",
    )
    making.set_defaults(run=new)
    following = actions.add_parser(
        "succeed",
        help="make a successor; devices follow by themselves",
        description=(
            "Make a new key that signs from some time on. The old one signs the succession, so that devices which "
            "pinned the old one follow. Start the aggregator again with the same FILE."
        ),
    )
    following.add_argument("file", metavar="FILE", help="the current private key; the new one takes its name")
    following.add_argument("--federation", required=True, metavar="NAME", help="the federation's name")
    following.add_argument("--days", type=float, default=0.0, help="delay until it signs (default: 0)")
    following.set_defaults(run=succeed)


def new(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.publish.announcement_signer import write_secret  # noqa: PLC0415 - an extra
        from midge.wire import signing  # noqa: PLC0415
    path = Path(args.file)
    if args.type == signing.HMAC:
        return _secret(path, signing.MacKey(secrets.token_bytes(32)).text(), write_secret)
    both = args.type == "both"
    kinds = {path: signing.ED25519 if both else args.type}
    if both:
        kinds[path.with_name(f"{path.name}.{signing.P256}")] = signing.P256
    for file in kinds:
        if file.exists():
            raise Problem(
                f"{file} is there already: name another file, or give it a successor with release-key succeed."
            )
    with write_errors(path):
        for file, kind in kinds.items():
            key = signing.new_key(kind)
            write_secret(file, key.pem())
            atomic_write(file.with_name(file.name + ".pub"), key.public_pem(), mode=PUBLIC)
    print(f'{path} signs: midge.Aggregator(…, release_key="{path}"). Devices pin {path}.pub.')
    if both:
        print(f"{path}.p256 signs beside it: devices without Ed25519 pin {path}.p256.pub.")
    return 0


def _secret(path: Path, text: bytes, write: Callable[[Path, bytes], None]) -> int:
    """Write the secret that a device without public keys shares with its aggregator."""
    if path.exists():
        raise Problem(f"{path} is there already: name another file.")
    with write_errors(path):
        write(path, text)
    print(
        f"{path} is a device's and the aggregator's: write it onto the board, and put it into device_keys as NAME.hmac."
    )
    return 0


def succeed(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.publish import announcement_signer as issuing  # noqa: PLC0415 - an extra
    path = Path(args.file)
    with user_errors():
        keys = issuing.succeed(path, args.federation, time.time() + _DAY * args.days)
        atomic_write(path.with_name(path.name + ".pub"), keys.keys[-1][1].public_pem(), mode=PUBLIC)
    print(
        f"{path} is the successor, number {len(keys.chain)}. Devices that pin an earlier key follow; new ones pin this."
    )
    return 0
