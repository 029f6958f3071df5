"""Detection of convergence: whether the published model still moves, or only fluctuates.

A converged model does not stand still: each device pulls it a little towards its own data. So the criterion is not the
distance between consecutive versions, but whether the movement accumulates. Distances from one version are compared
between two windows of at least one turn of the fleet: on a straight path they at least double, on a random walk they
grow by a factor of 1.7, and in a fluctuation they stay the same. If they stay the same twice, the second time from a
version within the noise, the model is at rest until it is far outside of that noise.
"""

import numpy as np
import numpy.typing as npt

from midge.wire.lineage import State

SHORTEST = 6
"""Least versions of a window."""
GROWS = 1.25
"""Ratio of the mean distances of two windows above which the movement accumulates."""
FAR = 3.0
"""Multiple of the noise that counts as movement: single versions sometimes reach twice the noise."""
_SAMPLED = 4096
"""Values in the sample: their mean distance is that of all values within a few per cent."""


class Movement:
    """The movement of one published model. Not durable: after a restart it is measured again."""

    def __init__(self, size: int) -> None:
        places = np.random.default_rng(0).permutation(size)[:_SAMPLED] if size > _SAMPLED else np.arange(size)
        self._places = np.sort(places)
        self._from: npt.NDArray[np.float64] | None = None
        self._distances: list[float] = []
        self._noise: float | None = None
        """The distance of versions at rest; None while the model moves."""
        self._settled = False
        """Whether the last window did not accumulate, though its first version may be far away."""
        self.quiet = 0
        """Number of versions in a row within the noise."""

    def follow(self, state: State, turn: int) -> int:
        """Record a version; return the number of versions in a row within the noise.

        Args:
            state: the published model.
            turn: number of versions in which every device contributes.
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
            # All of them, in two halves: where the turn has become shorter, the last ones alone would look equal.
            half = len(self._distances) // 2
            before, since = np.mean(self._distances[:half]), np.mean(self._distances[half:])
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
