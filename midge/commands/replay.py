"""`midge replay STORE`: rebuild the model from its journal, and compare."""

import argparse
import json
from dataclasses import asdict

from midge.commands.parts import Subparsers, existing_store, server_side


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="rebuild the model from an aggregator's journal, and compare digests",
        description=(
            "Rebuild the model from every checkpoint of a store and the journal behind it. All must give the same "
            "bits. Changes nothing: it reads a store on a read-only mount, a backup, or beside a running aggregator."
        ),
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.reading import ReadOnlyStore  # noqa: PLC0415
        from midge.aggregator.store.replaying import replay  # noqa: PLC0415 - an extra
    with ReadOnlyStore(existing_store(args.store)) as store:
        ways = list(replay(store))
    same = len({way.digest for way in ways}) == 1
    if args.json:
        print(json.dumps({"same": same, "ways": [asdict(way) for way in ways]}))
    else:
        for way in ways:
            print(
                f"checkpoint {way.checkpoint} and {way.records} records: version {way.version}, step {way.step}, "
                f"digest {way.digest}"
            )
        print("All the same." if same else "They differ: the store is damaged. Restore it from a backup.")
    return 0 if same else 1
