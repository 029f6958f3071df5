"""The worlds of `benchmarks.learning`: speeds and failures. The median device trains in 1 s."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.world import World


@dataclass(frozen=True, slots=True)
class Conditions:
    """A world. A device keeps its speed."""

    name: str
    spread: float
    """σ of the logarithm of training durations."""
    correlated: bool = False
    """Whether the slow half of the devices holds other data than the fast half."""
    online: float = 0.0
    offline: float = 0.0
    """Mean seconds that a link works and stays broken; 0 never breaks."""
    jitter: float = 0.0
    """σ of the same between trainings of a device. Synchronous rounds have none."""
    overhead: float = 0.0
    """L: seconds added to each training. The median device computes for 1 s."""
    half_normal: bool = False
    """Whether durations are |N(0, 1)| over its median, plus a twentieth: as in FedBuff's experiments."""

    def world(self, seed: int) -> World:
        calm = World(seed=seed, median=1.0, spread=0.0).calm()
        return World(
            **{**{name: getattr(calm, name) for name in calm.__slots__}, "online": self.online, "offline": self.offline}
        )

    def speeds(self, seed: int, slow: Sequence[bool]) -> npt.NDArray[np.float64]:
        """Seconds of one training of each device; the slow half takes the upper half of them."""
        rng = np.random.default_rng((seed, 2))
        count = len(slow)
        # Quantiles rather than draws, so that small fleets have the world's spread too. The order is random.
        places = (np.arange(count) + 0.5) / count
        seconds = np.exp(self.spread * np.array([NormalDist().inv_cdf(place) for place in places]))
        if self.half_normal:
            seconds = 0.05 + np.array([NormalDist().inv_cdf((1 + place) / 2) for place in places]) / 0.6745
        fast = int(count - sum(slow))
        found = np.empty(count)
        mask = np.array(slow)
        found[~mask] = rng.permutation(seconds[:fast])
        found[mask] = rng.permutation(seconds[fast:])
        return found


WORLDS = {
    world.name: world
    for world in (
        Conditions("lockstep", 0.0),
        Conditions("jittered", 0.0, jitter=0.3),
        Conditions("even", 0.6),
        Conditions("uneven", 1.2),
        Conditions("wild", 1.8),
        Conditions("correlated", 1.2, correlated=True),
        Conditions("correlated L=0.05", 1.2, correlated=True, overhead=0.05),
        Conditions("correlated L=0.25", 1.2, correlated=True, overhead=0.25),
        Conditions("correlated wild", 1.8, correlated=True),
        Conditions("half-normal", 0.0, half_normal=True),
        Conditions("gaps", 1.2, correlated=True, online=10.0, offline=5.0),
    )
}
