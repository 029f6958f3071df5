"""`midge device verify OUTBOX`: verify what a device keeps on its disk. It may run meanwhile."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from midge.commands.parts import Problem
from midge.wire.inert import inert
from midge.wire.plurals import counted


def run(args: argparse.Namespace, outbox: str) -> int:
    from midge.iot_client.state.outbox_files import OutboxError  # noqa: PLC0415
    from midge.iot_client.state.outbox_repair import accept_loss  # noqa: PLC0415
    from midge.iot_client.state.verification import verify  # noqa: PLC0415

    path = Path(outbox).expanduser()
    if not path.exists() and not path.with_name(f"{path.name}.witness").exists():
        raise Problem(f"There is no outbox {path}: name the file that the device was given, such as pump-17.outbox.")
    try:
        parts = verify(path)
        damaged = sum(bool(part.damage) for part in parts)
        at_stake = sum(part.at_stake for part in parts)
        aside = accept_loss(path) if args.accept_loss and parts[0].damage else []
    except (OutboxError, OSError) as error:
        raise Problem(str(error)) from error
    if args.json:
        found = {"ok": not damaged, "outbox": outbox, "damaged": damaged, "at_stake": at_stake}
        found["aside"] = [str(each) for each in aside]
        print(json.dumps({**found, "parts": [asdict(part) for part in parts]}))
        return 1 if damaged else 0
    for part in parts:
        stake = f" At stake: {counted(part.at_stake, 'update')}." if part.at_stake else ""
        print(inert(f"{part.name}: DAMAGED, {part.damage}.{stake}" if part.damage else f"{part.name}: {part.checked}."))
    for each in aside:
        print(f"Put aside: {each}")
    if aside:
        print("With it goes its count of spent privacy (ε): the next outbox counts from 0.")
    print("Something is damaged." if damaged else "Everything is undamaged.")
    return 1 if damaged else 0
