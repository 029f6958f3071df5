"""Virtual time and chance: everything that happens in a simulated federation happens in one seeded order."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Work = Callable[[], None]


class PowerCut(BaseException):
    """A process is gone, here and now. Nothing in the code under test may catch it."""


@dataclass
class Faults:
    """What the world does to messages and processes. The default does nothing."""

    loss: float = 0.0
    """The chance that a message does not arrive."""
    twice: float = 0.0
    """The chance that it arrives again, later."""
    delay: float = 0.05
    """Seconds that a message takes at most; each its own, so that they overtake each other."""
    crash: float = 0.0
    """The chance that a process ends between two of its actions."""
    link: float = 0.0
    """The chance that a device's connection breaks when it sends something."""


class Kernel:
    """A clock that jumps from one event to the next."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.faults = faults or Faults()
        self._queue: list[tuple[float, int, Work]] = []
        self._order = itertools.count()

    def after(self, seconds: float, work: Work) -> None:
        """Do something later."""
        heapq.heappush(self._queue, (self.now + max(0.0, seconds), next(self._order), work))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def crash_point(self) -> None:
        """Between two actions of a process.

        Raises:
            PowerCut: it ends here.
        """
        if self.chance(self.faults.crash):
            raise PowerCut

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Go on until a time, or until something is so; whether it was."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, work = heapq.heappop(self._queue)
            work()
            if done():
                return True
        self.now = until
        return done()
