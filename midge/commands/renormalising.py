"""`midge renormalise STORE`: request new statistics from the devices, and continue with the current model."""

import argparse

from midge.commands.parts import Problem, Subparsers, existing_store, server_side


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "renormalise",
        help="request new statistics of the devices' data, and continue with the current model",
        description=(
            "Begin a new generation of a stopped federation: at its next start the aggregator requests statistics "
            "from the devices again, makes the frozen tensors NAME_mean and NAME_scale from them, and continues with "
            "the last published model. Updates trained with the old statistics are refused, and their devices train "
            "again. Use it if a federation was normalised with too few rows, or with a device's wrong data."
        ),
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.renormalising import renormalise  # noqa: PLC0415 - an extra
        from midge.aggregator.store.store import Store, StoreInUse  # noqa: PLC0415
    path = existing_store(args.store)
    try:
        with Store(path) as store:
            generation, version = renormalise(store)
    except StoreInUse as error:
        raise Problem(f"The store {path} is in use: stop its aggregator, repeat this command, and start it.") from error
    print(
        f"Generation {generation} begins above version {version}: start the aggregator, and it asks the devices for "
        "statistics. Updates that were trained with the old ones are refused."
    )
    return 0
