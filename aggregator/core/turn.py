"""A turn: the time from one release to the next, and whether further updates are to be expected in it.

A device trains once from each version. Once every device that trains has given its update, only another release brings
more of them.
"""

import math

from midge.aggregator.core.participation_controller import ParticipationController
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy

STATUSES = 10.0
"""Seconds after a restart until the number of online devices is believed: their retained statuses arrive one by one."""
SLOWER = 2.0
"""Multiple of what a slow device takes from a version to its update, within which the others are expected."""
SHORTEST, LONGEST = 1.0, 3600.0
"""Least and most seconds for which an update is expected; the most also while it is unknown how long a device takes."""


class Turn:
    """The turn of one federation. Its own attributes restart with the process.

    Args:
        strategy: whether other devices' work must hide a device's.
        state: who has given an update since the last release.
        steering: number of devices that train.
    """

    def __init__(self, strategy: Strategy, state: CoreState, steering: ParticipationController) -> None:
        self._strategy, self._state, self._steering = strategy, state, steering
        self._began = -math.inf
        self.heard_at = 0.0
        """When an update was decoded last."""
        self._refused: set[str] = set()
        self._version = 0
        """The version that they trained from."""

    def begin(self, now: float) -> None:
        """Record the start of the process."""
        self.heard_at = now
        self._began = now if self.given else -math.inf

    def refused(self, device: str, base: int) -> None:
        """Record that a device's update was refused for good: from the same version it sends no other."""
        if base != self._version:
            self._refused, self._version = set(), base
        if base == self._state.version and len(self._refused) < self._steering.online:
            self._refused.add(device)

    @property
    def given(self) -> set[str]:
        """Names of the devices whose work is in no release yet, in a step or before one."""
        state = self._state
        return {name for item in state.buffer for name in item.names} | state.contributors | state.trivial

    @property
    def settled(self) -> set[str]:
        """The same, with those whose update was refused."""
        return self.given | self._refused if self._version == self._state.version else self.given

    @property
    def outstanding(self) -> int:
        """Number of devices that train and have not given their update."""
        return max(self._steering.training - len(self.settled), 0)

    @property
    def over(self) -> bool:
        """Whether no device is expected to give more."""
        return self._steering.training > 0 and self.outstanding == 0 and len(self.given) >= self._strategy.release_floor

    @property
    def over_at(self) -> float:
        """When that is so: at once if all have given, and otherwise after a silence."""
        believed = self._began + STATUSES
        if self.over:
            return believed
        slow = self._state.fleet.slow_answer()
        patience = LONGEST if slow is None else min(max(SLOWER * slow, SHORTEST), LONGEST)
        return max(believed, self.heard_at + patience)
