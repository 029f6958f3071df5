"""Notice updates that grow from turn to turn of the fleet, and damp the server's rate until they stop growing.

A step that is too large for the fleet's delays makes the next updates longer than the last, without end: the loop of
`aggregator.core.gain_margin` beyond its gain. A change of the world makes them longer once, and then shorter as it is
learned. So growth counts if it goes on for several turns, or if the updates are longer than long ago and still do not
fall: a swing near the edge of stability, which liars can drive, grows by a few per cent in a turn. The rate is halved
then, and doubled again after as many turns without growth.
"""

from collections import deque

_TURNS = 3
"""Turns in a row that make it growth: a change of the world takes one or two until every device has seen it."""
_LENGTH = 2
"""Turns of half the fleet that make one here: in it, most devices have seen what the one before has done."""
_GROWS = 1.3
"""Factor of the reference norm from turn to turn: training noise stays below it."""
_LONG = 8
"""Turns in which a swell is noticed: a change of the world has been learned by then."""
_SWELLS = 1.5
"""Factor of the reference norm over that many turns."""
_LEAST = 2.0**-10
"""Of the rate, that damping leaves: learning never stops."""


class GrowthGuard:
    """Follows the reference norm over turns of the fleet (`FleetStatistics.turn`)."""

    def __init__(self) -> None:
        self.damping = 1.0
        """What the rate is multiplied by."""
        self._turn = 0
        self._norms: deque[float] = deque(maxlen=_LONG)
        """The reference norms of the last turns."""
        self._grew = self._rested = 0

    def saw(self, norm: float, turn: int) -> None:
        """Look at the reference norm in a turn."""
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
        """Whether it is well above the mean of the first turns that are remembered, and not below the last ones."""
        if len(self._norms) < _LONG:
            return False
        first, last = list(self._norms)[:_TURNS], list(self._norms)[1 - _TURNS :]
        return norm > _SWELLS * sum(first) / _TURNS > 0 and norm >= max(last)
