"""`midge store backup | restore`: copies of an aggregator's store, and what becomes of them."""

import argparse
import getpass
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.parts import Parser, Subparsers, server_side
from midge.wire.inert import inert

if TYPE_CHECKING:
    from midge.aggregator.store.backup import Manifest


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("store", help="back an aggregator's store up, and restore it")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    backing = _action(
        actions,
        "backup",
        run_backup,
        help="copy a store, beside a running aggregator too",
        description="Copy a store as of one moment, beside a running aggregator or not, and check the copy. A folder "
        "with that name is there only if all of it is.",
    )
    backing.add_argument("store", metavar="STORE", help="the aggregator's store")
    backing.add_argument("target", metavar="TARGET", help="the folder to make; give each backup its own")
    restoring = _action(
        actions,
        "restore",
        run_restore,
        help="make a store from a backup",
        description="Check a backup and make a store of it, where there is none. With its next start its aggregator "
        "begins a new generation, because devices may know more than the backup does.",
    )
    restoring.add_argument("backup", metavar="BACKUP", help="a folder that `midge store backup` made")
    restoring.add_argument("store", metavar="STORE", help="the store to make; not there, or empty")


def _action(actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], **words: str) -> Parser:
    parser: Parser = actions.add_parser(name, **words)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=lambda args: _alarmed(run, args))
    return parser


def _alarmed(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run an action; damage that ends it is an alarm and no mistake of who gave the command."""
    with server_side():
        from midge.aggregator.store.errors import StoreDamaged  # noqa: PLC0415 - an extra
    try:
        return run(args)
    except StoreDamaged as error:
        print(json.dumps({"ok": False, "why": str(error)}) if args.json else inert(str(error)))
        return 1


def run_backup(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.backup import backup  # noqa: PLC0415 - an extra
    manifest = backup(Path(args.store), Path(args.target))
    if args.json:
        print(json.dumps({"ok": True, "backup": args.target, **_said(manifest)}))
    else:
        print(
            f"{args.target}: version {manifest.version}, {manifest.lsn} records, {len(manifest.files)} files, "
            f"{manifest.size / 1e6:.1f} MB, as written and read again."
        )
    return 0


def run_restore(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.backup import restore  # noqa: PLC0415 - an extra
    manifest = restore(Path(args.backup), Path(args.store), getpass.getuser())
    if args.json:
        print(json.dumps({"ok": True, "store": args.store, **_said(manifest)}))
    else:
        made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.made))
        print(
            f"{args.store} is as it was on {made}: version {manifest.version}, {manifest.lsn} records. What was "
            "accepted since is not in it. Start the aggregator: it begins a new generation, and the devices go on "
            "from there."
        )
    return 0


def _said(manifest: "Manifest") -> dict[str, Any]:
    return {
        "made": manifest.made,
        "lineage": manifest.lineage,
        "generation": manifest.generation,
        "version": manifest.version,
        "lsn": manifest.lsn,
        "files": len(manifest.files),
        "bytes": manifest.size,
    }
