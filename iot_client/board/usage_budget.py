"""What a device may spend in a calendar month: bytes on its link, energy for its training."""

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
from midge.wire.messages import Participation

log = logging.getLogger("iot_client")

_SAVE_EVERY = 600.0
"""Seconds between two writes of what was spent: a power cut forgets so much at most."""
_MONTH = 31 * 86_400.0
_OFF = 40 * 86_400.0
"""Seconds between our clock and an announcement's date from which ours counts as wrong: a retained one may be old."""
_SAVE_WRITES = 8192
"""Bytes that such a write wears: a page of the file and one of its directory."""

_CHECK = "sha256"
"""The name of the checksum over all the others, in the file."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the device's own limits are, and what its work costs it.

    Args:
        bytes_per_month: payload bytes, both ways; None sets no limit.
        joules_per_month: energy; None sets no limit.
        watts: what training draws beyond rest.
        joules_per_byte: what sending or receiving a byte takes.
    """

    bytes_per_month: int | None = None
    joules_per_month: float | None = None
    watts: float = 0.0
    joules_per_byte: float = 0.0


@dataclass(frozen=True, slots=True)
class _Spent:
    """What one month has cost."""

    month: str = ""
    bytes: int = 0
    joules: float = 0.0
    since: float = 0.0
    written: int = 0


class Budget:
    """Counts what is spent this month, across restarts, and says when it is used up.

    The month is that of the device's clock, which may be wrong: at its start, before it was set, or for ever. So what
    was spent in the month before is kept until the next one, and the aggregator's word corrects the clock: a month
    that the clock alone had begun is given up, and what was spent in it counts to the right one.
    """

    def __init__(self, path: Path | None, costs: Costs) -> None:
        self.path, self.costs = path, costs
        self.month, self.bytes, self.joules = "", 0, 0.0
        self.since = 0.0
        """Seconds since 1970 when counting began this month."""
        self.written = 0
        """Bytes that went to the disk this month, as whole pages: what wears a flash card."""
        self._before = _Spent()
        self._off = 0.0
        """Seconds that the aggregator's clock is ahead of ours, if that is more than right clocks can be apart."""
        self._seen = 0
        self._saved_at = -math.inf
        if path is not None and path.exists():
            try:
                spent = read_usage(path)
                self.month, self.bytes, self.joules = str(spent["month"]), int(spent["bytes"]), float(spent["joules"])
                self.since, self.written = float(spent.get("since", 0)), int(spent.get("written", 0))
                self._before = _Spent(**spent.get("before", {}))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("What this month has cost cannot be read from %s (%s): it starts over.", path, error)

    def spend(self, *, moved: int = 0, trained: float = 0.0, now: float | None = None) -> None:
        """Bytes that went over the link, seconds of training. `now` is seconds since 1970."""
        self._turn(time.time() if now is None else now)
        self.bytes += moved
        self.joules += moved * self.costs.joules_per_byte + trained * self.costs.watts
        if (steady := time.monotonic()) - self._saved_at >= _SAVE_EVERY:
            self._saved_at = steady
            self.save()

    def heard(self, issued: float, wall: float, *, current: bool = True) -> None:
        """Compare our clock with the date of an announcement, both seconds since 1970; 0 is no date.

        One that is not current, of an aggregator that is away, says only that it is no earlier.
        """
        if issued and (current or issued > wall):
            off = issued - wall
            self._off = off if abs(off) > _OFF else 0.0
            self._turn(wall, believed=True)

    def wore(self, total: int) -> None:
        """Take the number of bytes that went to the disk since the start."""
        self.written += total - self._seen
        self._seen = total

    def spent(self, asked: Participation | None, now: float | None = None) -> str | None:
        """Why nothing more may be spent this month, in words; None where something may."""
        self._turn(time.time() if now is None else now)
        limit = _least(self.costs.bytes_per_month, None if asked is None else asked.bytes_per_month)
        if limit is not None and self.bytes >= limit:
            return f"{self.bytes:,} bytes went over the link in {self.month}; the month allows {limit:,.0f}"
        energy = _least(self.costs.joules_per_month, None if asked is None else asked.joules_per_month)
        if energy is not None and self.joules >= energy:
            return f"{self.joules:,.0f} J were spent in {self.month}; the month allows {energy:,.0f}"
        return None

    def save(self) -> None:
        """Write what was spent."""
        if self.path is None:
            return
        try:
            spent = self.packed()
            atomic_write(self.path, json.dumps({**spent, _CHECK: _checksum(spent, self.path)}).encode())
            self.written += _SAVE_WRITES
        except OSError as error:
            log.warning("What this month has cost cannot be written to %s (%s).", self.path, error.strerror)

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

    def _turn(self, now: float, *, believed: bool = False) -> None:
        """A new month begins with nothing spent; back to an earlier one leads only a clock that is believed.

        A month beyond the next one came of a clock that was wrong, and so one that was set leads back from it as well.
        """
        now += self._off
        month = time.strftime("%Y-%m", time.gmtime(now))
        believed = believed or (now >= SANE and self.month > time.strftime("%Y-%m", time.gmtime(now + _MONTH)))
        if month > self.month:
            self._before = _Spent(self.month, self.bytes, self.joules, self.since, self.written)
            self.month, self.bytes, self.joules = month, 0, 0.0
            self.since, self.written = now, 0
        elif month < self.month and believed:
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
    """What was written of a month's costs; a file of an earlier Midge has no checksum.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what was written.
    """
    spent = json.loads(path.read_bytes())
    if not isinstance(spent, dict) or spent.pop(_CHECK, None) not in (None, _checksum(spent, path)):
        raise Rotten("it is not what was written")
    return spent


def _checksum(spent: dict[str, Any], path: Path) -> str:
    """Of the values in a file of this name: that of another device in the folder is another's."""
    return hashlib.sha256(json.dumps([path.name, spent], sort_keys=True).encode()).hexdigest()[:16]
