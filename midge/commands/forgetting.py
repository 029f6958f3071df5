"""`midge device-forget NAME --store DIR`: withdraw a device from a federation, and erase what the store has of it."""

import argparse
import getpass
import time
from pathlib import Path

from midge.commands.parts import Problem, Subparsers, server_side, user_errors


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "device-forget",
        help="withdraw a device: refuse it from now on, and erase what the aggregator's store has of it",
        description="Refuse a device from now on and erase its name, its updates and its counters from the store, "
        "beside a running aggregator or where none runs. What it has already contributed to the model stays in it. It "
        "cannot come back under this name.",
    )
    parser.add_argument("name", metavar="NAME", help="the device's name on the wire")
    parser.add_argument("--store", required=True, metavar="DIR", help="the aggregator's store")
    parser.add_argument(
        "--wait", type=float, default=30.0, metavar="SECONDS", help="for a running aggregator to do it (default: 30)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store import device_erasure as forgetting  # noqa: PLC0415 - an extra
        from midge.aggregator.store.store import Store, StoreInUse  # noqa: PLC0415
    directory = Path(args.store)
    if not (directory / "store.db").is_file():
        raise Problem(f"{directory} is no store of an aggregator: there is no store.db in it.")
    with user_errors():
        path = forgetting.ask(directory, args.name)
    try:
        with Store(directory) as store:
            counted = forgetting.forget_in_stopped(store, args.name, getpass.getuser())
    except StoreInUse:
        return _wait_for(path, args.name, args.wait)
    if counted is None:
        print(
            f"{args.name} is refused from now on. The rest is done by the aggregator's next start: it did not end in "
            "order, or an update of this device waits for its step."
        )
        return 0
    path.unlink(missing_ok=True)
    print(
        f"{args.name} is forgotten: {counted['records']} records without its name, {counted['bodies']} updates erased."
    )
    return 0


def _wait_for(path: Path, name: str, seconds: float) -> int:
    """The running aggregator takes the request's file away when it is done."""
    end = time.monotonic() + seconds
    while path.exists():
        if time.monotonic() > end:
            print(
                f"{name} is refused as soon as the aggregator reads {path}. It erases the rest when no update of the "
                f"device waits for its step any more; then the file is gone."
            )
            return 0
        time.sleep(0.1)
    print(f"{name} is forgotten. {path.parents[1] / 'audit.log'} says what was erased.")
    return 0
