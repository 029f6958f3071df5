"""The schedule of releases, on the channels `train` and `serve`."""

import math

from midge.aggregator.core.release_pacer import ReleasePacer
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.core.turn import Turn


class ReleaseSchedule:
    """The schedule of one federation. Its own attributes are timers, which restart with the process.

    Args:
        strategy: intervals, and the least number of devices in a release.
        state: the durable state.
        pacer: the pacing by the byte rate.
        turn: whether updates are still expected.
    """

    def __init__(self, strategy: Strategy, state: CoreState, pacer: ReleasePacer, turn: Turn) -> None:
        self._strategy, self._state, self._pacer, self._turn = strategy, state, pacer, turn
        self.released_at: float | None = None
        self.served_at: float | None = None

    @property
    def steps(self) -> int:
        """Number of steps that a release would publish, with the work of enough devices; 0 if there are none."""
        state, strategy = self._state, self._strategy
        # The work of a single device would be readable from the difference of two versions.
        if strategy.relays or not state.frozen or state.hiding < strategy.release_floor:
            return 0
        return state.staleness(state.version)

    @property
    def releasable(self) -> bool:
        """Whether a release is possible: there are enough new steps, with the work of enough devices."""
        return self.steps >= self._strategy.release_every

    @property
    def due(self) -> float | None:
        """When the next release may follow, by the strategy's interval and by the byte rate; None before the first."""
        if self.released_at is None:
            return None
        return max(self.released_at + self._strategy.release_interval, self._pacer.paid)

    @property
    def at(self) -> float | None:
        """When the next version is released; None if that takes another step."""
        if not (steps := self.steps):
            return None
        due = -math.inf if self.due is None else self.due
        # Devices train once from each version: for steps that need more updates than that, no version would ever come.
        return due if steps >= self._strategy.release_every else max(due, self._turn.over_at)

    @property
    def outstanding(self) -> int:
        """Number of devices from which an update is expected before the release."""
        return self._turn.outstanding

    def ready(self, now: float) -> bool:
        """Whether a version is to be released now."""
        return (at := self.at) is not None and now >= at

    @property
    def serve_due(self) -> float | None:
        """When the served model is due for release; None if there is nothing new."""
        interval, state = self._strategy.serve_interval, self._state
        if interval is None or not state.frozen or state.served == state.version:
            return None
        return -1.0 if self.served_at is None else self.served_at + interval
