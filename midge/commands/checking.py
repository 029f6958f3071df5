"""`midge broker check URL`: what a broker offers, and what this user may do there."""

import argparse
import asyncio
import json
import shutil
import textwrap
from dataclasses import asdict

from midge.commands.parts import Problem, Subparsers, add_tls, mendable, read_endpoint
from wire.topics import DEFAULT_ROOT, Topics, check_name

_NOBODYS = "midge-check"
"""The federation whose topics are tried where none is named."""
_NAMES, _LEVELS = 26, 9
"""Columns of the table's first two parts."""


def register(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "check",
        help="look at a broker before a federation is trusted to it",
        description="Look at what a broker offers and, with a federation and a role, at what this user may do on its "
        "topics. Nothing is changed that stays, and no live federation is disturbed. Exit code 1: there is a problem.",
    )
    parser.add_argument("url", metavar="URL", help="the broker, such as mqtts://user@broker.local:8883")
    parser.add_argument("--federation", metavar="NAME", help="the federation whose topics are tried")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--device", metavar="NAME", help="look at the rights of a device of this name")
    role.add_argument("--aggregator", action="store_true", help="look at the rights of the aggregator")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from broker.check import Role, check  # noqa: PLC0415 - not for those who only run a broker

    if (args.device or args.aggregator) and args.federation is None:
        raise Problem("Rights are those on a federation's topics: name it with --federation.")
    role = None
    with mendable():
        topics = Topics(args.federation or _NOBODYS, args.root)
        if args.aggregator:
            role = Role()
        elif args.device is not None:
            role = Role(check_name(args.device, "device name"))
    report = asyncio.run(check(read_endpoint(args, args.url), topics, role))
    if args.json:
        print(json.dumps({**asdict(report), "ok": report.ok}))
        return 0 if report.ok else 1
    for finding in report.findings:
        _print(finding.name, finding.level, finding.seen, finding.advice)
    if report.acl:
        print("\nMosquitto's ACL file lacks:\n", *(f"    {line}" for line in report.acl), sep="\n")
    problems = sum(finding.level == "problem" for finding in report.findings)
    print(f"\n{report.broker}: {'nothing stands in the way.' if report.ok else _count(problems)}")
    return 0 if report.ok else 1


def _count(problems: int) -> str:
    return "1 problem." if problems == 1 else f"{problems} problems."


def _print(name: str, level: str, seen: str, advice: str) -> None:
    """One row: name, level, and what was seen behind it what to do."""
    margin = _NAMES + _LEVELS
    width = max(40, shutil.get_terminal_size((100, 24)).columns - margin)
    lines = textwrap.wrap(f"{seen} -> {advice}" if advice else seen, width, break_long_words=False)
    head = f"{name:<{_NAMES - 1}} {level:<{_LEVELS}}"
    if len(name) >= _NAMES:  # a topic: on a line of its own
        print(name)
        head = f"{'':<{_NAMES}}{level:<{_LEVELS}}"
    print(head + lines[0])
    for line in lines[1:]:
        print(" " * margin + line)
