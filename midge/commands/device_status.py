"""`midge device status OUTBOX`: what a device holds, has verified and has cost, beside it while it runs."""

import argparse
import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from midge.commands.guest import conditions_of
from midge.commands.parts import Problem
from midge.wire.inert import inert

_DAY = 86_400.0


def run(args: argparse.Namespace, outbox: str) -> int:
    found = {**look(Path(outbox).expanduser()), "hindered": hindered(args)}
    if args.json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(inert(line))
    return 0


def hindered(args: argparse.Namespace) -> list[str]:
    """What is in the way of the conditions that the options say."""
    return [why for each in (*conditions_of(args)[0], *conditions_of(args)[1]) if (why := each()) is not None]


def look(path: Path) -> dict[str, Any]:
    """Read the outbox and what lies beside it, and change nothing.

    Raises:
        Problem: there is no outbox, or it cannot be read.
    """
    if not path.is_file():
        raise Problem(f"There is no outbox {path}: name the file that the device was given, such as pump-17.outbox.")
    try:
        with closing(_open(path)) as db:
            meta = dict(db.execute("SELECT name, value FROM meta"))
            rows = db.execute("SELECT seq, header, LENGTH(body) FROM updates ORDER BY seq").fetchall()
    except sqlite3.Error as error:
        raise Problem(f"{path} cannot be read ({error}): is it an outbox?") from error
    return {
        "outbox": str(path),
        "identity": f"{meta.get('identity', 0):016x}",
        "next": meta.get("next", 1),
        "held": [{"seq": seq, "base": _base(header), "bytes": size} for seq, header, size in rows],
        "verified": {
            name.partition(".")[2]: _verified(meta[name]) for name in sorted(meta) if name.startswith("trust.")
        },
        "predicts": _model(path.with_name(f"{path.name}.model")),
        "samples": _samples(path.with_name(f"{path.name}.samples")),
        "month": usage(path),
        "disk": sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*") if each.is_file()),
    }


def _open(path: Path) -> sqlite3.Connection:
    """To be read only. Where no device has it open, nothing is locked and no file is made beside it."""
    unused = not path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if unused else ''}", uri=True)


def usage(path: Path) -> dict[str, Any] | None:
    """What this month has cost; None where nothing was written down."""
    with suppress(OSError, ValueError):
        spent = json.loads(path.with_name(f"{path.name}.usage.json").read_text())
        if isinstance(spent, dict):
            days = max(1.0, (time.time() - float(spent.get("since", 0))) / _DAY) if spent.get("since") else None
            per_day = None if days is None else int(int(spent.get("written", 0)) / days)
            return {**spent, "written_per_day": per_day}
    return None


def _base(header: bytes) -> int:
    from midge.wire import frames  # noqa: PLC0415
    from midge.wire.messages import Update  # noqa: PLC0415

    return frames.validate(Update, frames.unpack(header)).base


def _verified(packed: bytes) -> dict[str, Any]:
    """The newest announcement that was verified; `iot_client.session.trust.Newest`."""
    from midge.wire import frames  # noqa: PLC0415

    fields: Mapping[str, Any] = frames.unpack(packed)
    return {
        "lineage": bytes(fields.get("lineage", b"")).hex(),
        **{name: fields.get(name) for name in ("epoch", "generation", "version", "issued")},
    }


def _model(path: Path) -> dict[str, Any] | None:
    from midge.iot_client.state.prediction import read  # noqa: PLC0415
    from midge.wire.errors import WireError  # noqa: PLC0415

    with suppress(OSError, WireError):
        model = read(path)
        return {"channel": model.channel, "version": model.version, "lineage": model.lineage.hex()}
    return None


def _samples(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with suppress(sqlite3.Error), closing(_open(path)) as db:
        (size,) = db.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM segments").fetchone()
        marks = dict(db.execute("SELECT name, value FROM marks"))
        return {"bytes": size, "new": int(marks.get(" new", 0)), "columns": marks.get(" columns", "")}
    return None


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    held = found["held"]
    bases = sorted({each["base"] for each in held})
    said = [
        f"outbox    {found['outbox']}, identity {found['identity']}, {found['disk']:,} bytes with what is beside it",
        f"holds     {len(held)} updates, {sum(each['bytes'] for each in held):,} bytes"
        + (f", trained from version {', '.join(map(str, bases))}" if bases else "")
        + f"; the next is {found['next']}",
    ]
    for channel, newest in found["verified"].items():
        said.append(
            f"verified  {channel}: version {newest['version']}, generation {newest['generation']}, "
            f"epoch {newest['epoch']}, lineage {newest['lineage'][:8]}, issued {day(newest['issued'])}"
        )
    if not found["verified"]:
        said.append("verified  nothing: no key is pinned, the broker is believed (--release-key)")
    if (model := found["predicts"]) is not None:
        said.append(f"predicts  with version {model['version']} of the channel {model['channel']}")
    if (samples := found["samples"]) is not None:
        said.append(f"samples   {samples['bytes']:,} bytes of rows on disk, {samples['new']} rows new when written")
    if (month := found["month"]) is not None:
        wear = month["written_per_day"]
        said.append(
            f"{month.get('month', ''):<9} {month.get('bytes', 0):,} bytes on the link, {month.get('joules', 0):,.0f} J"
            + ("" if wear is None else f"; {wear:,} bytes a day written to the flash")
        )
    said += [f"hindered  {why}" for why in found["hindered"]]
    return said


def day(seconds: float | None) -> str:
    """A moment as people write it, in UTC."""
    return "never" if not seconds else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
