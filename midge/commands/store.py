"""`midge store verify | backup | restore | promote | salvage`: keep a store that outlives its disk, or its host."""

import argparse
import getpass
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.parts import Parser, Problem, Subparsers, server_side
from midge.wire.inert import inert
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.aggregator.store.manifest import Manifest
    from midge.aggregator.store.salvage import Loss


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("store", help="verify, back up, restore or salvage an aggregator's store")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verifying = _action(
        actions,
        "verify",
        run_verify,
        help="verify every part of a store",
        description=(
            "Read all of a store without changing it, also beside a running aggregator and on a read-only mount: the "
            "database, its log, the journal, bodies, checkpoints, frames, metadata, the witness, the audit log. Exit "
            "code 1: something is damaged."
        ),
    )
    verifying.add_argument("store", metavar="STORE", help="the aggregator's store, or a backup of it")
    backing = _action(
        actions,
        "backup",
        run_backup,
        help="copy a store, also beside a running aggregator",
        description=(
            "Make a consistent copy of a store, also beside a running aggregator, and check it. The folder appears "
            "only when it is complete."
        ),
    )
    backing.add_argument("store", metavar="STORE", help="the aggregator's store")
    backing.add_argument("target", metavar="TARGET", help="the folder to make; give each backup its own")
    restoring = _action(
        actions,
        "restore",
        run_restore,
        help="make a store from a backup",
        description=(
            "Check a backup and make a store from it. At its next start the aggregator begins a new generation, "
            "because devices may know more than the backup."
        ),
    )
    restoring.add_argument("backup", metavar="BACKUP", help="a folder that `midge store backup` made")
    restoring.add_argument("store", metavar="STORE", help="the store to make; not there, or empty")
    restoring.add_argument(
        "--accept-spent",
        action="store_true",
        help="of a private federation: devices may spend again what they have spent since the backup",
    )
    promoting = _action(
        actions,
        "promote",
        run_promote,
        help="have a standby take over now",
        description="Have the standby whose copy this is serve, also if it would not by itself: because its copy is "
        "old, or it has not followed since it was started. Stop the aggregator that it follows first: while that one "
        "serves, nothing is taken over.",
    )
    promoting.add_argument("store", metavar="STORE", help="the standby's store")
    salvaging = _action(
        actions,
        "salvage",
        run_salvage,
        help="make a store from the rest of a damaged one",
        description="Show what a damaged store still holds and exactly what is lost; with --accept-loss, make a store "
        "of it. The damaged one stays as it is. At its next start the aggregator begins a new generation. Exit code "
        "1: nothing was made.",
    )
    salvaging.add_argument("store", metavar="STORE", help="the damaged store; its aggregator is stopped")
    salvaging.add_argument("target", metavar="TARGET", help="the store to make; not there, or empty")
    salvaging.add_argument("--accept-loss", action="store_true", help="make it, without what is lost")


def _action(actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], **words: str) -> Parser:
    parser: Parser = actions.add_parser(name, **words)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=lambda args: _alarmed(run, args))
    return parser


def _alarmed(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run an action; damage that ends it is an alarm and no user error."""
    with server_side():
        from midge.aggregator.store.errors import StoreDamaged  # noqa: PLC0415 - an extra
    try:
        return run(args)
    except StoreDamaged as error:
        print(json.dumps({"ok": False, "why": str(error)}) if args.json else inert(str(error)))
        return 1


def run_verify(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.verification import verify  # noqa: PLC0415 - an extra
    parts = verify(Path(args.store))
    damaged = sum(part.damaged for part in parts)
    at_stake = max(part.at_stake or 0 for part in parts)
    if args.json:
        found = {"ok": not damaged, "store": args.store, "damaged": damaged, "at_stake": at_stake}
        print(json.dumps({**found, "parts": [asdict(part) for part in parts]}))
        return 1 if damaged else 0
    for part in parts:
        if not part.damaged:
            print(f"{part.name}: {part.checked} checked.")
            continue
        many = "any number of updates" if part.at_stake is None else counted(part.at_stake, "update")
        stake = "" if part.at_stake == 0 else f" At stake: {many} that devices have receipts for."
        print(f"{part.name}: {part.checked} checked, {part.damaged} DAMAGED.{stake} To do: {part.advice}.")
        for line in part.found:
            print(f"  {inert(line)}")
    print("Something is damaged." if damaged else "Everything is undamaged.")
    return 1 if damaged else 0


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
        from midge.aggregator.store.restoring import restore  # noqa: PLC0415 - an extra
    manifest = restore(Path(args.backup), Path(args.store), getpass.getuser(), accept_spent=args.accept_spent)
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


def run_promote(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.standby.files import follows, promote  # noqa: PLC0415 - an extra
    directory = Path(args.store)
    if directory.exists() and any(directory.glob("store.db")) and not follows(directory):
        raise Problem(f"{directory} is no standby's: its aggregator serves, or may be started as it is.")
    try:
        promote(directory)
    except OSError as error:
        raise Problem(f"The order cannot be written to {directory} ({error.strerror}).") from error
    if args.json:
        print(json.dumps({"ok": True, "store": args.store}))
    else:
        print(
            f"The standby of {directory} takes over within a second, or when it is started (midge aggregate --standby)."
        )
    return 0


def run_salvage(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store.salvage import plan, salvage  # noqa: PLC0415 - an extra
    directory, target = Path(args.store), Path(args.target)
    found = salvage(directory, target, getpass.getuser()) if args.accept_loss else plan(directory)
    loss, made = found.loss, args.accept_loss
    if args.json:
        said = {"ok": made, "made": made, "store": args.target, "end": found.end, "checkpoint": found.kept.lsn}
        said |= {"generation": found.generation, "version": found.version, "step": found.step, "digest": found.digest}
        print(json.dumps({**said, "lost": {**asdict(loss), "records": loss.records}}))
        return 0 if made else 1
    print(
        f"Of {directory}, version {found.version} at step {found.step} can be kept: checkpoint {found.kept.lsn} and "
        f"{found.end - found.kept.lsn} records behind it."
    )
    for line in _words_of(loss):
        print(inert(line))
    if made:
        print(f"{target} is made, and {directory} stays as it was. Start the aggregator: it begins a new generation.")
        return 0
    print(f"Nothing was written. To make it: midge store salvage {directory} {target} --accept-loss")
    return 1


def _words_of(loss: "Loss") -> Iterator[str]:
    """The losses, a line each."""
    if not loss.records:
        yield "No record of the journal is lost."
    else:
        most = "" if loss.exact else "at most "
        many = counted(loss.updates, "update")
        yield (
            f"Lost: records {loss.first} to {loss.last}, with {most}{many} that devices have receipts for and do not "
            "send again."
        )
        unknown = loss.updates - sum(loss.devices.values())
        devices = ", ".join(f"{device} {count}" for device, count in sorted(loss.devices.items()))
        if devices:
            yield f"Of these: {devices}" + (f", and {unknown} of unknown devices." if unknown else ".")
    if loss.changes:
        yield (
            f"Lost besides: {loss.changes} changes such as a device that was withdrawn. Look into audit.log, and "
            "repeat the withdrawals."
        )
    yield from (f"Besides: {line}." for line in loss.said)


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
