"""`midge status`: a federation as the broker's retained messages tell it."""

import argparse
import asyncio
import json
import time
from collections import Counter
from typing import Any

from midge.commands.parts import Subparsers, add_federation, read_federation
from midge.wire.inert import inert_all


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "status",
        help="a federation's aggregator, model and devices",
        description="Show a federation as its retained messages tell it.",
    )
    add_federation(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from midge.broker.mqtt.retained import describe_federation  # noqa: PLC0415

    connect, topics = read_federation(args)
    found = asyncio.run(describe_federation(connect, topics))
    if args.json:
        print(json.dumps(found))
    else:
        _print(inert_all(found))
    return 0 if found["aggregator"] is not None else 1


def _print(found: dict[str, Any]) -> None:
    aggregator, model, devices = found["aggregator"], found["model"], found["devices"]
    if aggregator is None:
        print(f"No aggregator has announced itself for {found['federation']!r} under {found['root']!r} on this broker.")
    else:
        why = f": {aggregator['why']}" if aggregator["why"] else ""
        print(f"aggregator  {aggregator['state']}{why}")
    if model is not None:
        print(
            f"model       version {model['version']}, step {model['step']}, generation {model['generation']}, "
            f"lineage {model['lineage'][:8]}, {model['phase']}"
        )
    states = Counter(device["state"] for device in devices.values())
    print(f"devices     {len(devices)}", *(f"{number} {state}" for state, number in states.most_common()), sep="  ")
    for name, device in sorted(devices.items()):
        held = device["next"] - device["first"]
        wakes = f", wakes {_when(device['wakes'])}" if device["state"] == "sleeping" and device["wakes"] else ""
        print(f"  {name:<24} {device['state']:<13} version {device['version']:<7} holds {held}{wakes}")


def _when(moment: float) -> str:
    """A time to come, as the device says it; its clock may be off."""
    left = moment - time.time()
    return f"in {left / 60:.0f} min" if left > 0 else f"{-left / 60:.0f} min ago: it is late"
