"""Counter-based random numbers: a pure function of key and index, independent of call order.

The numbers are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014), each computed on its own.
"""

from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIXING: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST: Final = np.uint64(31)
_BITS: Final = 53
"""Random bits of a number: the precision of a float."""
_SURPLUS: Final = np.uint64(64 - _BITS)


def key(*words: Any) -> int:
    """A key for a sequence of words."""
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "little")


def uniform(of: int, places: npt.ArrayLike) -> Floats:
    """Numbers in [0, 1), of the shape of `places`."""
    bits = np.array(places, np.int64).view(np.uint64)
    bits *= _GAMMA
    bits += np.uint64(of)
    for shift, factor in _MIXING:
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> _LAST
    bits >>= _SURPLUS
    return bits.astype(np.float64) * 2.0**-_BITS


def normal(of: int, places: npt.ArrayLike) -> Floats:
    """Standard normal numbers, of the shape of `places` (Box and Muller, 1958)."""
    at = np.asarray(places, np.int64)
    radius = np.sqrt(-2 * np.log1p(-uniform(of, 2 * at)))
    found: Floats = radius * np.cos(2 * np.pi * uniform(of, 2 * at + 1))
    return found


def draw(*words: Any) -> float:
    """One number in [0, 1), determined by words."""
    return (key(*words) >> (64 - _BITS)) / 2.0**_BITS


def smooth(of: int, times: npt.ArrayLike, period: float) -> Floats:
    """A smooth standard normal process: drawn about once a period, and interpolated."""
    at = np.asarray(times, np.float64) / period
    before = np.floor(at)
    share = at - before
    share = share * share * (3 - 2 * share)
    first = before.astype(np.int64)
    mixed = (1 - share) * normal(of, first) + share * normal(of, first + 1)
    found: Floats = mixed / np.sqrt(share**2 + (1 - share) ** 2)  # keeps the variance constant between the nodes
    return found
