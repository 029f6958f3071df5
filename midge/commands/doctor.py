"""`midge device doctor`: check whether this board can take part, and what to do if not."""

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from midge.broker import BrokerError, Endpoint
from midge.broker.audit.results import Finding, Level
from midge.commands.device_status import day, hindered, look, wear
from midge.commands.parts import Problem, read_config, read_endpoint
from midge.wire.clocks import SANE
from midge.wire.plurals import counted

_SYNCHRONISED = (Path("/run/systemd/timesync/synchronized"), Path("/var/lib/systemd/timesync/clock"))
_NEEDED = {"numpy": "1.26", "msgpack": "1.0.8", "pydantic": "2.7", "paho-mqtt": "2.2"}
_EXTRAS = {"cryptography": "midge[security]", "psutil": "", "torch": "midge[torch]", "zstandard": "midge[zstd]"}
_ROOM, _LITTLE = 64 * 2**20, 512 * 2**20
_WEAR = 10**9
"""Bytes written a day that wear a memory card out."""
_SKEW = 300.0


def run(args: argparse.Namespace) -> int:
    endpoint = _endpoint(args)
    outbox = Path(args.outbox).expanduser() if args.outbox else None
    found = [*clock(outbox), *disk(outbox), *software(), *power(args), *credentials(endpoint)]
    found += asyncio.run(broker(endpoint)) if endpoint is not None else [
        Finding("broker", "not looked at", "note", "Say which: --broker URL, or --config with a bundle.")
    ]  # fmt: skip
    ill = any(each.level == "problem" for each in found)
    if args.json:
        print(json.dumps({"findings": [asdict(each) for each in found], "ok": not ill}))
        return int(ill)
    for each in found:
        print(f"{each.name:<12} {each.level:<8} {each.seen}" + (f" -> {each.advice}" if each.advice else ""))
    print("This board can take part." if not ill else "This board cannot take part yet: see above.")
    return int(ill)


def _endpoint(args: argparse.Namespace) -> Endpoint | None:
    if args.config is not None:
        return read_config(args.config, args.broker).endpoint
    return None if args.broker is None else read_endpoint(args, args.broker)


def clock(outbox: Path | None, *, now: float | None = None) -> Iterator[Finding]:
    """Check that the clock was set, and is not behind the last verified time: TLS certificates are checked by it."""
    now = time.time() if now is None else now
    floor = 0.0
    if outbox is not None and outbox.is_file():
        issued = [each["issued"] or 0.0 for each in look(outbox)["verified"].values()]
        floor = max(issued, default=0.0)
    if now < SANE:
        advice = "Set it, by systemd-timesyncd, chrony or a clock with a battery: no certificate is valid in that year."
        if floor:
            advice += (
                f" The last verified announcement says that it is {day(floor)} at least; Midge uses that for models."
            )
        yield Finding("clock", f"it says {day(now)}: it was never set", "problem", advice)
    elif now < floor - _SKEW:
        seen = f"it says {day(now)}, behind the last verified announcement, issued {day(floor)}"
        yield Finding("clock", seen, "warning", "Set it: Midge uses the later one for models, TLS the clock.")
    else:
        kept = any(each.exists() for each in _SYNCHRONISED)
        seen = day(now) + (", kept by systemd-timesyncd" if kept else "")
        advice = "" if kept else "See that something keeps it: systemd-timesyncd or chrony."
        yield Finding("clock", seen, "ok" if kept else "note", advice)


def disk(outbox: Path | None) -> Iterator[Finding]:
    """Check that there is room for the outbox, and that it can be written."""
    place = (outbox.parent if outbox is not None else Path()).absolute()
    if not place.is_dir():
        yield Finding("disk", f"there is no directory {place}", "problem", "Make it, or name another outbox.")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            "disk", f"{place} cannot be written: {error.strerror}", "problem", "Make room, or give write permission."
        )
        return
    free = shutil.disk_usage(place).free
    level: Level = "problem" if free < _ROOM else "warning" if free < _LITTLE else "ok"
    advice = "" if level == "ok" else "Make room: an outbox needs it."
    yield Finding("disk", f"{free // 2**20:,} MiB free in {place}", level, advice)
    if outbox is not None and outbox.is_file():
        found = look(outbox)
        month = found["month"]
        hard = month is not None and (month["written_per_day"] or 0) > _WEAR
        seen = f"{counted(len(found['held']), 'update')} waiting" + ("" if month is None else wear(month))
        if month is not None and found["running"] is None:
            seen += f", as of {day(month['as_of'])}"
        advice = "More than 1 GB a day wears a card out: train less often, by Pace(interval=…) or --train-after."
        yield Finding("outbox", seen, "warning" if hard else "ok", advice if hard else "")
    elif outbox is not None:
        yield Finding("outbox", f"{outbox} is not there yet; it is made when the device first runs", "note")


def software() -> Iterator[Finding]:
    """Check Python and the required and optional packages."""
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding(
        "Python", f"{version} on {platform.machine()}", "ok" if good else "problem", "" if good else "Use 3.11."
    )
    for name, least in _NEEDED.items():
        found = _version(name)
        if found is None:
            yield Finding(name, "not installed", "problem", f"pip install '{name}>={least}'")
        elif _numbers(found) < _numbers(least):
            yield Finding(name, found, "problem", f"pip install '{name}>={least}'")
        else:
            yield Finding(name, found)
    there = [f"{name} {found}" for name in _EXTRAS if (found := _version(name)) is not None]
    lacking = [f"{name} ({extra})" if extra else name for name, extra in _EXTRAS.items() if _version(name) is None]
    seen = ", ".join(there) or "none"
    yield Finding("extras", seen + (f"; not installed: {', '.join(lacking)}" if lacking else ""), "note")


def credentials(endpoint: Endpoint | None, *, now: float | None = None) -> Iterator[Finding]:
    """Remaining validity of this device's certificate and the authorities that it trusts."""
    from midge.broker.provisioning.expiry import ends  # noqa: PLC0415 - needs an extra where there are files

    present = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    for file in [] if endpoint is None else endpoint.credential_files:
        for end in ends(file):
            near = end.near(present)
            level: Level = "ok" if not near else "problem" if end.left(present) < 0 else "warning"
            yield Finding("credentials", end.seen(present), level, end.advice if near else "")


def power(args: argparse.Namespace) -> Iterator[Finding]:
    """Conditions from the options that are not met now."""
    for why in hindered(args):
        yield Finding("conditions", why, "note", "It would not train now.")


async def broker(endpoint: Endpoint) -> list[Finding]:
    """Check that the broker answers, with a valid TLS certificate, and lets us in. Publishes nothing."""
    from midge.broker import connector  # noqa: PLC0415
    from midge.broker.audit.handshake import look_at_tls  # noqa: PLC0415
    from midge.broker.mqtt.connection import Options  # noqa: PLC0415

    found = []
    try:
        tls = await look_at_tls(endpoint, 10.0)
        if tls is not None and tls.days_left is not None:
            found.append(Finding("TLS", f"{tls.version}, the certificate is good for {tls.days_left:.0f} more days"))
        elif tls is not None:
            found.append(Finding("TLS", f"{tls.version}, the certificate is not verified", "warning", "Verify it."))
        elif endpoint.exposed:
            advice = "Use mqtts://: `midge broker init` makes what it needs."
            found.append(Finding("TLS", f"none, to {endpoint}", "warning", advice))
        began = time.monotonic()
        async with connector(endpoint)(Options(client_id=f"midge-doctor-{os.getpid()}")) as connection:
            took = 1000 * (time.monotonic() - began)
            version = "5" if connection.limits.protocol == 5 else "3.1.1"
            found.append(Finding("broker", f"{endpoint} lets us in after {took:.0f} ms, MQTT {version}"))
    except BrokerError as error:
        found.append(Finding("broker", str(error), "problem", "midge broker check checks more."))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The first numbers of a version."""
    found = []
    for part in version.split(".")[:3]:
        digits = "".join(each for each in part if each.isdigit())
        found.append(int(digits or 0))
    return tuple(found)


def no_outbox() -> Problem:
    """The error if `status` has no outbox."""
    return Problem("Say whose status: midge device status OUTBOX, such as pump-17.outbox.")
