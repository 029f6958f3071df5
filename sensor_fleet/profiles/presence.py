"""Availability of a device: intervals drawn from the seed and the device's name, without end."""

import csv
import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import NormalDist

from midge.sensor_fleet.profiles.profile import Always, Availability, Breaking, Diurnal, Mains, OnOff, Trace, Wakes
from midge.wire.clocks import DAY

Interval = tuple[float, float]
_HOUR = 3600.0
_BITS = 53
"""Random bits of a number: the precision of a float."""
_NEVER = 100_000
"""Consecutive days of absence after which a device stays away."""


def absences(kind: Availability, seed: int, device: str, folder: str = "") -> Iterator[Interval]:
    """Intervals of absence, ascending and not empty; the last one may be infinite."""
    match kind:
        case Always():
            return iter(())
        case Diurnal() | Mains():
            return _between(_days(kind, seed, device))
        case OnOff():
            return _on_off(kind, seed, device)
        case Breaking():
            return _breaking(kind, seed, device)
        case Wakes():
            return _between(_woken(kind, seed, device))
        case Trace():
            return _between(_traced(kind, seed, device, folder))


def _between(present: Iterator[Interval]) -> Iterator[Interval]:
    """The gaps before, between and after intervals."""
    since = 0.0
    for start, end in present:
        if start > since:
            yield since, start
        since = max(since, end)
    yield since, math.inf


def _days(kind: Diurnal | Mains, seed: int, device: str) -> Iterator[Interval]:
    start, end = (hour * _HOUR for hour in kind.hours)
    if end <= start:
        end += DAY
    shift = kind.zones * _HOUR * (uniform(seed, device, "zone", 0) - 0.5)
    missed = 0
    day = -1
    while missed < _NEVER:
        if uniform(seed, device, "day", day + 1) < kind.chance:
            missed = 0
            begins, ends = (
                day * DAY + hour + shift + kind.jitter * _normal(seed, device, purpose, day + 1)
                for hour, purpose in ((start, "begins"), (end, "ends"))
            )
            if ends > max(begins, 0.0):
                yield max(begins, 0.0), ends
        else:
            missed += 1
        day += 1


def _normal(seed: int, device: str, purpose: str, number: int) -> float:
    return NormalDist().inv_cdf(uniform(seed, device, purpose, number))


def _on_off(kind: OnOff, seed: int, device: str) -> Iterator[Interval]:
    """The stationary process: by memorylessness, the first period is drawn as any other."""
    there = uniform(seed, device, "there", 0) < kind.on / (kind.on + kind.off)
    now, number = 0.0, 0
    while True:
        stays = -(kind.on if there else kind.off) * math.log(uniform(seed, device, "stays", number))
        if not there:
            yield now, now + stays
        now, there, number = now + stays, not there, number + 1


def _breaking(kind: Breaking, seed: int, device: str) -> Iterator[Interval]:
    now, number = 0.0, 0
    while True:
        broken = now - kind.online * math.log(uniform(seed, device, "online", number))
        now = broken - kind.offline * math.log(uniform(seed, device, "offline", number))
        number += 1
        yield broken, now


def _woken(kind: Wakes, seed: int, device: str) -> Iterator[Interval]:
    phase = kind.every * uniform(seed, device, "wakes", 0)
    for number in count():
        yield phase + number * kind.every, phase + number * kind.every + kind.stays


@lru_cache(maxsize=1 << 16)
def uniform(seed: int, device: str, purpose: str, number: int) -> float:
    """A number in (0, 1), determined by these four: a hash."""
    digest = hashlib.blake2b(f"{seed}/{device}/{purpose}/{number}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> (64 - _BITS)) + 0.5) / float(1 << _BITS)


# -------------------------------------------------------------------------- traces


def _traced(kind: Trace, seed: int, device: str, folder: str) -> Iterator[Interval]:
    traces = read_trace(Path(folder) / kind.file)
    mine = traces[int(uniform(seed, device, "trace", 0) * len(traces))]
    turn = 0
    while True:
        for start, end in mine:
            if not kind.repeat or start < kind.repeat:
                yield start + turn * kind.repeat, min(end, kind.repeat or end) + turn * kind.repeat
        if not kind.repeat:
            return
        turn += 1


@lru_cache(maxsize=16)
def read_trace(path: Path) -> Sequence[Sequence[Interval]]:
    """The intervals of each device of a trace file, in the order of the devices' first lines.

    Raises:
        ValueError: the file cannot be read, or a line is malformed; the message names it.
    """
    found: dict[str, list[Interval]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"start", "end"} <= set(rows.fieldnames or ()):
                raise ValueError(f"The trace {path} must begin with a header: device,start,end or start,end.")
            for row in rows:
                found.setdefault(row.get("device") or "", []).append(_interval(row, f"line {rows.line_num} of {path}"))
    except OSError as error:
        raise ValueError(
            f"The trace {path} cannot be read ({error.strerror}): put it beside the profile, or give an absolute path."
        ) from error
    if not found:
        raise ValueError(f"The trace {path} has no lines after its header: add lines with start and end in seconds.")
    return [sorted(intervals) for intervals in found.values()]


def _interval(row: dict[str, str], where: str) -> Interval:
    try:
        start, end = float(row["start"]), float(row["end"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: start and end must be numbers, in seconds.") from error
    if not 0 <= start < end < math.inf:
        raise ValueError(f"{where}: an interval must satisfy 0 <= start < end, not {start:g} to {end:g}.")
    return start, end
