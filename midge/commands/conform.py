"""`midge conform URL --device NAME`: play the aggregator against a device, and say which rules it keeps."""

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from midge.commands.parts import Problem, Subparsers, add_federation, called, read_federation, server_side
from midge.wire.inert import inert

if TYPE_CHECKING:
    from midge.aggregator.referee.rules import RuleVerdict

_FEDERATION = "conform"
_SIGNS = {"pass": "pass", "fail": "FAIL", "not seen": "not seen"}


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "conform",
        help="try a device of any language by the rules of the protocol",
        description="Play the aggregator against one device over a real broker: duplicates, lost receipts, busy, "
        "grants with holes, a restart, corrupt chunks, cleared topics, fields of a later version. Start the device "
        f"after it, in the same federation ({_FEDERATION} unless --federation says another; no aggregator may serve "
        "it). It takes about two minutes. The exit code is 1 if a rule is broken.",
    )
    add_federation(parser)
    parser.add_argument("--device", type=called, required=True, metavar="NAME", help="the device under test")
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="NAME=SIDES",
        help="a tensor of the model that the device trains, such as w=16x4; repeated (default: w=3, as the quickstart)",
    )
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        metavar="NAME=ROLE",
        help="of a tensor that is not trained: averaged, frozen",
    )
    parser.add_argument(
        "--statistics",
        action="append",
        default=[],
        metavar="NAME=CHANNELS",
        help="statistics to ask for first, such as input=16; repeated",
    )
    parser.add_argument("--wait", type=float, default=120.0, metavar="S", help="seconds until it greets (default: 120)")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="seconds for a fetch and a training (default: 60)"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with server_side():
        from midge.aggregator.referee.conformance import Conformance, FederationServed  # noqa: PLC0415 - an extra
    if args.federation is None and args.config is None:
        args.federation = _FEDERATION
    connect, topics = read_federation(args)
    rng = np.random.default_rng(1)
    conformance = Conformance(
        connect=connect,
        topics=topics,
        device=args.device,
        parameters={
            name: (0.1 * rng.normal(size=shape)).astype(np.float32) for name, shape in _tensors(args.tensor).items()
        },
        roles=dict(_pair(each, "--role") for each in args.role),
        moments={name: _count(value) for name, value in (_pair(each, "--statistics") for each in args.statistics)},
        wait=args.wait,
        patience=args.patience,
        say=lambda words: print(inert(words), file=sys.stderr, flush=True),
    )
    try:
        findings = asyncio.run(conformance.run())
    except (FederationServed, ValueError) as error:
        raise Problem(str(error)) from error
    return _tell(findings, args)


def _tell(findings: list["RuleVerdict"], args: argparse.Namespace) -> int:
    counts = {outcome: sum(each.outcome == outcome for each in findings) for outcome in _SIGNS}
    for each in findings:
        print(inert(f"{_SIGNS[each.outcome]:<9} {each.rule.name:<14} {each.did}"))
        if each.outcome == "fail":
            print(inert(f"{'':<24} The rule ({each.rule.section!r} in docs/protocol.md): {each.rule.what}."))
    print(f"{counts['pass']} rules kept, {counts['fail']} broken, {counts['not seen']} not seen.")
    ok = counts["fail"] == 0
    if args.json:
        said: dict[str, Any] = {"ok": ok, "device": args.device, "rules": [each.plain() for each in findings]}
        counted = {"passed": counts["pass"], "failed": counts["fail"], "not_seen": counts["not seen"]}
        print(json.dumps({**said, **counted}))
    return 0 if ok else 1


def _tensors(given: list[str]) -> dict[str, tuple[int, ...]]:
    """Names and sides."""
    found = {}
    for name, sides in (_pair(each, "--tensor") for each in given or ["w=3"]):
        found[name] = tuple(_count(side) for side in sides.lower().split("x"))
    return found


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise Problem(f"{option} {text!r} is not of the form NAME=VALUE.")
    return name, value


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 2**24:
        raise Problem(f"{text!r} is not a number from 1 to {2**24}.")
    return int(text)
