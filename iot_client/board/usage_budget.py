"""What a device may spend in a calendar month: bytes on its link, energy for its training."""

import json
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from midge.storage.files import atomic_write
from midge.wire.messages import Participation

log = logging.getLogger("iot_client")

_SAVE_EVERY = 600.0
"""Seconds between two writes of what was spent: a power cut forgets so much at most."""
SOONEST = 1_704_067_200.0
"""Seconds since 1970 at the start of 2024: a clock that shows less was never set."""
_MONTH = 31 * 86_400.0
_SAVE_WRITES = 8192
"""Bytes that such a write wears: a page of the file and one of its directory."""


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


class Budget:
    """Counts what is spent this month, across restarts, and says when it is used up."""

    def __init__(self, path: Path | None, costs: Costs) -> None:
        self.path, self.costs = path, costs
        self.month, self.bytes, self.joules = "", 0, 0.0
        self.since = 0.0
        """Seconds since 1970 when counting began this month."""
        self.written = 0
        """Bytes that went to the disk this month, as whole pages: what wears a flash card."""
        self._seen = 0
        self._saved_at = -math.inf
        if path is not None and path.exists():
            with suppress(OSError, ValueError, KeyError, TypeError):
                spent = json.loads(path.read_text())
                self.month, self.bytes, self.joules = str(spent["month"]), int(spent["bytes"]), float(spent["joules"])
                self.since, self.written = float(spent.get("since", 0)), int(spent.get("written", 0))

    def spend(self, *, moved: int = 0, trained: float = 0.0, now: float | None = None) -> None:
        """Bytes that went over the link, seconds of training. `now` is seconds since 1970."""
        now = time.time() if now is None else now
        self._turn(now)
        self.bytes += moved
        self.joules += moved * self.costs.joules_per_byte + trained * self.costs.watts
        if not 0 <= now - self._saved_at < _SAVE_EVERY:  # a clock that was put back writes now, not after years
            self._saved_at = now
            self.save()

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
            atomic_write(self.path, json.dumps(self.packed()).encode())
            self.written += _SAVE_WRITES
        except OSError as error:
            log.warning("What this month has cost cannot be written to %s (%s).", self.path, error.strerror)

    def packed(self) -> dict[str, str | int | float]:
        """As plain values."""
        return {
            "month": self.month,
            "bytes": self.bytes,
            "joules": self.joules,
            "since": self.since,
            "written": self.written,
        }

    def _turn(self, now: float) -> None:
        """A new month begins with nothing spent; a clock that was put back does not begin one.

        If the month is further ahead than the next one, it came of a clock that was wrong: what was spent is this
        month's. A clock that shows less than `SOONEST` was never set, and turns nothing.
        """
        month = time.strftime("%Y-%m", time.gmtime(now))
        following = time.strftime("%Y-%m", time.gmtime(now + _MONTH))
        if now >= SOONEST and self.month > following:
            self.month, self.since = month, min(self.since, now)
        if month > self.month:
            self.month, self.bytes, self.joules = month, 0, 0.0
            self.since, self.written = now, 0


def _least(own: float | None, asked: float | None) -> float | None:
    limits = [limit for limit in (own, asked) if limit]
    return min(limits, default=None)
