"""Ready-made conditions: mains power, battery, temperature, idle processor, hours, metered link, enough new rows.

Each function here returns a `Condition`: a call returns why the device should not train now, or None if it may. They
read /sys and /proc of Linux, and use psutil if it is installed and there is nothing to read. A condition that cannot be
read blocks nothing, and logs that once: otherwise the device would never train.

The text does not change with every reading, so that a log has one line for each change.

Examples:
    >>> samples = midge.Samples(None, ["speed"], label="power")
    >>> fresh = midge.conditions.enough_new(samples, 32)  # for midge.Device(conditions=[fresh], ...)
    >>> fresh()
    'fewer than 32 rows are new since the last training'
"""

import importlib
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from midge.iot_client.board.training_constraints import Condition
from midge.wire.clocks import SANE

log = logging.getLogger("iot_client")

ROOT = Path("/")
_HOT = (-40.0, 150.0)
"""Plausible readings in degrees Celsius; sensors beyond them are not connected."""
_ASK_AGAIN = 60.0
"""Seconds between two queries of NetworkManager: each starts a process."""
_MODEMS = ("wwan", "ppp", "rmnet", "wwp")
"""Name prefixes of mobile interfaces."""


class Unreadable(Exception):
    """A condition's source cannot be read on this device."""


class Fresh(Protocol):
    """A counter of new rows: `iot_client.data.samples.Samples`."""

    @property
    def new(self) -> int: ...


class RowIntake(Fresh, Protocol):
    """Also knows which rows arrived and could not be used."""

    @property
    def trouble(self) -> str | None: ...

    @property
    def absent(self) -> tuple[str, ...]: ...


def _condition(name: str, look: Callable[[], str | None]) -> Condition:
    """Make a condition of a reading; an unreadable source is logged once."""
    logged = False

    def condition() -> str | None:
        nonlocal logged
        try:
            return look()
        except (OSError, ValueError, Unreadable) as error:
            if not logged:
                logged = True
                log.warning("The condition %s cannot be read here (%s): it blocks nothing.", name, error)
            return None

    condition.__name__ = condition.__qualname__ = name
    return condition


# -------------------------------------------------------------------------- power


def on_mains(*, root: Path = ROOT) -> Condition:
    """Train only with external power: mains, USB, a solar panel."""

    def look() -> str | None:
        return None if _plugged(root) else "it runs on its battery"

    return _condition("on_mains", look)


def battery_above(share: float, *, root: Path = ROOT) -> Condition:
    """Train only if the battery holds more than this share of its charge, from 0 to 1; several batteries are added up.

    Raises:
        ValueError: it is not a share.
    """
    if not 0 <= share < 1:
        raise ValueError(f"battery_above() takes a share of the charge from 0 to 1, such as 0.3, not {share}.")

    def look() -> str | None:
        return None if _charge(root) > share else f"its battery is not above {share:.0%}"

    return _condition("battery_above", look)


def _supplies(root: Path) -> Iterator[tuple[str, Path]]:
    """Kind and path of each power supply of the device itself; those of peripherals have the scope `Device`."""
    for place in sorted((root / "sys/class/power_supply").glob("*")):
        with suppress(OSError):
            if not (place / "scope").exists() or _text(place / "scope") != "Device":
                yield _text(place / "type"), place


def _plugged(root: Path) -> bool:
    supplies = list(_supplies(root))
    outside = [place for kind, place in supplies if kind != "Battery" and (place / "online").exists()]
    if outside:
        return any(_text(place / "online") != "0" for place in outside)
    states = [_text(place / "status") for kind, place in supplies if kind == "Battery" and (place / "status").exists()]
    if states:
        return "Discharging" not in states
    battery = _psutil("sensors_battery")
    if battery is None or battery.power_plugged is None:
        raise Unreadable("no power supply is shown in /sys/class/power_supply")
    return bool(battery.power_plugged)


def _charge(root: Path) -> float:
    shares = []
    for kind, place in _supplies(root):
        if kind == "Battery":
            with suppress(OSError, ValueError):
                shares.append(int(_text(place / "capacity")) / 100)
    if shares:
        return sum(shares) / len(shares)
    battery = _psutil("sensors_battery")
    if battery is None:
        raise Unreadable("no battery is shown in /sys/class/power_supply")
    return float(battery.percent) / 100


# ----------------------------------------------------------------- heat and work


def cooler_than(celsius: float, *, root: Path = ROOT) -> Condition:
    """Train only if the hottest sensor of the board is below this temperature."""

    def look() -> str | None:
        return None if _hottest(root) < celsius else f"the board is not below {celsius:g} °C"

    return _condition("cooler_than", look)


def _hottest(root: Path) -> float:
    found = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        with suppress(OSError, ValueError):  # a sleeping sensor returns EAGAIN
            celsius = int(_text(zone / "temp")) / 1000
            if _HOT[0] < celsius < _HOT[1]:
                found.append(celsius)
    if not found:
        sensors: dict[str, Any] = _psutil("sensors_temperatures") or {}
        found = [float(each.current) for several in sensors.values() for each in several]
    if not found:
        raise Unreadable("no temperature is shown in /sys/class/thermal")
    return max(found)


def cpu_idle(share: float, *, root: Path = ROOT) -> Condition:
    """Train only if other processes leave this share of the processor's time idle, from 0 to 1.

    Measured between two readings. Our own time counts as idle, and so does that of processes with a lower priority,
    which yield to us. The first reading uses the load average, and so does every one on a board without /proc/stat.

    Raises:
        ValueError: it is not a share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"cpu_idle() takes a share of the processor's time from 0 to 1, such as 0.5, not {share}.")
    before: tuple[int, int] | None = None
    idle = 1.0

    def look() -> str | None:
        nonlocal before, idle
        seen = _processor_times(root)
        if seen is None or before is None:
            idle = _idle_by_load(root)
            before = seen
        elif seen[1] - before[1] >= 50:  # ticks of 1/100 s: a shorter span is too coarse
            idle = 1 - max(0, seen[0] - before[0]) / (seen[1] - before[1])
            before = seen
        return None if idle >= share else f"less than {share:.0%} of the processor is idle"

    return _condition("cpu_idle", look)


def _processor_times(root: Path) -> tuple[int, int] | None:
    """Ticks since boot in which other processes were busy, and all ticks; proc(5)."""
    try:
        with (root / "proc/stat").open() as file:
            user, nice, system, idle, waiting, *rest = (int(each) for each in file.readline().split()[1:9])
        ours = _text(root / "proc/self/stat").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    spent = sum(int(each) for each in ours[11:15]) if int(ours[16]) <= 0 else 0  # otherwise it is included in `nice`
    return user + system + sum(rest) - spent, user + nice + system + idle + waiting + sum(rest)


def _idle_by_load(root: Path) -> float:
    try:
        load = float(_text(root / "proc/loadavg").split()[0])
    except (OSError, ValueError, IndexError):
        load = os.getloadavg()[0]
    return max(0.0, 1 - load / (os.cpu_count() or 1))


# --------------------------------------------------------------------------- time


def hours(*spans: str, clock: Callable[[], float] = time.time) -> Condition:
    """Train only within these hours of the day, in the device's own time zone: `hours("22:00-06:00", "12:00-13:00")`.

    A clock that was never set, as on a board without a battery before its first contact, blocks nothing.

    Raises:
        ValueError: one of them is not a span of hours.
    """
    if not spans:
        raise ValueError('hours() takes spans of the day, such as "22:00-06:00".')
    read = [_span(each) for each in spans]
    words = " or ".join(spans)

    def look() -> str | None:
        now = clock()
        if now < SANE:
            raise Unreadable("the clock was never set")
        here = time.localtime(now)
        minute = 60 * here.tm_hour + here.tm_min
        within = any(begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in read)
        return None if within else f"it trains at {words} only"

    return _condition("hours", look)


def _span(text: str) -> tuple[int, int]:
    """Begin and end in minutes of the day."""
    found = re.fullmatch(r"\s*(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s*", text)
    if found is not None:
        begin_hour, begin, end_hour, end = map(int, found.groups())
        if begin < 60 and end < 60 and 60 * begin_hour + begin < 1440 and 60 * end_hour + end <= 1440:
            return 60 * begin_hour + begin, 60 * end_hour + end
    raise ValueError(f"{text!r} is no span of hours: say it as 22:00-06:00.")


# --------------------------------------------------------------------------- link


def unmetered(metered: Callable[[], bool] | None = None, *, root: Path = ROOT) -> Condition:
    """Use only links without volume charges. Give it as `link_condition` too if updates are to wait.

    Args:
        metered: whether the link is metered; None asks the routing table for a modem, then NetworkManager.
        root: where to read from.
    """
    asked_at, answer = -_ASK_AGAIN, False

    def ask() -> bool:
        nonlocal asked_at, answer
        if _through_modem(root):
            return True
        if time.monotonic() - asked_at >= _ASK_AGAIN:
            asked_at, answer = time.monotonic(), _network_manager_says()
        return answer

    def look() -> str | None:
        return "the link is metered" if (metered or ask)() else None

    return _condition("unmetered", look)


def _through_modem(root: Path) -> bool:
    """Whether the default route, of the lowest metric, uses a mobile interface."""
    routes = []
    with suppress(OSError):
        for line in _text(root / "proc/net/route").splitlines()[1:]:
            interface, destination, _, _, _, _, metric, *_ = line.split()
            if destination == "00000000":
                routes.append((int(metric), interface))
    return bool(routes) and min(routes)[1].startswith(_MODEMS)


def _network_manager_says() -> bool:
    """NMMetered of the primary connection: 1 is yes, 3 is a guess of yes (NetworkManager's D-Bus interface)."""
    if (busctl := shutil.which("busctl")) is None:
        raise Unreadable("neither a modem's route nor NetworkManager says whether the link is metered")
    name, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
    try:
        answer = subprocess.run(  # noqa: S603 - fixed words
            [busctl, "--system", "get-property", name, path, name, "Metered"],
            capture_output=True, text=True, timeout=2, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unreadable("NetworkManager does not answer") from error
    if answer.returncode != 0:
        raise Unreadable("NetworkManager does not say whether the link is metered")
    return answer.stdout.split()[-1:] in (["1"], ["3"])


# --------------------------------------------------------------------------- data


def enough_new(samples: Fresh, rows: int) -> Condition:
    """Train only after enough rows have arrived since the last training began.

    Raises:
        ValueError: it is not a number of rows.
    """
    if rows < 1:
        raise ValueError(f"enough_new() takes a number of rows from 1, not {rows}.")

    def look() -> str | None:
        if samples.new >= rows:
            return None
        trouble = getattr(samples, "trouble", None)
        return f"fewer than {rows} rows are new since the last training{f': {trouble}' if trouble else ''}"

    return _condition("enough_new", look)


def awaits_rows(conditions: Iterable[Condition]) -> bool:
    """Whether one of the conditions is `enough_new`, so that each training has new rows."""
    return any(getattr(condition, "__name__", "") == enough_new.__name__ for condition in conditions)


def every_feature(samples: RowIntake) -> Condition:
    """Train only after each feature had a number: one that never has is misspelt, or in a format that is not parsed.

    Not for a device that lacks a sensor, whose value is missing in every row: it may train nevertheless.
    """

    def look() -> str | None:
        return f"no row had a number for {', '.join(samples.absent)}" if samples.new and samples.absent else None

    return _condition("every_feature", look)


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip()


def _psutil(name: str) -> Any:
    """The result of a psutil function; None if it is not installed, or lacks it on this system."""
    with suppress(ImportError, AttributeError, NotImplementedError):
        return getattr(importlib.import_module("psutil"), name)()
    return None
