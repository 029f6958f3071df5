"""Opening of a sum of masked updates: integers, exact, and what they stand for."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from midge.wire import frames, masking
from midge.wire.masking import Integers, Words
from midge.wire.messages.masking import Dealt, Masking
from midge.wire.schema import Vector

_WIDER = 1.5
"""Times the expected length of the noise that a sum may have."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A sum as journaled with its step."""

    integers: Integers
    """Σ w_i·q_i of the values that the slice covers."""
    scale: float
    """Value of one level."""
    weight: int
    """Σ w_i."""
    slices: int
    part: int
    base: int
    """The oldest base of its updates."""

    @classmethod
    def of(cls, dealt: Dealt, hidden: Words, rows: Iterable[tuple[int, Words]], base: int) -> "Opened":
        """Take the helper's sum of masks away from the sum of the masked updates, given with their weights."""
        total = masking.weighted(rows, hidden.size, dealt.ring)
        return cls(
            masking.unmasked(total, hidden, dealt.ring),
            dealt.scale,
            sum(each.weight for each in dealt.members),
            dealt.slices,
            dealt.part,
            base,
        )

    def pack(self) -> bytes:
        """Bytes for the journal."""
        about = {"scale": self.scale, "weight": self.weight, "slices": self.slices, "part": self.part}
        return frames.encode({**about, "base": self.base}, self.integers.astype("<i4").tobytes())

    @classmethod
    def read(cls, data: frames.Buffer) -> "Opened":
        """The inverse of `pack`."""
        header, body = frames.decode(data)
        return cls(np.frombuffer(body, "<i4").astype(np.int64), **header)

    def delta(self, lineage: bytes, size: int) -> Vector:
        """The weighted mean of the devices' deltas, of shape (size,); 0 outside of the slice."""
        mean = np.zeros(size, np.float32)
        # One factor, then one multiplication of each value: the same bits on any processor.
        factor = np.float32(self.scale / self.weight)
        mean[masking.places(lineage, size, self.slices, self.part)] = factor * self.integers.astype(np.float32)
        return mean

    def factor(self, plan: Masking) -> float:
        """What brings the mean within the longest that devices can make which follow this plan; 1 if it is.

        Rounding adds at most one level to each value of a device, and half a level on average. With noise, the shares
        of K devices have √(K / honest) times its deviation together.
        """
        norm = self.scale / self.weight * float(np.sqrt(np.sum(np.square(self.integers, dtype=np.float64))))
        share = plan.noise / (plan.honest * self.weight) ** 0.5 if plan.noise else 0.0
        longest = plan.clip + self.scale * (1 + _WIDER * share) * self.integers.size**0.5
        return min(1.0, longest / norm) if norm > 0 else 1.0
