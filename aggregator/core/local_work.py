"""The number of local steps of a training: as many as are worth the round trip, and the same for every device.

Beside its computation, a training costs a round trip: fetch the model, send the update, wait for the receipt. With few
local steps between round trips the model follows the data closely; with too few, devices communicate more than they
learn. So the aggregator requests as many steps as compute for about twice the round trip, in the median over the fleet,
and never more than the devices' own recipe has. Steps by each device's own speed are worse: fast devices would make
most of them, and slow ones the fewest.
"""

from dataclasses import dataclass

from midge.aggregator.core.fleet_statistics import FleetStatistics

ROUND_TRIPS = 2.0
"""Duration of a training's computation, in round trips."""
FEWEST = 4
"""With two steps, the directions of honest updates agree too little to identify opposing devices: two liars among
twenty devices, at their full rate, hold the model at three quarters of its accuracy."""
_DEAD_BAND = 1.3
"""Least factor by which the steps change: the fleet's delays were measured with the current number."""


@dataclass(slots=True)
class LocalWork:
    """The number of local steps to announce. The steps and the recipe are journaled."""

    steps: int | None = None
    """Local steps to announce; None leaves them to the devices' recipes."""
    recipe: int = 0
    """The median number of steps in the devices' recipes; 0 if unknown."""
    turn: int = 0
    """The turn of the fleet in which the steps were last computed."""

    def weigh(self, fleet: FleetStatistics) -> bool:
        """Recompute the steps, at most once a turn of the fleet; return whether they changed."""
        round_trip, taken = fleet.round_trip(), round(fleet.steps())
        if round_trip is None or not taken or fleet.turn == self.turn:
            return False
        self.turn = fleet.turn
        recipe = self.recipe if self.steps else max(self.recipe, taken)
        worth, cost = ROUND_TRIPS * round_trip, fleet.step_seconds()
        steps = max(round(worth / cost), FEWEST) if worth < cost * recipe and recipe > FEWEST else None
        if 1 / _DEAD_BAND < (steps or recipe) / max(self.steps or recipe, 1) < _DEAD_BAND:
            return False
        self.steps, self.recipe = steps, recipe
        return True
