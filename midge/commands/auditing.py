"""`midge audit verify STORE`: verify the audit log of forgotten devices."""

import argparse
import json
import sqlite3
from dataclasses import asdict

from midge.commands.parts import Problem, Subparsers, existing_store, server_side


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("audit", help="verify a store's audit log")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    verifying = actions.add_parser(
        "verify",
        help="detect changed, removed or missing lines",
        description="Verify that the log of forgotten devices is as it was written, also beside a running aggregator. "
        "Needs the store's names.key. Exit code 1: it is not.",
    )
    verifying.add_argument("store", metavar="STORE", help="the aggregator's store")
    verifying.add_argument("--json", action="store_true", help="as one JSON object")
    verifying.set_defaults(run=run)


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
        print(f"{directory / audit_log.AUDIT}: {each}.")
    older = f", {verdict.older} of them from before lines had a code" if verdict.older else ""
    if not verdict.wrong:
        print(f"{directory / audit_log.AUDIT}: {verdict.lines} lines, as they were written{older}.")
    return 1 if verdict.wrong else 0
