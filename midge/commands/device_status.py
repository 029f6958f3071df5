"""`midge device status OUTBOX`: what a device holds, has verified and has used, also while it runs."""

import argparse
import json
import math
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from midge.commands.guest import conditions_of
from midge.commands.parts import Problem, read_config
from midge.iot_client.board.local_status import ask, runs
from midge.iot_client.state.consent import WITHDRAWN, Consent
from midge.wire.clocks import spell
from midge.wire.inert import inert
from midge.wire.plurals import counted
from midge.wire.topics import ALIASES

_MINUTE, _DAY = 60.0, 86_400.0
DELTA = 1e-5
"""δ of the ε that is shown, as in `RequireSecure`: the outbox has ρ, from which ε follows for any δ."""


def run(args: argparse.Namespace, outbox: str) -> int:
    found = {**look(Path(outbox).expanduser()), "hindered": hindered(args), "credentials": ending(args)}
    if args.json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(inert(line))
    return 0


def ending(args: argparse.Namespace) -> list[str]:
    """Alarms for credentials of the bundle in `--config`."""
    from midge.broker.provisioning.expiry import alarms  # noqa: PLC0415

    files = [] if args.config is None else read_config(args.config).endpoint.credential_files
    return list(alarms(files, time.time()))


def hindered(args: argparse.Namespace) -> list[str]:
    """Conditions from the options that are not met."""
    return [why for each in (*conditions_of(args)[0], *conditions_of(args)[1]) if (why := each()) is not None]


def look(path: Path) -> dict[str, Any]:
    """Read the outbox and the files beside it without changing anything.

    Raises:
        Problem: there is no outbox, or it cannot be read.
    """
    if not path.is_file():
        raise Problem(f"There is no outbox {path}: name the file that the device was given, such as pump-17.outbox.")
    from midge.iot_client.state.outbox_files import STATE, unwrapped  # noqa: PLC0415
    from midge.iot_client.state.outbox_state import OutboxState  # noqa: PLC0415

    try:
        with closing(open_outbox(path)) as db:
            meta = dict(db.execute("SELECT name, value FROM meta"))
            rows = db.execute(
                "SELECT seq, header, LENGTH(body) FROM updates WHERE header != x'' ORDER BY seq"
            ).fetchall()
    except sqlite3.Error as error:
        raise Problem(f"{path} cannot be read ({error}): is it an outbox?") from error
    state = OutboxState.unpack(meta.get(STATE)) or OutboxState(meta.get("identity", 0), meta.get("next", 1))
    trusts = {
        name.partition(".")[2]: packed
        for name, value in sorted(meta.items())
        if name.startswith("trust.") and (packed := value if STATE not in meta else unwrapped(value)) is not None
    }
    running = ask(path)
    return {
        "outbox": str(path),
        "running": running,
        "unanswered": running is None and runs(path),
        "identity": f"{state.identity:016x}",
        "next": state.next,
        "lost": state.lost,
        "rho": state.spent if math.isfinite(state.spent) else None,
        "consent": Consent.beside(path).withheld() is None,
        "held": [{"seq": seq, "base": _base(header), "bytes": size} for seq, header, size in rows],
        "verified": {channel: _verified(packed) for channel, packed in trusts.items()},
        "predicts": _model(path.with_name(f"{path.name}.model")),
        "keeps": _kept(path.with_name(f"{path.name}.kept")),
        "names": {name: version for name in ALIASES if (version := _named(path.with_name(f"{path.name}.{name}")))},
        "samples": _samples(path.with_name(f"{path.name}.samples")),
        "month": usage(path, running),
        "disk": sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*") if each.is_file()),
    }


def open_outbox(path: Path) -> sqlite3.Connection:
    """A read-only connection. If no device has it open, nothing is locked and no file is made beside it."""
    unused = not path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if unused else ''}", uri=True)


def usage(path: Path, running: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The usage of this month, of the running device or as stored; None if there is neither.

    `as_of` is seconds since 1970. A day's wear is extrapolated from the time over which it was counted.
    """
    place, now = path.with_name(f"{path.name}.usage.json"), time.time()
    with suppress(OSError, ValueError):
        spent = running["month"] if running is not None else json.loads(place.read_text())
        as_of = now if running is not None else place.stat().st_mtime
        if isinstance(spent, dict):
            since = float(spent.get("since", 0))
            written, seconds = int(spent.get("written", 0)), as_of - since if since else 0.0
            if running is not None and running["seconds"] >= _MINUTE:
                written, seconds = running["written"], running["seconds"]  # a month may have passed while it was off
            per_day = int(written / seconds * _DAY) if seconds >= _MINUTE else None
            return {**spent, "as_of": as_of, "seconds": seconds, "written": written, "written_per_day": per_day}
    return None


def _base(header: bytes) -> int:
    from midge.wire import frames  # noqa: PLC0415
    from midge.wire.messages import Update  # noqa: PLC0415

    return frames.validate(Update, frames.unpack(header)).base


def _verified(packed: bytes) -> dict[str, Any]:
    """The newest verified announcement; `iot_client.session.trust.Newest`."""
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


def _named(path: Path) -> int:
    """The registered version that a name stands for here; 0 if there is none."""
    from midge.iot_client.state.alias_models import read_alias  # noqa: PLC0415
    from midge.wire.errors import WireError  # noqa: PLC0415

    with suppress(OSError, WireError):
        return read_alias(path).alias.version
    return 0


def _kept(path: Path) -> dict[str, Any] | None:
    """The model that is kept because a newer one is worse on the device's own rows."""
    from midge.iot_client.state.model_keeper import read_kept  # noqa: PLC0415
    from midge.wire.errors import WireError  # noqa: PLC0415

    with suppress(OSError, WireError):
        kept = read_kept(path)
        return {"version": kept.model.version, "newer": kept.newer, "since": kept.since, "tried": kept.tried}
    return None


def _samples(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with suppress(sqlite3.Error), closing(open_outbox(path)) as db:
        (size,) = db.execute("SELECT COALESCE(SUM(LENGTH(data)), 0) FROM segments").fetchone()
        marks = dict(db.execute("SELECT name, value FROM marks"))
        return {"bytes": size, "new": int(marks.get(" new", 0)), "columns": marks.get(" columns", "")}
    return None


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same as text."""
    held = found["held"]
    bases = sorted({each["base"] for each in held})
    said = [
        f"outbox    {found['outbox']}, identity {found['identity']}, {found['disk']:,} bytes with what is beside it",
        f"holds     {counted(len(held), 'update')}, {sum(each['bytes'] for each in held):,} bytes"
        + (f", trained from version {', '.join(map(str, bases))}" if bases else "")
        + f"; the next is {found['next']}",
    ]
    if not found["consent"]:
        said.append(f"consent   withdrawn: {WITHDRAWN}")
    if (rho := found.get("rho", 0.0)) is None:
        said.append("spent     not known of its ε: this outbox was put back from a copy")
    elif rho:
        from midge.wire.noise import zcdp_epsilon  # noqa: PLC0415

        said.append(f"spent     ε = {zcdp_epsilon(rho, DELTA):.3g} at δ = {DELTA:g}, by its own count")
    if found["lost"]:
        said.append(f"lost      {counted(found['lost'], 'update')}, which this disk damaged before they were settled")
    if (running := found["running"]) is not None:
        waits = f", waits: {running['waits']}" if running["waits"] else ""
        said.append(
            f"running   process {running['pid']} for {running['seconds']:.0f} s, link {running['link']}, "
            f"aggregator {running.get('aggregator', 'not known')}, {running['work']}{waits}, "
            f"version {running['version']}; "
            f"{running['bytes_up']:,} bytes up and {running['bytes_down']:,} down"
        )
    elif found.get("unanswered"):
        said.append("running   yes, and it does not answer (stopped or overloaded): what follows was stored earlier")
    else:
        said.append("running   no: what follows was stored earlier")
    for channel, newest in found["verified"].items():
        said.append(
            f"verified  {channel}: version {newest['version']}, generation {newest['generation']}, "
            f"epoch {newest['epoch']}, lineage {newest['lineage'][:8]}, issued {day(newest['issued'])}"
        )
    if not found["verified"]:
        said.append("verified  nothing: no key is pinned, the broker is trusted (--release-key)")
    if (model := found["predicts"]) is not None:
        said.append(f"predicts  with version {model['version']} of the channel {model['channel']}")
    if (kept := found.get("keeps")) is not None:
        said.append(
            f"keeps     version {kept['version']} since {day(kept['since'])}: version {kept['newer']} is worse on its "
            "own rows"
        )
    said += [f"{name:<9} version {version}, which goes before it" for name, version in found.get("names", {}).items()]
    said += [f"rows      {each['words']}" for each in (running or {}).get("intake", ())]
    if expired := (running or {}).get("expired", 0):
        said.append(f"expired   {counted(expired, 'row')} since the start, by age: no longer here")
    if (samples := found["samples"]) is not None:
        said.append(
            f"samples   {samples['bytes']:,} bytes of rows on disk, {counted(samples['new'], 'row')} new when written"
        )
    if (month := found["month"]) is not None:
        said.append(
            f"{month.get('month', ''):<9} {month.get('bytes', 0):,} bytes on the link, {month.get('joules', 0):,.0f} J"
            + wear(month)
            + ("" if found["running"] is not None else f"; as of {day(month['as_of'])}")
        )
    if (trouble := (running or {}).get("trouble")) is not None:
        ago, why = trouble
        said.append(f"TROUBLE   {spell(ago)} ago the aggregator had a problem with what this device sent: {why}")
    said += [f"hindered  {why}" for why in found["hindered"]]
    said += [f"ALARM     {why}" for why in found.get("credentials", ())]
    return said


def wear(month: Mapping[str, Any]) -> str:
    """Bytes written to flash a day, and the time over which they were counted."""
    if month["written_per_day"] is None:
        return f"; {month['written']:,} bytes written to the flash in {month['seconds']:.0f} s"
    known = f", measured over {spell(month['seconds'])}" if month["seconds"] < _DAY else ""
    return f"; {month['written_per_day']:,} bytes a day written to the flash{known}"


def day(seconds: float | None) -> str:
    """A date and time as text, in UTC."""
    return "never" if not seconds else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
