"""Detection of divergence: damps the server's rate while updates grow from turn to turn of the fleet.

If the rate is above the gain margin (`aggregator.core.gain_margin`), each update is longer than the last, without
limit. A change of the data makes them longer once, and shorter as it is learned. So growth counts if it continues for
several turns, or if the updates are longer than eight turns ago and do not shrink: an oscillation near the stability
limit, which liars can drive, grows by a few per cent a turn. Then the rate is halved, and it is doubled again after as
many turns without growth.
"""

from collections import deque

_TURNS = 3
"""Consecutive turns of growth that count: a change of the data takes one or two until every device has seen it."""
_LENGTH = 2
"""Turns of half the fleet that make one turn here: within it, most devices see the effect of the one before."""
_GROWS = 1.3
"""Growth of the reference norm from turn to turn: training noise stays below it."""
_LONG = 8
"""Turns over which slow growth is measured: a change of the data has been learned by then."""
_SWELLS = 1.5
"""Growth of the reference norm over that many turns."""
_LEAST = 2.0**-10
"""Smallest damping factor: learning never stops."""


class GrowthGuard:
    """Observes the reference norm over turns of the fleet (`FleetStatistics.turn`)."""

    def __init__(self) -> None:
        self.damping = 1.0
        """Factor of the server's rate."""
        self._turn = 0
        self._norms: deque[float] = deque(maxlen=_LONG)
        """The reference norms of the last turns."""
        self._grew = self._rested = 0

    def record(self, norm: float, turn: int) -> None:
        """Record the reference norm, if a new turn began."""
        if turn < self._turn + _LENGTH:
            return
        self._turn = turn
        grows = bool(self._norms) and norm > _GROWS * self._norms[-1] > 0
        self._grew, self._rested = (self._grew + 1, 0) if grows else (0, self._rested + 1)
        if self._grew >= _TURNS or self._swells(norm):
            self.damping, self._rested = max(self.damping / 2, _LEAST), 0
        elif self._rested >= _TURNS and self.damping < 1:
            self.damping, self._rested = min(2 * self.damping, 1.0), 0
        self._norms.append(norm)

    def _swells(self, norm: float) -> bool:
        """Whether the norm is well above the mean of the oldest remembered turns, and not below the last ones."""
        if len(self._norms) < _LONG:
            return False
        first, last = list(self._norms)[:_TURNS], list(self._norms)[1 - _TURNS :]
        return norm > _SWELLS * sum(first) / _TURNS > 0 and norm >= max(last)
