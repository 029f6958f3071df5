"""How many local steps a training takes: as many as are worth its journey, and the same for every device.

A training costs its device a journey beside the computing: fetch the model, send the update, wait for the receipt. With
few local steps between two journeys the model follows the data closely; with fewer than the journey is worth, devices
travel more than they learn. So the aggregator asks for steps that compute about twice as long as the journey
takes, in the median over the fleet, and never for more than the devices' own recipe has. Steps that follow each
device's own speed are worse: fast devices then have the most of them, and slow ones the least.
"""

from dataclasses import dataclass

from midge.aggregator.core.fleet_statistics import FleetStatistics

JOURNEYS = 2.0
"""Times the journey that the computing of a training lasts."""
FEWEST = 4
"""With two steps, directions agree too little to tell who is against most: two of twenty devices that lie at their full
rate hold the model at three quarters of what it can be."""
_DEAD_BAND = 1.3
"""The steps stay while they would change by less than this factor: the fleet's delays are measured under them."""


@dataclass(slots=True)
class LocalWork:
    """Follows what trainings and journeys cost. The steps and the recipe are journaled."""

    steps: int | None = None
    """Local steps to announce; None leaves them to the devices' recipes."""
    recipe: int = 0
    """The median number of steps that devices take if they are left to their recipes; 0 is not known yet."""
    turn: int = 0
    """The turn of the fleet in which the steps were last weighed."""

    def weigh(self, fleet: FleetStatistics) -> bool:
        """Weigh the steps again, at most once a turn of the fleet. Whether they have changed."""
        journey, taken = fleet.journey(), round(fleet.steps())
        if journey is None or not taken or fleet.turn == self.turn:
            return False
        self.turn = fleet.turn
        recipe = self.recipe if self.steps else max(self.recipe, taken)
        worth, cost = JOURNEYS * journey, fleet.step_seconds()
        steps = max(round(worth / cost), FEWEST) if worth < cost * recipe and recipe > FEWEST else None
        if 1 / _DEAD_BAND < (steps or recipe) / max(self.steps or recipe, 1) < _DEAD_BAND:
            return False
        self.steps, self.recipe = steps, recipe
        return True
