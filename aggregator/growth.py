"""Notice updates that grow from turn to turn of the fleet, and damp the server's rate until they stop growing.

A step that is too large for the fleet's delays makes the next updates longer than the last, without end: the loop of
`aggregator.margin` beyond its gain. A change of the world makes them longer once, and then shorter as it is learned. So
growth counts only if it goes on for several turns. The rate is halved then, and doubled again after as many turns
without growth.
"""

_TURNS = 3
"""Turns in a row that make it growth: a change of the world takes one or two until every device has seen it."""
_LENGTH = 2
"""Turns of half the fleet that make one here: in it, most devices have seen what the one before has done."""
_GROWS = 1.3
"""Factor of the reference norm from turn to turn: training noise stays below it."""
_LEAST = 2.0**-10
"""Of the rate, that damping leaves: learning never stops."""


class GrowthGuard:
    """Follows the reference norm over turns of the fleet (`FleetStatistics.turn`)."""

    def __init__(self) -> None:
        self.damping = 1.0
        """What the rate is multiplied by."""
        self._turn, self._before = 0, 0.0
        self._grew = self._rested = 0

    def saw(self, norm: float, turn: int) -> None:
        """Look at the reference norm in a turn."""
        if turn < self._turn + _LENGTH:
            return
        self._turn = turn
        grows = self._before > 0 and norm > _GROWS * self._before
        self._before = norm
        self._grew, self._rested = (self._grew + 1, 0) if grows else (0, self._rested + 1)
        if self._grew >= _TURNS:
            self.damping = max(self.damping / 2, _LEAST)
        elif self._rested >= _TURNS and self.damping < 1:
            self.damping, self._rested = min(2 * self.damping, 1.0), 0
