"""`midge fleet`: a fleet on the virtual clock or over a broker."""

import argparse

from midge.commands import live_fleet, virtual
from midge.commands.parts import Problem, Subparsers, add_tls

_DEFAULTS = {"virtual": (1000, 7.0), "live": (200, 1.0)}
"""Default numbers of devices and days."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fleet",
        help="simulate a fleet before it is bought, or run one of thousands of devices",
        description="Simulate a fleet of a profile on a virtual clock (--virtual), or say what it would take (--plan): "
        "the aggregator and the devices' sessions are the real ones. Or run it over a real broker (--live, or --broker "
        "alone), with thousands of connections from this process.",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--virtual", action="store_true", help="simulate a fleet, and write a report of it")
    kind.add_argument("--plan", action="store_true", help="estimate time, bytes and energy for a score")
    kind.add_argument("--live", action="store_true", help="run a fleet over a broker, in scaled time")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="of the fleet (default: 1000 virtual ones, 200 live ones)"
    )
    virtual.register(parser)
    live_fleet.register(parser)
    parser.add_argument("--broker", metavar="URL", help="of a live fleet (default: one of its own)")
    parser.add_argument("--federation", default="fleet", metavar="NAME", help="default: fleet")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.live = args.live or (args.broker is not None and not (args.virtual or args.plan))
    if not (args.virtual or args.plan or args.live):
        raise Problem(
            "Say how the fleet is to run: --virtual, --plan, --live: simulated, only planned, or over a broker."
        )
    devices, days = _DEFAULTS["live" if args.live else "virtual"]
    args.devices = devices if args.devices is None else args.devices
    args.days = days if args.days is None else args.days
    if args.speed_up is not None and not 0 < args.speed_up <= 1e6:
        raise Problem(f"--speed-up is {args.speed_up:g}: 600 makes a day of 2.4 minutes.")
    return live_fleet.run(args) if args.live else virtual.run(args)
