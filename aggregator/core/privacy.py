"""Central differential privacy: a bound on what the published models reveal about one device.

Each step adds Gaussian noise to a sum of clipped deltas, at most one of each device, so one contribution is one use of
the Gaussian mechanism. Uses compose: k of them at noise multiplier z cost as much as one at z/√k. The devices of a step
are no random sample of the fleet, so no amplification by sampling is claimed; instead, the budget limits the number of
contributions of each device. The accounting is that of Google's `dp-accounting`.

The noise is drawn in floating point, from a generator seeded by the operating system; attacks on the last bits of such
noise (Mironov, "On significance of the least significant bits for differential privacy", 2012) are not covered.
"""

import math
from dataclasses import dataclass, field
from functools import cache

MOST = 10_000
"""Most contributions of one device under any budget."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """(ε, δ)-differential privacy of each device's whole data, against everyone who sees the published models.

    Args:
        clip: L2 norm to which a delta is scaled down.
        noise: z, the noise's standard deviation divided by the clip norm.
        epsilon: the budget of each device; training continues while enough devices have some of it left.
        delta: the probability that the guarantee fails; choose it well below one over the number of devices.
    """

    clip: float
    noise: float
    epsilon: float
    delta: float = 1e-5
    contributions: int = field(init=False)
    """Number of updates of one device that the budget allows."""

    def __post_init__(self) -> None:
        """Compute the number of contributions.

        Raises:
            ValueError: a value is out of range, or the budget is too small for one contribution.
            ModuleNotFoundError: dp-accounting is not installed.
        """
        if not (0 < self.clip < float("inf") and 0 < self.noise < float("inf")):
            raise ValueError("privacy: the clip norm and the noise multiplier must be above 0.")
        if not self.epsilon > 0 or not 0 < self.delta < 1:
            raise ValueError("privacy: epsilon must be above 0 and delta between 0 and 1.")
        most = _most(self.noise, self.epsilon, self.delta)
        if most == 0:
            one = spent(self.noise, self.delta, 1)
            raise ValueError(
                f"privacy: one contribution at noise {self.noise:g} costs ε = {one:.3g}, more than the budget of "
                f"{self.epsilon:g}: raise the noise or the budget."
            )
        object.__setattr__(self, "contributions", most)

    def spent(self, contributions: int) -> float:
        """ε after a number of contributions of one device."""
        return spent(self.noise, self.delta, contributions)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each coordinate of a step's sum."""
        return self.noise * self.clip


@cache
def spent(noise: float, delta: float, contributions: int) -> float:
    """ε of k uses of the Gaussian mechanism at noise multiplier z: that of one use at z/√k."""
    if contributions == 0:
        return 0.0
    try:
        from dp_accounting import get_epsilon_gaussian  # noqa: PLC0415 - of the extra `privacy`
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Differential privacy needs dp-accounting: pip install 'midge[privacy]'.", name=error.name
        ) from error
    return float(get_epsilon_gaussian(noise / math.sqrt(contributions), delta))


def _most(noise: float, epsilon: float, delta: float) -> int:
    """The most contributions whose ε is within the budget."""
    if spent(noise, delta, 1) > epsilon:
        return 0
    low, high = 1, 2
    while high < MOST and spent(noise, delta, high) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(noise, delta, middle) <= epsilon else (low, middle)
    return min(low, MOST)
