"""Dates of announcements: the machine's time, unless it contradicts earlier announcements.

An announcement dated a year ahead would make all later ones expire on devices without a clock, and one dated last year
is refused by all devices with a clock. So dates never go back, and never far forward at once: the last date, plus the
time that the process has run since, is a lower bound.
"""

import time
from collections.abc import Callable

from midge.wire.clocks import DAY, SANE, said

FAR = 180 * DAY
"""Seconds after the last issue from which on the clock is not trusted: federations rest for a season, not for a year.
"""
_LATEST = 2.0**36
"""Seconds since 1970, the year 4147: nothing is issued then."""


class Dating:
    """The dates of one aggregator.

    Args:
        wall: seconds since 1970, of the machine.
        steady: seconds of a monotonic clock; `time.monotonic` by default.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float] | None = None) -> None:
        self._wall, self._steady = wall, steady or time.monotonic
        self.last = 0.0
        """The latest date known to have been issued; 0 if there is none."""
        self._at = self._steady()
        self.doubt = ""
        """Why the machine's clock is not trusted, and what to do; empty if it is."""

    def resume(self, last: float) -> None:
        """Continue after a date that was issued, as known from the store or the broker."""
        if self.last < last < _LATEST:
            self.last, self._at = last, self._steady()

    def believe(self) -> None:
        """Trust the machine's clock from now on, as the operator commands."""
        self.last = 0.0

    def now(self) -> float:
        """Seconds since 1970."""
        wall, least = self._wall(), self.last + (self._steady() - self._at)
        self.doubt = ""
        if not self.last:
            if wall < SANE:
                self.doubt = f"This machine's clock says {said(wall)}, and was never set: set it."
            return wall
        if -DAY <= wall - least <= FAR:
            return max(wall, least)
        self.doubt = (
            f"This machine's clock says {said(wall)}, and the last announcement was issued on {said(self.last)}: "
            "set the clock. Until then announcements are dated from the last one. If the clock is right, start once "
            "with --raise-epoch."
        )
        return least

    def issue(self) -> float:
        """The date of what is issued now."""
        now = self.now()
        self.last, self._at = max(now, self.last), self._steady()
        return now
