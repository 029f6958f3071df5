"""The time that announcements are dated with: the machine's, unless it contradicts what was issued before.

One announcement that is dated a year ahead would expire everything that follows it, on each device that has no clock of
its own, and one of last year is refused by all that have one. So dates never go back, and never far forward at once:
what was issued last, plus the time that the process has run since, says what time it is at least.
"""

import time
from collections.abc import Callable

from midge.wire.clocks import DAY, SANE, said

FAR = 180 * DAY
"""Seconds behind the last issue from which the clock is not believed: federations rest for a season, not for a year."""
_LATEST = 2.0**36
"""Seconds since 1970, the year 4147: nothing is issued then."""


class Dating:
    """The dates of one aggregator.

    Args:
        wall: seconds since 1970, as the machine says.
        steady: seconds of a clock that never goes back; `time.monotonic` by default.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float] | None = None) -> None:
        self._wall, self._steady = wall, steady or time.monotonic
        self.last = 0.0
        """The latest date that is known to have been issued; 0 if none is."""
        self._at = self._steady()
        self.doubt = ""
        """Why the machine's clock is not believed, and what to do; empty if it is."""

    def resume(self, last: float) -> None:
        """Go on behind a date that was issued, as the store or the broker knows."""
        if self.last < last < _LATEST:
            self.last, self._at = last, self._steady()

    def believe(self) -> None:
        """Believe the machine's clock from now on: the operator says so."""
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
