"""The virtual clock: an event queue."""

import heapq
from collections.abc import Callable

Work = Callable[[], None]


class Clock:
    """Virtual time in seconds from 0. Events due at the same time run in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self.events = 0
        """Number of events so far."""
        self._queue: list[tuple[float, int, Work]] = []
        self._order = 0

    def at(self, time: float, work: Work) -> None:
        """Schedule work at a time, or now if that has passed."""
        self._order += 1
        heapq.heappush(self._queue, (max(time, self.now), self._order, work))

    def after(self, seconds: float, work: Work) -> None:
        """Schedule work after a delay."""
        self.at(self.now + seconds, work)

    def stop(self) -> None:
        """Make `run` return after the current event."""
        self.stopped = True

    def run(self, until: float) -> None:
        """Run all events that are due until a time."""
        queue = self._queue
        while queue and queue[0][0] <= until and not self.stopped:
            self.now, _, work = heapq.heappop(queue)
            self.events += 1
            work()
        if not self.stopped:
            self.now = until
