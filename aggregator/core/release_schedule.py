"""When a version is released for training, and when one for use."""

from midge.aggregator.core.release_pacer import Thrift
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.strategy import Strategy


class ReleaseSchedule:
    """Of one federation. What it holds itself are timers, which a restart starts over.

    Args:
        strategy: how often, and of how many devices' work.
        state: what is remembered.
        thrift: when the byte rate has paid for the last release.
    """

    def __init__(self, strategy: Strategy, state: CoreState, thrift: Thrift) -> None:
        self._strategy, self._state, self._thrift = strategy, state, thrift
        self.released_at: float | None = None
        self.served_at: float | None = None

    @property
    def releasable(self) -> bool:
        """Whether there is enough to release: steps, and the work of several devices."""
        state, strategy = self._state, self._strategy
        if not state.frozen or len(state.contributors) < strategy.release_floor:
            return False  # with fewer, a version would show what one device has learned
        return state.staleness(state.version) >= strategy.release_every

    @property
    def due(self) -> float | None:
        """When the next release may be: as asked, and so that its bytes stay within the rate; None before the first."""
        if self.released_at is None:
            return None
        return max(self.released_at + self._strategy.release_interval, self._thrift.paid)

    def ready(self, now: float) -> bool:
        """Whether a version is to be released now."""
        # What there is to release is looked at first: it is the cheaper question, and mostly answered with no.
        return self.releasable and ((due := self.due) is None or now >= due)

    @property
    def serve_due(self) -> float | None:
        """When there is something new to release for use; None if there is nothing."""
        interval, state = self._strategy.serve_interval, self._state
        if interval is None or not state.frozen or state.served == state.version:
            return None
        return -1.0 if self.served_at is None else self.served_at + interval
