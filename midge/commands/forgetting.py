"""`midge device forget NAME --store DIR`: withdraw a device from a federation, and erase its data in the store.

`midge device readmit NAME --store DIR` lets a withdrawn device take part again.
"""

import argparse
import getpass
import time
from pathlib import Path

from midge.commands.parts import Parser, Subparsers, called, existing_store, server_side, user_errors
from midge.wire.plurals import counted

VERBS = ("forget", "readmit")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "device forget",
        aliases=["device-forget"],
        help="withdraw a device: refuse it from now on, and erase its data in the aggregator's store",
        description="Refuse a device from now on and erase its name, its updates and its counters from the store, "
        "with or without a running aggregator. What it has already contributed to the model stays in it. It "
        "comes back under this name only if `device readmit` lets it.",
    )
    _add_request(parser)
    parser.set_defaults(run=run)
    parser = subparsers.add_parser(
        "device readmit",
        aliases=["device-readmit"],
        help="let a device that was withdrawn take part again",
        description=(
            "Let a device that `device forget` withdrew take part again under its name, with or without a running "
            "aggregator. Erased data stay erased: it begins as a new device."
        ),
    )
    _add_request(parser)
    parser.set_defaults(run=lambda args: readmit(args.name, args.store, args.wait))


def _add_request(parser: Parser) -> None:
    """Options for the device, the store, and how long to wait for a running aggregator."""
    parser.add_argument("name", type=called, metavar="NAME", help="the device's name on the wire")
    parser.add_argument("--store", required=True, metavar="DIR", help="the aggregator's store")
    parser.add_argument(
        "--wait", type=float, default=30.0, metavar="SECONDS", help="to wait for a running aggregator (default: 30)"
    )


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store import device_erasure as forgetting  # noqa: PLC0415 - an extra
        from midge.aggregator.store.store import Store, StoreInUse  # noqa: PLC0415
    directory = existing_store(args.store)
    with user_errors():
        path = forgetting.ask(directory, args.name)
    try:
        with Store(directory) as store:
            found = forgetting.forget_in_stopped(store, args.name, getpass.getuser())
    except StoreInUse:
        return _wait_for(path, args.name, args.wait)
    if found is None:
        print(
            f"{args.name} is refused from now on. The rest is done by the aggregator's next start: it did not end in "
            "order, or an update of this device waits for its step."
        )
        return 0
    path.unlink(missing_ok=True)
    print(
        f"{args.name} is forgotten: {counted(found['records'], 'record')} without its name, "
        f"{counted(found['bodies'], 'update')} erased."
    )
    return 0


def readmit(name: str, store: str, wait: float = 30.0) -> int:
    """Readmit a device."""
    with server_side():
        from midge.aggregator.store import device_erasure as forgetting  # noqa: PLC0415 - an extra
        from midge.aggregator.store.store import Store, StoreInUse  # noqa: PLC0415
    directory = existing_store(store)
    with user_errors():
        path = forgetting.ask(directory, name, readmit=True)
    try:
        with Store(directory) as opened:
            known = forgetting.readmit_in_stopped(opened, name, getpass.getuser())
    except StoreInUse:
        if _gone(path, wait):
            print(f"{name} may take part again. {directory / 'audit.log'} says so if it had been withdrawn.")
        else:
            print(f"{name} may take part again as soon as the aggregator reads {path}; then the file is gone.")
        return 0
    path.unlink(missing_ok=True)
    print(f"{name} may take part again." if known else f"{name} was not withdrawn: nothing was changed.")
    return 0


def _gone(path: Path, seconds: float) -> bool:
    """Whether a file disappears within a time."""
    end = time.monotonic() + seconds
    while path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _wait_for(path: Path, name: str, seconds: float) -> int:
    """Wait until the running aggregator removes the request's file."""
    if not _gone(path, seconds):
        print(
            f"{name} is refused as soon as the aggregator reads {path}. It erases the rest when no update of the "
            f"device waits for its step any more; then the file is gone."
        )
        return 0
    print(f"{name} is forgotten. {path.parents[1] / 'audit.log'} says what was erased.")
    return 0
