"""The two parts of a ledger's federation as one program: `devices OPTIONS`, or the words of a `midge` command."""

import tests.harness.clock  # noqa: F401 - before anything asks for the time

# isort: split
import argparse
import math
import sys
from pathlib import Path

from midge.__main__ import main as midge
from midge.broker import Endpoint, connector
from midge.commands import problems
from midge.running import run_until_interrupted
from tests.harness.ledger import Books, LedgerFleet


def main(arguments: list[str] | None = None) -> int:
    """Run what the first word names. What the user can correct ends it with exit code 2, as it ends `midge`."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] != ["devices"]:
        return midge(words)
    try:
        return devices(words[1:])
    except problems() as error:
        sys.stderr.write(f"{error}\n")
        return 2


def devices(words: list[str]) -> int:
    """Run some of a ledger's devices until all that they make is settled."""
    parser = argparse.ArgumentParser(prog="devices")
    parser.add_argument("--broker", required=True, metavar="URL")
    parser.add_argument("--federation", required=True)
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="of the whole fleet")
    parser.add_argument("--updates", type=int, required=True, metavar="N", help="of each device")
    parser.add_argument("--only", required=True, metavar="A-B", help="the devices with these numbers")
    parser.add_argument("--directory", type=Path, required=True, help="of outboxes and receipts")
    parser.add_argument("--until", type=float, default=math.inf, metavar="TIME", help="make none after this Unix time")
    parser.add_argument("--pace", type=float, default=0.0, metavar="S", help="seconds that a training takes")
    parser.add_argument("--patience", type=float, default=10.0, metavar="S", help="before an update is sent again")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N places of each device")
    args = parser.parse_args(words)
    first, last = map(int, args.only.split("-"))
    fleet = LedgerFleet(
        connector(Endpoint.parse(args.broker)),
        Books(devices=args.devices, updates=args.updates, federation=args.federation),
        range(first, last + 1),
        args.directory,
        until=args.until,
        pace=args.pace,
        patience=args.patience,
        skip=args.skip,
    )
    return 130 if run_until_interrupted(fleet) else 0


if __name__ == "__main__":
    sys.exit(main())
