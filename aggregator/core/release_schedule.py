"""The schedule of releases, on the channels `train` and `serve`."""

from midge.aggregator.core.release_pacer import ReleasePacer
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy


class ReleaseSchedule:
    """The schedule of one federation. Its own attributes are timers, which restart with the process.

    Args:
        strategy: intervals, and the least number of devices in a release.
        state: the durable state.
        pacer: the pacing by the byte rate.
    """

    def __init__(self, strategy: Strategy, state: CoreState, pacer: ReleasePacer) -> None:
        self._strategy, self._state, self._pacer = strategy, state, pacer
        self.released_at: float | None = None
        self.served_at: float | None = None

    @property
    def releasable(self) -> bool:
        """Whether a release is possible: there are new steps, with the work of enough devices."""
        state, strategy = self._state, self._strategy
        # The work of a single device would be readable from the difference of two versions.
        if strategy.relays or not state.frozen or state.hiding < strategy.release_floor:
            return False
        return state.staleness(state.version) >= strategy.release_every

    @property
    def due(self) -> float | None:
        """When the next release may follow, by the strategy's interval and by the byte rate; None before the first."""
        if self.released_at is None:
            return None
        return max(self.released_at + self._strategy.release_interval, self._pacer.paid)

    def ready(self, now: float) -> bool:
        """Whether a version is to be released now."""
        # The cheaper condition first; it is usually false.
        return self.releasable and ((due := self.due) is None or now >= due)

    @property
    def serve_due(self) -> float | None:
        """When the served model is due for release; None if there is nothing new."""
        interval, state = self._strategy.serve_interval, self._state
        if interval is None or not state.frozen or state.served == state.version:
            return None
        return -1.0 if self.served_at is None else self.served_at + interval
