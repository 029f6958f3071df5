"""Federated normalisation statistics: each device sends statistics of its own rows, which pool to those of all rows.

A device sends count, mean and sum of squared deviations of each channel and nothing else. Two such triples merge
exactly up to rounding (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983), so the pooled
mean and standard deviation are those of all rows together, without any row having left its device.

Missing are NaN, infinity, and values beyond float32, in which the models compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from midge.wire.errors import WireError
from midge.wire.frames import Buffer

BYTES_PER_CHANNEL: Final = 24
"""An int64 count, a float64 mean, a float64 sum of squares."""
MAX_COUNT: Final = 2**40
"""Most values of one channel that one device can claim; eight million such claims still add up within int64."""
MAX_VALUE: Final = float(np.finfo(np.float32).max)
SENTINEL: Final = 1e30
"""No sensor measures beyond it: larger values, such as ±3.4e38, stand for missing ones."""
CONSTANT: Final = float(np.finfo(np.float32).eps)
"""A spread below this share of the mean is lost in float32: the channel counts as constant."""

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations from the mean, each of shape (channels,).

    Examples:
        >>> one, other = midge.Moments.of([[1.0], [3.0]]), midge.Moments.of([[5.0]])
        >>> one.merge(other).mean.tolist()
        [3.0]
    """

    count: Counts
    mean: Values
    m2: Values

    @classmethod
    def of(cls, rows: npt.ArrayLike) -> "Moments":
        """The moments of rows of shape (n, channels); missing values are left out, channel by channel.

        Raises:
            ValueError: `rows` is not two-dimensional.
        """
        values = np.asarray(rows, np.float64)
        if values.ndim != 2:
            raise ValueError(f"moments are taken of rows of shape (n, channels), not of shape {values.shape}")
        present = np.abs(values) <= MAX_VALUE
        count = np.count_nonzero(present, axis=0).astype(np.int64)
        mean = np.sum(values, axis=0, where=present) / np.maximum(count, 1)
        deviations = np.subtract(values, mean, out=np.zeros_like(values), where=present)
        return cls(count, mean, np.einsum("nc,nc->c", deviations, deviations))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the rows of both."""
        return pool((self, other))

    def scale(self) -> Values:
        """Standard deviations of shape (channels,); 1 for a channel that is constant or has no values."""
        deviation = np.sqrt(self.m2 / np.maximum(self.count, 1))
        floor = np.maximum(CONSTANT * np.abs(self.mean), np.finfo(np.float32).tiny)
        return np.where(deviation > floor, deviation, 1.0)

    def to_bytes(self) -> bytes:
        """All counts, then all means, then all sums of squares; little-endian, `BYTES_PER_CHANNEL` a channel."""
        return self.count.astype("<i8").tobytes() + self.mean.astype("<f8").tobytes() + self.m2.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: Buffer, channels: int) -> "Moments":
        """Read a device's moments.

        Raises:
            WireError: the length is wrong, or no rows can have these moments.
        """
        if len(data) != channels * BYTES_PER_CHANNEL:
            raise WireError(
                f"moments of {channels} channels take {channels * BYTES_PER_CHANNEL} bytes, not {len(data)}"
            )
        count = np.frombuffer(data, "<i8", channels).astype(np.int64)
        mean, m2 = np.frombuffer(data, "<f8", offset=8 * channels).astype(np.float64).reshape(2, channels)
        if np.any(count < 0) or np.any(count > MAX_COUNT):
            raise WireError(f"a count of the moments is not within 0 and {MAX_COUNT}")
        if not np.all(np.abs(mean) <= MAX_VALUE):
            raise WireError("a mean of the moments is not finite, or beyond float32")
        # No deviation from a mean within the range can exceed twice the range.
        if not np.all((m2 >= 0) & (m2 <= count * (2 * MAX_VALUE) ** 2)):
            raise WireError("a sum of squares of the moments is negative, not finite, or too large for its count")
        if np.any((count == 0) & (mean != 0)):
            raise WireError("the moments give a mean without a value")
        return cls(count, mean, m2)


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together, in two passes: the order of the parts affects only rounding.

    Raises:
        ValueError: there is no part, or they differ in channels.
    """
    if not parts:
        raise ValueError("there are no moments to pool")
    if len({part.count.shape for part in parts}) != 1:
        raise ValueError("moments of different numbers of channels do not pool")
    counts = np.stack([part.count for part in parts])
    means = np.stack([part.mean for part in parts])
    count = counts.sum(axis=0)
    # Weights first: count times mean could exceed float64's exact integers; shares of 1 cannot.
    mean = np.sum(means * (counts / np.maximum(count, 1)), axis=0)
    deviations = means - mean
    return Moments(count, mean, np.sum([part.m2 for part in parts], axis=0) + np.sum(counts * deviations**2, axis=0))
