"""`midge audit STORE --from V`: execute releases again, and compare; `midge audit verify STORE`: the audit log."""

import argparse
import json
import sqlite3
from dataclasses import asdict

from midge.commands.output import say
from midge.commands.parts import Problem, Subparsers, existing_store, server_side
from midge.wire.plurals import counted

ACTIONS = ("verify", "releases")


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "audit",
        help="execute a range of releases again, bit for bit; verify a store's audit log",
        description="Audit a store: `midge audit STORE --from V` executes its releases again.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verifying = actions.add_parser(
        "verify",
        help="detect changed, removed or missing lines of the audit log",
        description="Verify that the log of forgotten devices is as it was written, also beside a running aggregator. "
        "Needs the store's names.key. Exit code 1: it is not.",
    )
    verifying.add_argument("store", metavar="STORE", help="the aggregator's store")
    verifying.add_argument("--json", action="store_true", help="as one JSON object")
    verifying.set_defaults(run=run)
    releases = actions.add_parser(
        "releases",
        help="execute a range of releases again, and compare with what was published",
        description="Execute the journal again from the checkpoint before a release, and compare each release bit for "
        "bit with the frames, registered versions and checkpoints in the store. Changes nothing: it reads a backup, or "
        "beside a running aggregator. Exit code 1: something differs.",
    )
    releases.add_argument("store", metavar="STORE", help="the aggregator's store, or a backup of it")
    releases.add_argument("--from", dest="first", type=int, required=True, metavar="V", help="the first release")
    releases.add_argument("--to", dest="last", type=int, metavar="V", help="the last one (default: the newest)")
    releases.add_argument("--json", action="store_true", help="as one JSON object")
    releases.set_defaults(run=run_releases)


def spelled_out(given: list[str]) -> list[str]:
    """The arguments with the action: `midge audit STORE` stands for `midge audit releases STORE`."""
    if given[:1] == ["audit"] and len(given) > 1 and given[1] not in ACTIONS and not given[1].startswith("-"):
        return ["audit", "releases", *given[1:]]
    return given


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.store import audit_log  # noqa: PLC0415 - an extra
    directory = existing_store(args.store)
    try:
        verdict = audit_log.verify(directory)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Problem(f"{directory / audit_log.AUDIT} cannot be looked at ({why}).") from error
    if args.json:
        print(json.dumps({**asdict(verdict), "ok": not verdict.wrong}))
        return 1 if verdict.wrong else 0
    for each in verdict.wrong:
        say(f"{directory / audit_log.AUDIT}: {each}.")
    older = f", {verdict.older} of them from before lines had a code" if verdict.older else ""
    if not verdict.wrong:
        say(f"{directory / audit_log.AUDIT}: {verdict.lines} lines, as they were written{older}.")
    return 1 if verdict.wrong else 0


def run_releases(args: argparse.Namespace) -> int:
    """Execute releases again."""
    with server_side():
        from midge.aggregator.store.reading import ReadOnlyStore  # noqa: PLC0415 - an extra
        from midge.aggregator.store.release_audit import audit  # noqa: PLC0415
    if args.last is not None and args.last < args.first:
        raise Problem(f"--to is {args.last}, before --from {args.first}: give a later release.")
    with ReadOnlyStore(existing_store(args.store)) as store:
        found = list(audit(store, args.first, args.last))
    if not found:
        raise Problem(f"{args.store} has no release from {args.first} on: `midge replay` shows its newest.")
    wrong = [each for each in found if each.wrong]
    bare = [each.version for each in found if not (each.same or each.wrong)]
    unlogged = [each.version for each in found if not (each.log or each.wrong)]
    if args.json:
        releases = [asdict(each) for each in found]
        print(json.dumps({"ok": not wrong, "not_compared": bare, "not_logged": unlogged, "releases": releases}))
        return 1 if wrong else 0
    for each in found:
        compared = f"{counted(len(each.same), 'part')} the same" if each.same else "not compared"
        said = f"WRONG: {', '.join(each.wrong)}" if each.wrong else compared
        named = counted(each.devices, "device") if each.devices or not each.updates else "devices that its sums hide"
        say(
            f"release {each.version}: {counted(each.updates, 'update')} of {named}, digest {each.digest[:16]}, {said}"
            + (f", {each.gone} gone" if each.gone else "")
        )
    total = counted(len(found), "release")
    if bare:
        say(f"Not compared: {_runs(bare)}. The store has nothing of them to compare with.")
    if unlogged:
        say(
            f"Not compared with the log of releases: {_runs(unlogged)}. It has nothing of them: it began later, or an "
            "earlier Midge made them, or the aggregator's next start enters them. Otherwise it was changed: `midge "
            "device proof` of a device that verified more of it finds that."
        )
    if wrong:
        say(f"{len(wrong)} of {total} differ.")
    elif len(bare) < len(found):
        say(f"{total} executed again: what is left of them is the same.")
    return 1 if wrong else 0


def _runs(versions: list[int]) -> str:
    """Numbers in order, neighbours together: 3 to 7, 9."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and runs[-1][-1] == version - 1:
            runs[-1][1:] = [version]
        else:
            runs.append([version])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
