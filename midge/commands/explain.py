"""`midge explain STORE DEVICE/SEQ`: the life of one update."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from midge.commands.parts import Problem, Subparsers, server_side
from midge.wire.inert import inert
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.aggregator.store.inspection import Life


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="the life of one update, from an aggregator's journal",
        description=(
            "Show what happened to one update: its verdict, the step that applied it, its weight, and the version "
            "that carried it. Reads the store beside a running aggregator; changes nothing."
        ),
    )
    parser.add_argument("store", metavar="STORE", help="the aggregator's store, a directory")
    parser.add_argument("update", metavar="DEVICE/SEQ", help="such as pump-17/42")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device, _, seq = args.update.rpartition("/")
    if not device or not seq.isdecimal():
        raise Problem(f"{args.update!r} is not of the form DEVICE/SEQ, such as pump-17/42.")
    with server_side():
        from midge.aggregator.store.inspection import explain  # noqa: PLC0415 - an extra
    lives = explain(Path(args.store), device, int(seq))
    if args.json:
        print(json.dumps([life.packed() for life in lives]))
    else:
        print("\n".join(_words(life) for life in lives))
    return 0


def _words(life: "Life") -> str:
    update = life.update
    lines = [f"{update.device}/{update.seq} of outbox {update.outbox:016x}"]
    lines.append(
        f"  trained from version {update.base}, {counted(update.examples, 'example')}, "
        f"{update.size} bytes as {update.codec}"
    )
    if update.verdict != "accepted":
        lines.append(f"  refused as {update.verdict}: {update.why} (journal record {update.lsn})")
        return "\n".join(map(inert, lines))
    lines.append(
        f"  accepted {counted(update.staleness, 'step')} stale, norm {update.norm:.4g} (journal record {update.lsn})"
    )
    lines += [f"  {line}" for line in _course(life)]
    return "\n".join(map(inert, lines))


def _course(life: "Life") -> Iterator[str]:
    """What became of an accepted update."""
    ended, undone, release = life.ended, life.undone, life.release
    if life.step is not None:
        yield f"applied in step {life.step.step} with weight {life.weight:.4g}"
    elif ended is None:
        yield "waits in the buffer for its step"
    elif (to := getattr(ended, "to", None)) is not None:
        yield (
            f"dropped while it waited for its step: training went on from version {to}, as a new generation "
            f"(journal record {ended.lsn}{_why(ended)})"
        )
    elif (number := getattr(ended, "number", None)) is not None:
        yield f"sent on to the federation in sum {number} with weight {life.weight:.4g} (journal record {ended.lsn})"
    else:
        yield f"dropped while it waited for its step (journal record {ended.lsn}{_why(ended)})"
    if life.step is not None and release is None:
        yield "never released" if undone is not None else "not yet released"
    elif release is not None:
        yield f"released with version {release.version}"
    if undone is not None:
        yield (
            f"not in version {undone.version + 1} and those after it: training went on from version {undone.to}, which "
            f"does not contain it (journal record {undone.lsn}{_why(undone)})"
        )


def _why(record: object) -> str:
    why = getattr(record, "why", "")
    return f": {why}" if why else ""
