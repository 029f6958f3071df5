"""Monthly budget of a device: bytes on its link, energy for its training."""

import hashlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midge.storage.checked import Rotten
from midge.storage.files import atomic_write
from midge.wire.clocks import SANE
from midge.wire.field_checks import Count, NotNegative, Positive, check_fields
from midge.wire.messages import Participation

log = logging.getLogger("iot_client")

_SAVE_EVERY = 600.0
"""Seconds between two writes of the usage: a power cut loses at most that."""
_MONTH = 31 * 86_400.0
_OFF = 40 * 86_400.0
"""Difference to an announcement's date from which on our clock counts as wrong: a retained announcement may be old."""
_SAVE_WRITES = 8192
"""Bytes of flash that such a write wears: a page of the file and one of its directory."""

_CHECK = "sha256"
"""Key of the checksum over all other values in the file."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The device's own limits, and the costs of its work.

    Args:
        bytes_per_month: payload bytes, both ways; None sets no limit.
        joules_per_month: energy; None sets no limit.
        watts: power of training above idle.
        joules_per_byte: energy to send or receive a byte.

    Examples:
        >>> costs = midge.Costs(bytes_per_month=50_000_000, watts=2.5, joules_per_byte=1e-5)
        >>> costs.joules_per_month is None
        True
    """

    bytes_per_month: Count | None = None
    joules_per_month: Positive | None = None
    watts: NotNegative = 0.0
    joules_per_byte: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "costs")


@dataclass(frozen=True, slots=True)
class _Spent:
    """The usage of one month."""

    month: str = ""
    bytes: int = 0
    joules: float = 0.0
    since: float = 0.0
    written: int = 0


class Budget:
    """Counts the usage of this month, across restarts, and says when it is used up.

    The month is that of the device's clock, which may be wrong: at start-up, before it was set, or always. So the usage
    of the month before is kept until the next one, and an announcement's date corrects the clock: a month that only our
    clock had begun is dropped, and its usage is added to the right one.
    """

    def __init__(self, path: Path | None, costs: Costs) -> None:
        self.path, self.costs = path, costs
        self.month, self.bytes, self.joules = "", 0, 0.0
        self.since = 0.0
        """Seconds since 1970 when counting began this month."""
        self.written = 0
        """Bytes written to the disk this month, in whole pages: they wear a flash card."""
        self._before = _Spent()
        self._off = 0.0
        """Seconds that the aggregator's clock is ahead of ours, if that is more than right clocks can differ."""
        self._seen = 0
        self._saved_at = -math.inf
        if path is not None and path.exists():
            try:
                spent = read_usage(path)
                self.month, self.bytes, self.joules = str(spent["month"]), int(spent["bytes"]), float(spent["joules"])
                self.since, self.written = float(spent.get("since", 0)), int(spent.get("written", 0))
                self._before = _Spent(**spent.get("before", {}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("The usage of this month cannot be read from %s (%s): it starts over.", path, error)

    def spend(self, *, moved: int = 0, trained: float = 0.0, now: float | None = None) -> None:
        """Add bytes that went over the link, and seconds of training. `now` is seconds since 1970."""
        self._set_month(time.time() if now is None else now)
        self.bytes += moved
        self.joules += moved * self.costs.joules_per_byte + trained * self.costs.watts
        if (steady := time.monotonic()) - self._saved_at >= _SAVE_EVERY:
            self._saved_at = steady
            self.save()

    def heard(self, issued: float, wall: float, *, current: bool = True) -> None:
        """Compare our clock with the date of an announcement, both seconds since 1970; 0 is no date.

        If it is not current, because its aggregator is away, it only gives the earliest possible time.
        """
        if issued and (current or issued > wall):
            off = issued - wall
            self._off = off if abs(off) > _OFF else 0.0
            self._set_month(wall, trusted=True)

    def wore(self, total: int) -> None:
        """Record the number of bytes written to the disk since the start."""
        self.written += total - self._seen
        self._seen = total

    def spent(self, asked: Participation | None, now: float | None = None) -> str | None:
        """Which limit of this month is reached, as text; None if none is."""
        self._set_month(time.time() if now is None else now)
        limit = _least(self.costs.bytes_per_month, None if asked is None else asked.bytes_per_month)
        if limit is not None and self.bytes >= limit:
            return f"{self.bytes:,} bytes went over the link in {self.month}; the month allows {limit:,.0f}"
        energy = _least(self.costs.joules_per_month, None if asked is None else asked.joules_per_month)
        if energy is not None and self.joules >= energy:
            return f"{self.joules:,.0f} J were spent in {self.month}; the month allows {energy:,.0f}"
        return None

    def save(self) -> None:
        """Write the usage."""
        if self.path is None:
            return
        try:
            spent = self.packed()
            atomic_write(self.path, json.dumps({**spent, _CHECK: _checksum(spent, self.path)}).encode())
            self.written += _SAVE_WRITES
        except OSError as error:
            log.warning("The usage of this month cannot be written to %s (%s).", self.path, error.strerror)

    def packed(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "month": self.month,
            "bytes": self.bytes,
            "joules": self.joules,
            "since": self.since,
            "written": self.written,
            "before": asdict(self._before),
        }

    def _set_month(self, now: float, *, trusted: bool = False) -> None:
        """Begin a new month without usage; go back to an earlier one only by a trusted clock.

        A month beyond the next one came from a wrong clock, so a clock that was set leads back from it as well.
        """
        now += self._off
        month = time.strftime("%Y-%m", time.gmtime(now))
        trusted = trusted or (now >= SANE and self.month > time.strftime("%Y-%m", time.gmtime(now + _MONTH)))
        if month > self.month:
            self._before = _Spent(self.month, self.bytes, self.joules, self.since, self.written)
            self.month, self.bytes, self.joules = month, 0, 0.0
            self.since, self.written = now, 0
        elif month < self.month and trusted:
            before, self._before = self._before, _Spent()
            if before.month == month:
                self.bytes, self.joules = self.bytes + before.bytes, self.joules + before.joules
                self.since, self.written = before.since, self.written + before.written
            else:
                self.since = now
            self.month = month


def _least(own: float | None, asked: float | None) -> float | None:
    limits = [limit for limit in (own, asked) if limit]
    return min(limits, default=None)


def read_usage(path: Path) -> dict[str, Any]:
    """The stored usage of a month; a file of an earlier Midge has no checksum.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    spent = json.loads(path.read_bytes())
    if not isinstance(spent, dict) or spent.pop(_CHECK, None) not in (None, _checksum(spent, path)):
        raise Rotten("it is not what was written")
    return spent


def _checksum(spent: dict[str, Any], path: Path) -> str:
    """Checksum over the values and the file's name, so that another device's file in the folder is not accepted."""
    return hashlib.sha256(json.dumps([path.name, spent], sort_keys=True).encode()).hexdigest()[:16]
