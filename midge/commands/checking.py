"""`midge broker check URL`: audit a broker, this user's rights there, and its resistance to attacks."""

import argparse
import asyncio
import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midge.commands.parts import Problem, Subparsers, add_tls, called, read_config, read_endpoint, user_errors
from midge.wire.inert import inert
from midge.wire.topics import DEFAULT_ROOT, Topics, device_name

if TYPE_CHECKING:
    from midge.broker import Endpoint
    from midge.broker.audit.check import AuditReport, Parties, Role, Trial
    from midge.broker.audit.results import Finding

_UNUSED_FEDERATION = "midge-check"
"""The federation whose topics are tested if none is given."""
_NAMES, _LEVELS = 40, 9
"""Columns of the table's first two parts."""
_VERDICTS = {True: "pass", False: "FAIL", None: "unknown"}
_PROTOCOLS = {5: "MQTT 5", 4: "3.1.1"}


def register(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "check",
        help="check a broker before a federation uses it, and try attacks",
        description=(
            "Check what a broker offers and, with a federation and a role, what this user may do on its topics; then "
            "try the attacks of a stranger and of a device, unless it is a plain broker on this machine. Nothing is "
            "changed permanently, and no live federation is disturbed; but name a device that is not at work: some "
            "brokers disconnect it meanwhile. Exit code 1: there is a problem, or an attack succeeded."
        ),
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="the broker, such as mqtts://user@broker.local:8883")
    parser.add_argument(
        "--fleet", metavar="DIR", help="a directory of `midge broker init`: replaces other options, runs most trials"
    )
    parser.add_argument("--federation", metavar="NAME", help="the federation whose topics are tested")
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"topic root (default: {DEFAULT_ROOT})")
    role = parser.add_mutually_exclusive_group()
    role.add_argument(
        "--device", type=called, metavar="NAME", help="check the rights of a device of this name, and attack as it"
    )
    role.add_argument("--aggregator", action="store_true", help="check the rights of the aggregator")
    teeth = parser.add_mutually_exclusive_group()
    teeth.add_argument("--attacks", action="store_true", help="also run them on a plain broker on this machine")
    teeth.add_argument("--read-only", action="store_true", help="publish nothing, take no session over: for production")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.broker.audit.check import check  # noqa: PLC0415 - not for those who only run a broker

    endpoint, topics, role, parties = _of_fleet(args) if args.fleet is not None else _of_options(args)
    looking = check(endpoint, topics, role, parties=parties, read_only=args.read_only)
    report = asyncio.run(looking)
    if args.fleet is not None:
        report = replace(report, findings=(*report.findings, *_ending(Path(args.fleet))))
    if args.json:
        print(json.dumps({**asdict(report), **_trials(report), "ok": report.ok}))
        return 0 if report.ok else 1
    for finding in report.findings:
        _print(finding.name, finding.level, finding.seen, finding.advice)
    for heading, trials in (("Limits", report.limits), ("Attacks", report.attacks)):
        if trials:
            print(f"\n{heading}")
        for trial in trials:
            verdict = _VERDICTS[trial.passed]
            name = f"{trial.name} ({_PROTOCOLS[trial.version]})" if trial.version else trial.name
            _print(
                name, verdict, trial.seen if trial.passed else f"{trial.seen}; expected: {trial.expected}", trial.advice
            )
    if report.acl:
        print("\nMosquitto's ACL file lacks:\n", *(f"    {line}" for line in report.acl), sep="\n")
    problems = sum(finding.level == "problem" for finding in report.findings)
    failed = sum(trial.passed is False for trial in (*report.attacks, *report.limits))
    words = [_count(number, noun) for number, noun in ((problems, "problem"), (failed, "failure")) if number]
    held = " Every attack that could be tried failed." if report.attacks and not failed else ""
    print(f"\n{report.broker}: {' and '.join(words) or 'nothing stands in the way'}.{held}")
    return 0 if report.ok else 1


def _ending(directory: Path) -> "Iterator[Finding]":
    """Credentials of a fleet that expire soon."""
    from midge.broker.audit.results import Finding  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import present  # noqa: PLC0415
    from midge.broker.provisioning.manage_devices import warnings  # noqa: PLC0415

    for said in warnings(directory, present()):
        what, _, advice = said.partition(": ")
        yield Finding("credentials", what, "warning", advice)


def _of_options(args: argparse.Namespace) -> "tuple[Endpoint, Topics, Role | None, Parties | None]":
    """Endpoint and role from the options, with one identity for all parties."""
    from midge.broker.audit.check import Parties, Role  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import ATTACKER, VICTIM  # noqa: PLC0415

    if args.url is None:
        raise Problem("Say which broker: its address, or --fleet with a directory of `midge broker init`.")
    if (args.device or args.aggregator) and args.federation is None:
        raise Problem("Rights are those on a federation's topics: name it with --federation.")
    role = None
    with user_errors():
        topics = Topics(args.federation or _UNUSED_FEDERATION, args.root)
        if args.aggregator:
            role = Role()
        elif args.device is not None:
            role = Role(device_name(args.device))
    endpoint = read_endpoint(args, args.url)
    parties = None
    wanted = args.attacks or args.read_only or endpoint.tls is not None or endpoint.exposed
    if wanted and not args.aggregator:  # the rights to all of it are its own
        parties = Parties(endpoint, args.device or endpoint.user or ATTACKER, endpoint, VICTIM)
    return endpoint, topics, role, parties


def _of_fleet(args: argparse.Namespace) -> "tuple[Endpoint, Topics, Role | None, Parties | None]":
    """The identities of a fleet for this: the operator observes, and test devices attack."""
    from midge.broker.audit.check import Parties, Role  # noqa: PLC0415
    from midge.broker.provisioning.fleet_registry import REVOKED  # noqa: PLC0415

    if args.federation or args.device or args.aggregator:
        raise Problem("--fleet says the federation and who attacks: leave --federation, --device and --aggregator out.")
    home = Path(args.fleet).expanduser()
    operator, attacker, victim = (
        read_config(str(home / name), args.url) for name in ("operator", "probes/attacker", "probes/victim")
    )
    revoked = (
        read_config(str(home / "probes" / "revoked"), args.url) if (home / "probes" / "revoked").exists() else None
    )
    assert revoked is None or revoked.name == REVOKED
    parties = Parties(
        attacker.endpoint,
        attacker.name,
        victim.endpoint,
        victim.name,
        operator.endpoint,
        None if revoked is None else revoked.endpoint,
    )
    return operator.endpoint, operator.topics, Role(attacker.name), parties


def _trials(report: "AuditReport") -> dict[str, list[dict[str, Any]]]:
    """Rows for scripts."""

    def row(trial: "Trial") -> dict[str, Any]:
        protocol = _PROTOCOLS[trial.version] if trial.version else None
        return {
            "name": trial.name,
            "protocol": protocol,
            "expected": trial.expected,
            "seen": trial.seen,
            "pass": trial.passed,
            "advice": trial.advice,
        }

    return {"attacks": [row(each) for each in report.attacks], "limits": [row(each) for each in report.limits]}


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _print(name: str, level: str, seen: str, advice: str) -> None:
    """One row: name, level, observation, and what to do."""
    name, seen, advice = inert(name), inert(seen), inert(advice)  # may quote the broker
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
