"""Central differential privacy: a bound on what the published models reveal about one device.

Each step adds noise to a sum of clipped deltas, at most one of each device, so one contribution is one use of the
Gaussian mechanism. The sum is one of integers: each delta is scaled down to the clip norm and cut to a grid, towards
zero, so that its norm is at most the clip norm exactly (`aggregator.model.noisy_sum`). The noise is a Gaussian rounded
to the grid, on all tensors, whether an update covers them or not (`wire.noise`): that is the Gaussian mechanism with a
rounded result. All that follows (division, rate, optimiser, quantisation, averages) is post-processing too.

**What is protected** (adjacency): two federations are neighbours if they differ in the content of all updates of one
device, which in one of them are zeros. Everything else of its messages is the same: that they are sent and when, their
base, tensors and size. To replace a device's data by other data, instead of zeros, moves a sum by up to twice the clip
norm, and costs 4ρ in place of ρ, about twice the ε. An owner of several devices is protected as a whole if
`owner_devices` says how many one owner has at most: m of them in the same steps cost m²·ρ.

**Accounting**: a contribution at noise multiplier z costs ρ = 1/2z². ρ adds up over contributions, also of different z
(`privacy_ledger`), and Gaussian mechanisms that cost ρ together are one with µ = √(2ρ), whose ε at a δ is known. The
devices of a step are no random sample of the fleet, so no amplification by sampling is claimed; instead, the budget
limits the contributions of each device.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from midge.wire import masking, noise
from midge.wire.field_checks import Count, Range, Unlimited, Whole, check_fields

MOST = 10_000
"""Most contributions of one device under any budget."""
_GRID = 20
"""Binary logarithm of the grid's steps in the clip norm, at least: with 16 million parameters, a typical coordinate of
a clipped delta has 256 of them."""
_LEAST = 0.001
"""Least noise multiplier: the noise is Gaussian from 256 steps of the grid on."""
_NOISY = 64.0
"""Noise multiplier above which the grid is as coarse as the noise allows: the noise of a step fits 32 bits."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """(ε, δ)-differential privacy of each device's whole data, against everyone who sees the published models.

    Neighbouring federations differ in one owner's devices, whose updates are zeros in one of them.

    Args:
        clip: L2 norm to which a delta is scaled down.
        noise: z, the noise's standard deviation divided by the clip norm.
        epsilon: the budget of each device; training continues while enough devices have some of it left.
        delta: the probability that the guarantee fails; choose it well below one over the number of devices.
        owner_devices: number of devices that one owner has at most.
        honest: if the devices add the noise, the fewest in a sum that add their share and disclose it to none; with 0,
            the aggregator adds it. The preset `secure` sets it.

    Examples:
        >>> midge.Privacy(clip=1.0, noise=4.0, epsilon=8.0).contributions
        44
    """

    clip: Annotated[float, Range(ge=2.0**-60, le=2.0**60)]
    noise: Annotated[float, Range(ge=_LEAST)]
    epsilon: Unlimited
    delta: Annotated[float, Range(gt=0, lt=1)] = 1e-5
    owner_devices: Count = 1
    honest: Whole = 0
    contributions: int = field(init=False)
    """Number of updates of one device that the budget allows."""

    def __post_init__(self) -> None:
        """Compute the number of contributions.

        Raises:
            ValueError: a value is out of range, or the budget is too small for one contribution.
        """
        check_fields(self, "privacy")
        if self.honest and self._shared() > self.rho * (1 + 1e-9):
            raise ValueError(f"privacy: {self.honest} shares of noise {self.noise:g} are too coarse: raise the noise.")
        most = self._most()
        if most == 0:
            raise ValueError(
                f"privacy: one contribution at noise {self.noise:g} costs ε = {self.spent(1):.3g}, more than the "
                f"budget of {self.epsilon:g}: raise the noise or the budget."
            )
        object.__setattr__(self, "contributions", most)

    @property
    def rho(self) -> float:
        """ρ of one contribution of one device."""
        return noise.gaussian_rho(1.0, self.noise)

    def _shared(self) -> float:
        """ρ of one contribution, if devices add the noise: it exceeds `rho` if their shares are coarse."""
        levels = masking.NOISY_LEVELS
        return noise.shared_rho(levels, levels * self.noise, self.honest)

    def spent(self, contributions: int) -> float:
        """ε after a number of contributions of one device, and of each of its owner's other devices."""
        return self.epsilon_of(contributions * self.rho)

    def epsilon_of(self, rho: float) -> float:
        """ε of an owner's devices, each of which has spent ρ."""
        # A sum of discrete Gaussians is accounted for in zCDP; a rounded Gaussian, exactly.
        epsilon = noise.zcdp_epsilon if self.honest else noise.gaussian_epsilon
        return epsilon(self.owner_devices**2 * rho, self.delta)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each coordinate of a step's sum."""
        return self.noise * self.clip

    @property
    def grid(self) -> int:
        """Binary logarithm of the step of the grid on which sums and noise are integers."""
        return math.frexp(self.clip * max(1.0, self.noise / _NOISY))[1] - 1 - _GRID

    def _most(self) -> int:
        """The most contributions whose ε is within the budget."""
        low, high = 0, MOST + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.spent(middle) <= self.epsilon else (low, middle)
        return low


def spent(noise_multiplier: float, delta: float, contributions: int) -> float:
    """ε of k uses of the Gaussian mechanism at noise multiplier z: that of one use at z/√k."""
    return noise.gaussian_epsilon(contributions * noise.gaussian_rho(1.0, noise_multiplier), delta)


def arguments(privacy: Privacy | None) -> dict[str, Any] | None:
    """The arguments of a `Privacy`, by name; None if there is none."""
    return (
        None if privacy is None else {each.name: getattr(privacy, each.name) for each in fields(privacy) if each.init}
    )
