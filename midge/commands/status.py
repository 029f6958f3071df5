"""`midge status`: a federation as its aggregator reports it, or from the broker's retained messages."""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from midge.broker import BrokerError, Connector, PublishRefused, SubscribeRefused, connector
from midge.commands.parts import Problem, Subparsers, add_federation, read_endpoint, read_federation
from midge.wire.clocks import spell
from midge.wire.inert import inert, inert_all
from midge.wire.plurals import counted
from midge.wire.topics import Topics

T = TypeVar("T")

_AT_ONCE = 64
"""Federations that are asked at the same time, each over a connection of its own."""
_CHECK = 12.0
"""Seconds in which a check must have its answer: cron and monitors wait for fifteen or so."""
_REST = 1.0
"""Seconds of these that are left for all but the aggregator's answer, which is behind a chunk on a slow uplink."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "status",
        help="a federation's aggregator, health, model and devices",
        description=(
            "Show a federation, from its aggregator's answer and the broker's retained messages. Without "
            "--federation, list the federations, or with --check check them all."
        ),
    )
    add_federation(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object; several federations by name")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 if it does not learn or answer, or a device is refused every time: for cron and monitors",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.until = time.monotonic() + _CHECK if args.check else None
    try:
        if not _named(args) and args.url is not None:
            return _list(args)
        return _show(*read_federation(args), args)
    except BrokerError as error:
        if not args.check:
            raise
        return _alarm(str(error), args)
    except TimeoutError:
        if not args.check:
            raise
        return _alarm(f"There is no answer within {_CHECK:.0f} s: the broker, or the way to it, is slow.", args)


def _within(args: argparse.Namespace, asked: Coroutine[Any, Any, T]) -> T:
    """Run a question to its end, a check for as long as it may take.

    Raises:
        TimeoutError: that is over.
    """

    async def limited() -> T:
        async with asyncio.timeout(None if args.until is None else args.until - time.monotonic()):
            return await asked

    return asyncio.run(limited())


def _alarm(why: str, args: argparse.Namespace) -> int:
    if args.json:
        found = _unseen(args.federation, args.root, why)
        print(json.dumps(found if _named(args) else {**found, "federations": {}}))
    else:
        print(f"ALARM       {inert(why)}")
    return 1


def _named(args: argparse.Namespace) -> bool:
    """Whether one federation was asked for: otherwise the answer to a check has `federations`, by name."""
    return args.config is not None or args.federation is not None


def _unseen(federation: str | None, root: str, why: str) -> dict[str, Any]:
    """What is known of a federation that cannot be looked at, with the fields of one that can."""
    from midge.broker.mqtt.federation_view import nothing_known  # noqa: PLC0415

    return {**nothing_known(federation, root), "keeping": 0, "sites": {}, "alarm": why}


def _list(args: argparse.Namespace) -> int:
    """List the federations; a single one is shown in full."""
    from midge.broker.mqtt.federation_view import list_federations  # noqa: PLC0415

    connect = connector(read_endpoint(args, args.url))
    try:
        found = _within(args, list_federations(connect, args.root))
    except (PublishRefused, SubscribeRefused) as error:
        raise Problem("This user may not list federations: name one with --federation NAME.") from error
    if not found:
        why = (
            f"No aggregator has announced itself under {args.root!r} on this broker: start one with `midge aggregate`, "
            "or check that this is the right broker."
        )
        if not args.check:
            raise Problem(why)
        return _alarm(why, args)
    if len(found) == 1:
        return _show(connect, Topics(next(iter(found)), args.root), args)
    if args.check:
        return _check_all(connect, [Topics(name, args.root) for name in sorted(found)], args)
    if args.json:
        print(json.dumps({"federations": {name: status.state.value for name, status in sorted(found.items())}}))
        return 0
    for name, status in sorted(found.items()):
        health = "" if status.health is None else f", {status.health.state.value}"
        print(f"{name:<24} {status.state.value}{health}, version {status.version} when it said so last")
    print("Say which one: --federation NAME.")
    return 0


def _check_all(connect: Connector, federations: Sequence[Topics], args: argparse.Namespace) -> int:
    """Check all federations at the same time: a monitor does not wait for each aggregator that hangs."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(topics: Topics) -> dict[str, Any]:
        async with limit:
            try:
                return await _described(connect, topics, args)
            except BrokerError as error:
                return _unseen(topics.federation, topics.root, str(error))

    async def every() -> list[dict[str, Any]]:
        return await asyncio.gather(*map(one, federations))

    found = {each["federation"]: each for each in _within(args, every())}
    alarms = {name: each["alarm"] for name, each in found.items() if each["alarm"]}
    if args.json:
        alarm = "; ".join(f"{name}: {why}" for name, why in alarms.items())
        print(json.dumps({**_unseen(None, args.root, alarm), "federations": found}))
        return int(bool(alarms))
    for name, each in found.items():
        print(f"federation  {inert(name)}")
        _print(each, args)
    return int(bool(alarms))


async def _described(connect: Connector, topics: Topics, args: argparse.Namespace) -> dict[str, Any]:
    """What is known of a federation, with the reason for an alarm."""
    from midge.broker.mqtt.federation_view import describe_federation, explain_missing  # noqa: PLC0415
    from midge.wire.overview import spread_of_sites  # noqa: PLC0415

    left = None if args.until is None else args.until - time.monotonic() - _REST
    until = None if left is None else asyncio.get_running_loop().time() + left
    found = await describe_federation(connect, topics, until=until)
    absent = found["aggregator"] is None
    found["keeping"] = sum(bool(device.get("keeps")) for device in found["devices"].values())
    sites = [device["metrics"] for device in found["devices"].values() if device.get("reported")]
    found["sites"] = spread_of_sites(sites)
    found["alarm"] = await explain_missing(connect, topics) if absent else alarm_of(found)
    return found


def _show(connect: Connector, topics: Topics, args: argparse.Namespace) -> int:
    found = _within(args, _described(connect, topics, args))
    if args.json and args.check and not _named(args):
        print(json.dumps({**found, "federations": {found["federation"]: found}}))
    elif args.json:
        print(json.dumps(found))
    else:
        _print(found, args)
    if args.check:
        return int(bool(found["alarm"]))
    return 0 if found["aggregator"] is not None else 1


def _print(found: Mapping[str, Any], args: argparse.Namespace) -> None:
    if found["aggregator"] is not None or not args.check:
        for line in lines(inert_all(found)):
            print(line)
    if args.check and found["alarm"]:
        print(f"ALARM       {inert(found['alarm'])}")


def alarm_of(found: Mapping[str, Any]) -> str:
    """The reason for a monitor to raise an alarm; empty if nothing is wrong."""
    from midge.broker.mqtt.federation_view import alarms_of  # noqa: PLC0415 - not for other commands

    return "; ".join(alarms_of(found))


def lines(found: Mapping[str, Any], now: float | None = None) -> Iterator[str]:
    """The same as text."""
    # Times in an answer are by the aggregator's clock, which may differ from ours.
    now = found.get("issued") or (time.time() if now is None else now)
    aggregator, model, devices = found["aggregator"], found["model"], found["devices"]
    if aggregator is None:
        yield found.get("alarm") or alarm_of(found)
    else:
        yield from _aggregator_lines(found, now)
    if model is not None:
        yield (
            f"model       version {model['version']}, step {model['step']}, generation {model['generation']}, "
            f"lineage {model['lineage'][:8]}, {model['phase']}"
        )
        if steps := model["plan"]["local_steps"]:
            yield f"            A training has {counted(steps, 'local step')}."
    if privacy := found.get("privacy"):
        yield from _privacy_lines(privacy)
    if (standby := found.get("standby")) and (standby["state"] != "none" or standby["waits"] or standby["why"]):
        yield from _standby_lines(standby)
    states = Counter(device["state"] for device in devices.values())
    if devices or aggregator is not None:
        told = (f"{number} {state}" for state, number in states.most_common())
        old = sum("heard" not in device for device in devices.values())
        some = "some " if old < len(devices) else ""
        note = [f"({some}as they said when they connected or left last)"] if old else []
        keeping = [f"keeping {found['keeping']}"] if found.get("keeping") else []
        yield "  ".join([f"devices     {len(devices)}", *told, *keeping, *note])
    for metric, of in found.get("sites", {}).items():
        spread = f"least {of['least']:.4g}, median {of['median']:.4g}, largest {of['largest']:.4g}"
        yield f"sites       {metric}: {spread}, over {counted(of['sites'], 'site')}"
    for name, device in sorted(devices.items()):
        yield _device_line(name, device, now)


def _aggregator_lines(found: Mapping[str, Any], now: float) -> Iterator[str]:
    aggregator, health = found["aggregator"], found["health"]
    yield f"aggregator  {aggregator['state']}"
    if found.get("left_out"):
        left_out = counted(found["left_out"], "device")
        yield f"            Its answer did not include {left_out}: these are shown from retained messages."
    if not found["answered"] and aggregator["state"] in ("ready", "paused"):
        why = found["unasked"] or "it hangs, its link is slow, or it is older than this command"
        yield f"            It did not answer ({why}): what follows may be old."
    if health is None:
        if aggregator["why"]:
            yield f"            {aggregator['why']}"
        return
    yield f"health      {health['state']} for {spell(now - health['since'])}" + (
        f": {health['why']}" if health["why"] else ""
    )
    for alarm in health["alarms"]:
        yield f"ALARM       {alarm}"
    counts = ", ".join(
        f"{number} {verdict} of {counted(health['devices'].get(verdict, 0), 'device')}"
        for verdict, number in sorted(health["verdicts"].items(), key=lambda item: -item[1])
    )
    last = f"the last accepted {spell(now - health['accepted'])} ago" if health["accepted"] else "none accepted"
    yield f"updates     {last}; in the last 5 min: {counts or 'none'}"


def _standby_lines(standby: Mapping[str, Any]) -> Iterator[str]:
    name = f" ({standby['name']})" if standby["name"] else ""
    behind = "it has everything"
    if standby["number"]:
        updates = counted(standby["updates"], "update")
        behind = f"{counted(standby['number'], 'transaction')}, {standby['seconds']:.1f} s and {updates} behind"
    sync = "receipts wait for it" if standby["waits"] else "receipts do not wait for it"
    yield f"standby     {standby['state']}{name}: {behind}; {sync}"
    if standby["why"]:
        yield f"            {standby['why']}"


def _privacy_lines(privacy: Mapping[str, float]) -> Iterator[str]:
    accounts, exhausted = counted(int(privacy["accounts"]), "device"), int(privacy["exhausted"])
    none_left = f"; {exhausted} may give nothing more" if exhausted else ""
    yield (
        f"privacy     at most ε = {privacy['worst']:.3g} of {privacy['budget']:g} is spent by one device, at "
        f"δ = {privacy['delta']:g}; {accounts} spent some{none_left}"
    )
    if bare := int(privacy["bare"]):
        yield f"            Step {bare} and steps before it had no noise: what devices gave to them is not covered."


def _device_line(name: str, device: Mapping[str, Any], now: float) -> str:
    held = device.get("holds", device.get("next", 1) - device.get("first", 1))
    said = [f"  {name:<24} {device['state']:<13}"]
    if "heard" not in device:
        said.append(f"said then: version {device['version']}, holds {counted(held, 'update')}")
    else:
        said.append(f"version {device['version']:<7}")
        if device.get("behind"):
            said.append(f"{counted(device['behind'], 'version')} behind")
        said.append(f"holds {counted(held, 'update')}")
    if device.get("heard") is not None:
        said.append(f"heard {spell(device['heard'])} ago")
    if "updates" in device:
        last = "" if device["accepted"] is None else f", the last {spell(device['accepted'])} ago"
        said.append(f"{device['updates']} accepted{last}")
    if device.get("refused"):
        said.append(f"REFUSED {counted(device['refused'], 'time')}, {device['verdict']}")
    if device.get("epsilon") is not None:
        said.append(f"ε = {device['epsilon']:.3g} spent")
    if device.get("metrics"):
        scores = ", ".join(f"{metric} {value:.4g}" for metric, value in device["metrics"].items())
        over = f" over {counted(device['reported'], 'device')}" if device.get("reported") else ""
        said.append(f"{scores}{over} at version {device['metrics_version']}")
    if device.get("keeps"):
        said.append(f"KEEPS version {device['keeps']}")
    if device.get("why") or device.get("waits"):
        said.append(device.get("why") or device["waits"])
    if device["state"] == "sleeping" and device.get("wakes"):
        said.append(f"wakes {_when(device['wakes'] - now)}")
    return "  ".join(said)


def _when(left: float) -> str:
    """A future time, by the device's own clock, which may be off."""
    return f"in {left / 60:.0f} min" if left > 0 else f"{-left / 60:.0f} min ago: it is late"
