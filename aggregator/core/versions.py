"""The step and the time of each release: exact for recent versions, thinned out for old ones.

The staleness of an update follows from the step of its base. A fast fleet releases thousands of versions during an
outage of minutes; keeping each one for a week would fill the checkpoints.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from midge.wire.clocks import SANE

_EXACT = 1024
"""Number of newest versions that are all kept."""
_COARSER = 16
"""Of older versions one in 16 is kept, beyond 16 times as many one in 256, and so on: at most 1024 a level."""
_LEVELS = 4
"""The last level covers 1024 · 16³ versions, two days at 25 a second. Older versions are forgotten."""


class Versions:
    """The releases of one generation."""

    def __init__(self) -> None:
        self._numbers: list[int] = [0]
        self._steps: list[int] = [0]
        self._at: list[float] = [0.0]
        """Times as journaled: seconds since 1970, or of virtual time."""
        self._here: list[float] = [0.0]
        """Times by the clock of this process."""
        self.ahead = 0.0
        """Offset in seconds between journaled times and this clock."""

    def __contains__(self, version: int) -> bool:
        return self._numbers[0] <= version <= self._numbers[-1] if self._numbers else False

    def add(self, version: int, step: int, at: float) -> None:
        """Record a release; the first one replaces the initial version 0."""
        if self._numbers == [0]:
            self.clear()
        self._numbers.append(version)
        self._steps.append(step)
        self._at.append(at)
        self._here.append(at - self.ahead)
        if version % _COARSER == 0:
            self._thin(version)

    def _thin(self, newest: int) -> None:
        kept = [place for place, number in enumerate(self._numbers) if _kept(number, newest - number)]
        self._numbers = [self._numbers[place] for place in kept]
        self._steps = [self._steps[place] for place in kept]
        self._at = [self._at[place] for place in kept]
        self._here = [self._here[place] for place in kept]

    def clear(self) -> None:
        """Forget all versions: a new generation begins."""
        self._numbers, self._steps, self._at, self._here = [], [], [], []

    def _place(self, version: int) -> int | None:
        """Index of the newest kept version up to this one: thinning makes an update older, never newer."""
        place = bisect_right(self._numbers, version) - 1
        return place if place >= 0 else None

    @property
    def newest_at(self) -> float:
        """When the newest version was released, in seconds since 1970; 0 if none is remembered."""
        return self._at[-1] if self._at else 0.0

    def step(self, version: int) -> int | None:
        """The step at which a version was released, or slightly earlier if it was thinned out; None if forgotten."""
        place = self._place(version)
        return None if place is None else self._steps[place]

    def age(self, version: int, now: float) -> float:
        """Seconds since a version was released, or slightly more if it was thinned out; 0 if forgotten."""
        place = self._place(version)
        return 0.0 if place is None else max(0.0, now - self._here[place])

    def shift(self, now: float) -> None:
        """Convert the times to another clock, on which it is `now`; the newest version counts as released now.

        The time of an outage must not make updates too old. A clock that was set back leaves no gap between versions,
        nor does one with another origin, as in older stores.
        """
        here = now
        for place in range(len(self._at) - 1, -1, -1):
            self._here[place] = here
            if place and (self._at[place] < SANE) == (self._at[place - 1] < SANE):
                here -= max(0.0, self._at[place] - self._at[place - 1])

    def forget_before(self, version: int) -> None:
        """Forget versions before this one, but never the newest."""
        place = min(bisect_right(self._numbers, version - 1), max(len(self._numbers) - 1, 0))
        del self._numbers[:place], self._steps[:place], self._at[:place], self._here[:place]

    def forget_steps_before(self, step: int) -> None:
        """Forget versions that were released before this step, but never the newest."""
        while len(self._steps) > 1 and self._steps[0] < step:
            del self._numbers[0], self._steps[0], self._at[0], self._here[0]

    @property
    def oldest(self) -> int | None:
        """The oldest kept version; None if there is none."""
        return self._numbers[0] if self._numbers else None

    def dump(self) -> list[list[Any]]:
        """Plain values for `load`."""
        return [list(row) for row in zip(self._numbers, self._steps, self._at, strict=True)]

    def load(self, rows: Iterable[Iterable[Any]]) -> None:
        """Restore from the result of `dump`."""
        self.clear()
        for number, step, at in rows:
            self._numbers.append(number)
            self._steps.append(step)
            self._at.append(at)
            self._here.append(at)


def _kept(number: int, age: int) -> bool:
    """Whether a version of this age, in versions, is kept."""
    span, every = _EXACT, 1
    for _ in range(_LEVELS):
        if age < span:
            return number % every == 0
        span, every = span * _COARSER, every * _COARSER
    return False
