"""`midge pause STORE` and `midge resume STORE`: suspend a federation, and resume it."""

import argparse

from midge.commands.parts import Subparsers, existing_store, server_side


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "pause",
        help="refuse updates until `midge resume`",
        description=(
            "Suspend a federation: within a few seconds its aggregator refuses updates and tells the devices, which "
            "keep theirs and rest. It holds across restarts of the aggregator, until `midge resume STORE`."
        ),
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.add_argument("--why", default="the operator paused it", help="the reason, shown to devices and people")
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
    print(f"Paused: {args.why}. To continue: midge resume {args.store}")
    return 0


def run_resume(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.pausing import resume  # noqa: PLC0415 - an extra
    print("The federation continues." if resume(existing_store(args.store)) else "It was not paused.")
    return 0
