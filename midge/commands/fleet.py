"""`midge fleet`: a fleet on the virtual clock or over a broker, or devices whose updates can be counted."""

import argparse
import math
from pathlib import Path

from broker import connector
from midge.commands import live_fleet, virtual
from midge.commands.parts import Problem, Subparsers, add_tls, read_endpoint, server_side, user_errors
from midge.running import run_until_interrupted

_USUAL = {"virtual": (1000, 7.0, "fleet"), "live": (200, 1.0, "fleet"), "ledger": (20, 7.0, "ledger")}
"""Devices, days and the federation's name, where nothing is said."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fleet",
        help="simulate a fleet before it is bought, or run one of thousands of devices",
        description="Simulate a fleet of a profile on a virtual clock (--virtual), or say what it would take (--plan): "
        "the aggregator and the devices' sessions are the real ones. Or run it over a real broker (--live, or --broker "
        "alone), with thousands of connections from this process. Or run devices that each put a one into a place of "
        "the model of their own with every update, and write down every receipt; or compare those with the model "
        '(--ledger). The aggregator to go with them: MIDGE_LEDGER="devices=20 updates=500" '
        "midge aggregate sensor_fleet.ledger:app --broker URL",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--virtual", action="store_true", help="simulate a fleet, and write a report of it")
    kind.add_argument("--plan", action="store_true", help="how long, how many bytes, how much energy, for which score")
    kind.add_argument("--live", action="store_true", help="run a fleet over a broker, in scaled time")
    kind.add_argument("--ledger", action="store_true", help="devices whose updates can be counted in the model")
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="of the fleet (default: 1000 virtual ones, 200 live ones, 20 of a ledger)",
    )
    virtual.register(parser)
    live_fleet.register(parser)
    parser.add_argument(
        "--broker", metavar="URL", help="of a live fleet (default: one of its own), of a ledger (default: localhost)"
    )
    parser.add_argument("--federation", metavar="NAME", help="default: fleet, or ledger")
    parser.add_argument("--updates", type=int, default=500, metavar="N", help="of each device (default: 500)")
    parser.add_argument("--only", metavar="A-B", help="run only the devices with these numbers, such as 0-4")
    parser.add_argument("--until", type=float, default=math.inf, metavar="TIME", help="make none after this Unix time")
    parser.add_argument(
        "--pace", type=float, default=0.0, metavar="S", help="seconds that a training takes (default: 0)"
    )
    parser.add_argument(
        "--patience", type=float, default=10.0, metavar="S", help="seconds before an update is sent again (default: 10)"
    )
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N places of each device")
    parser.add_argument(
        "--kill-rate", type=float, default=0.0, metavar="R", help="kill and revive R devices a second, at random"
    )
    parser.add_argument("--directory", default="ledger", metavar="DIR", help="of outboxes and receipts: ledger")
    parser.add_argument("--audit", metavar="MODEL", help="run nothing: compare receipts with this safetensors file")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.live = args.live or (args.broker is not None and not (args.virtual or args.plan or args.ledger))
    if not (args.virtual or args.plan or args.live or args.ledger):
        raise Problem("Say how the fleet is to run: --virtual, --plan, --live, or --ledger.")
    usual_devices, usual_days, federation = _USUAL["ledger" if args.ledger else "live" if args.live else "virtual"]
    args.devices = usual_devices if args.devices is None else args.devices
    args.days = usual_days if args.days is None else args.days
    args.federation = args.federation or federation
    if args.speed_up is not None and not 0 < args.speed_up <= 1e6:
        raise Problem(f"--speed-up is {args.speed_up:g}: 600 makes a day of 2.4 minutes.")
    if args.live:
        return live_fleet.run(args)
    if not args.ledger:
        return virtual.run(args)
    args.broker = args.broker or "mqtt://localhost:1883"
    with server_side():
        from sensor_fleet.ledger import Books, LedgerFleet, audit  # noqa: PLC0415 - an extra
    directory = Path(args.directory)
    if args.audit:
        with user_errors():
            found = audit(Path(args.audit), directory)
        print(f"{found.accepted} accepted, {found.lost} lost, {found.doubled} doubled")
        return 1 if found.lost or found.doubled else 0
    if args.devices < 1 or args.updates < 1 or min(args.skip, args.pace, args.kill_rate, args.patience) < 0:
        raise Problem("--devices and --updates must be at least 1, --skip, --pace, --patience, --kill-rate at least 0.")
    with user_errors():
        books = Books(devices=args.devices, updates=args.updates, federation=args.federation)
        numbers = _numbers(args.only, args.devices)
        endpoint = read_endpoint(args, args.broker)
        fleet = LedgerFleet(
            connector(endpoint),
            books,
            numbers,
            directory,
            until=args.until,
            pace=args.pace,
            patience=args.patience,
            skip=args.skip,
            kill_rate=args.kill_rate,
        )
    interrupted = run_until_interrupted(fleet)
    print(f"{len(numbers)} devices; " + ("stopped before all was settled" if interrupted else "all is settled"))
    return 130 if interrupted else 0


def _numbers(only: str | None, devices: int) -> range:
    if only is None:
        return range(devices)
    first, _, last = only.partition("-")
    if not (first.isdecimal() and (last or "0").isdecimal() and int(first) <= int(last or first) < devices):
        raise ValueError(f"--only is {only!r}: it must be a number or a range below {devices}, such as 0-4.")
    return range(int(first), int(last or first) + 1)
