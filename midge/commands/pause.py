"""`midge pause STORE` and `midge resume STORE`: hold a federation, and let it go on."""

import argparse

from midge.commands.parts import Subparsers, existing_store, server_side


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "pause",
        help="take no update in until `midge resume`",
        description="Hold a federation: within a few seconds its aggregator takes no update in and tells the devices, "
        "which keep theirs and rest. It holds across restarts of the aggregator, until `midge resume STORE`.",
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.add_argument("--why", default="the operator paused it", help="what devices and people are told")
    parser.set_defaults(run=run_pause)
    parser = subparsers.add_parser(
        "resume", help="end a pause", description="End what `midge pause STORE` began; within a few seconds."
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.set_defaults(run=run_resume)


def run_pause(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.pausing import pause  # noqa: PLC0415 - an extra
    pause(existing_store(args.store), args.why)
    print(f"Paused: {args.why}. To go on: midge resume {args.store}")
    return 0


def run_resume(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.pausing import resume  # noqa: PLC0415 - an extra
    print("The federation goes on." if resume(existing_store(args.store)) else "It was not paused.")
    return 0
