"""The sum of a private step: integers on a grid, each update within the clip norm exactly, and noise on every one.

Differential privacy assumes a sensitivity and a noise that floating point does not have. So each update becomes
integers, cut towards zero, which never lengthens it; its norm is computed without rounding and checked against the clip
norm here, whatever was decided when it was accepted; and the noise, integers too, is on all tensors, because noise on
the covered ones alone would show which these are.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from midge.aggregator.core.records import StepRecord
from midge.wire.schema import Schema, Vector

if TYPE_CHECKING:
    from midge.aggregator.model.reducer import Contribution

_AT_ONCE = 2**16
"""Coordinates that are cut to the grid at a time."""
_LARGEST = 2**30
"""Largest integer of one update; one within the clip norm has at most 2^21."""


def noisy_sum(
    record: StepRecord,
    items: Iterable[tuple[float, "Contribution"]],
    schema: Schema,
    noise: npt.NDArray[np.int32],
) -> Vector:
    """The noisy sum of a step's updates, float32 of shape (size,).

    Args:
        record: of the step; its clip is above 0.
        items: the factor of each update, and the update.
        schema: of the model.
        noise: of shape (size,), in steps of the grid.
    """
    total = noise.astype(np.int64)
    for factor, item in items:
        places = list(schema.covered(item.tensors))
        integers = clipped(item.delta, factor, places, record)
        for place in places:
            total[place] += integers[place]
    # What follows is post-processing, where rounding costs no privacy.
    result: Vector = np.ldexp(total, record.grid).astype(np.float32)
    return result


def clipped(delta: Vector, factor: float, places: Sequence[slice], record: StepRecord) -> npt.NDArray[np.int32]:
    """A delta times its factor on the grid, of an L2 norm of at most the clip norm; 0 outside of the places."""
    steps = math.ldexp(record.clip, -record.grid)
    scale, integers = math.ldexp(factor, -record.grid), np.zeros(delta.size, np.int32)
    while True:
        square = 0
        for place in places:
            for start in range(place.start, place.stop, _AT_ONCE):
                part = slice(start, min(start + _AT_ONCE, place.stop))
                cut = np.trunc(np.clip(np.multiply(delta[part], scale, dtype=np.float64), -_LARGEST, _LARGEST))
                integers[part] = cut
                square += _square(cut)
        if square <= steps**2 * (1 - 2.0**-50):
            return integers
        scale *= steps / math.sqrt(square) * (1 - 2.0**-30)


def _square(cut: npt.NDArray[np.float64]) -> int:
    """The sum of the squares of integers, exactly."""
    whole = cut.astype(np.int64)
    high, low = whole >> 15, whole & (2**15 - 1)
    # Squares of 30 bits overflow 64 bits after eight of them: their halves do not within a block.
    return (int(np.sum(high * high)) << 30) + (int(np.sum(high * low)) << 16) + int(np.sum(low * low))
