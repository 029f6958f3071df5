"""Whether the published model still goes anywhere, or only to and fro.

A model that has learned all that its devices know does not stand still: each device pulls it a little towards its own
data. So it is not how far a version is from the last one that counts, but whether the way adds up. Distances from one
version are compared between two windows, of a turn of the fleet each: on a straight way they double or more, on a
random walk they grow by a factor of 1.7, and to and fro they stay. If they stay twice, the second time from a version
that was within the noise, the model is at rest until it is far outside of that noise.
"""

import numpy as np
import numpy.typing as npt

from midge.wire.lineage import State

SHORTEST = 6
"""Versions of a window, at least."""
GROWS = 1.25
"""Factor between the mean distances of two windows from which on the way adds up."""
FAR = 3.0
"""Times the noise that is movement: single versions are at twice of it now and then."""
_SAMPLED = 4096
"""Values that are looked at: their distance is that of all within some per cent."""


class Movement:
    """Follows the versions of one model. Nothing of it is durable: after a restart it is found out again."""

    def __init__(self, size: int) -> None:
        places = np.random.default_rng(0).permutation(size)[:_SAMPLED] if size > _SAMPLED else np.arange(size)
        self._places = np.sort(places)
        self._from: npt.NDArray[np.float64] | None = None
        self._distances: list[float] = []
        self._noise: float | None = None
        """The distance that is usual while nothing moves; None while it does."""
        self._settled = False
        """Whether the way did not add up the last time, from a version that may be far off."""
        self.quiet = 0
        """Versions in a row that were within the noise, since it is known."""

    def follow(self, state: State, turn: int) -> int:
        """Look at a version; how many in a row have moved nothing.

        Args:
            state: what is published.
            turn: versions in which every device has a part.
        """
        values = np.ldexp(state.integers[self._places].astype(np.float64), state.exponent)
        if self._from is None:
            self._from = values
            return 0
        distance = float(np.sqrt(np.mean(np.square(values - self._from))))
        if self._noise is not None:
            if distance > FAR * self._noise:
                self._begin(values)
            else:
                self.quiet += 1
            return self.quiet
        self._distances.append(distance)
        window = max(SHORTEST, 3 * turn)
        if len(self._distances) >= 2 * window:
            before, since = np.mean(self._distances[-2 * window : -window]), np.mean(self._distances[-window:])
            if since > GROWS * before:
                self._begin(values)
            elif self._settled:
                self._noise = max(float(before), float(since))
            else:
                self._begin(values, settled=True)
        return self.quiet

    def _begin(self, values: npt.NDArray[np.float64], *, settled: bool = False) -> None:
        """Measure distances from here."""
        self._from, self._noise, self._settled, self.quiet = values, None, settled, 0
        self._distances.clear()
