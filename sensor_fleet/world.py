"""The world that a simulated fleet lives in: for now, how fast each device is."""

import math
import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class World:
    """One seeded value; the same seed gives the same world, whatever is asked of it and in which order."""

    seed: int = 0
    median: float = 0.5
    """Seconds that one training takes on the device in the middle."""
    spread: float = 1.15
    """σ of the logarithm: 1.15 spreads nineteen of twenty devices over two orders of magnitude; 0 makes all alike."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a negative median or spread.
        """
        if self.median < 0 or self.spread < 0:
            raise ValueError("a training takes no negative time: median and spread must be at least 0.")

    def seconds(self, device: str) -> float:
        """How long one training takes on this device, at least. A device keeps its speed."""
        rng = np.random.default_rng([self.seed, zlib.crc32(device.encode())])
        return self.median * math.exp(self.spread * float(rng.standard_normal()))
