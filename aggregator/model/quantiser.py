"""Quantiser of releases: chooses a sparse step of small integers, with one power-of-two scale for each tensor.

The error of a step stays in x − p and goes into a later one: error feedback at the server, the hidden state of QAFeL
(arXiv:2308.00263). The scale follows from how far x moves between two releases, not from how far p is behind it: a
scale of a few times x − p would keep x − p as large as itself, and p would never come to rest with x.

- The scale of a tensor is the power of two near three and a half times its mean movement, and near seven if updates
  are two versions late or more: p may lag as far as the devices do. Values below three quarters of the scale wait (dead
  zone), so that a fluctuating value is not sent each time.
- The mean covers about sixteen releases, and the scale stays while it is right within an octave: each octave down costs
  a bit of every value, and steps of one scale merge into few bits.
- If devices train from p and x follows them, p may oscillate about its goal, and the movement may be only that
  oscillation. So now and then the scale is tried an octave finer: an oscillation shrinks with it and the scale stays
  down; with noise, it returns.
- Models of up to a thousand values, whose bytes hardly count, are quantised six bits finer.

Bits cannot differ between processors: only scalings by powers of two, rounding, and integer sums decide.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.wire.lineage import HEADROOM, LARGEST, Integers, State
from midge.wire.schema import Vector

_SPREAD, _LATEST = 3.5, 2
"""The scale in multiples of the mean movement, for each version of mean lateness up to the second number; 3.5 is 2.5
times √2, which rounds to the nearest power of two."""
_LAGS = 64
"""Number of updates over which the lateness is averaged, about."""
_MEMORY = 16
"""Number of releases over which the movement is averaged, about."""
_TRY, _HOLD = 64, 16
"""Releases after which a finer scale is tried, and least releases before the scale becomes coarser again."""
_SMALL, _FINER = 1024, 6
"""Most values of a small model, and the bits by which it is quantised finer."""


@dataclass(slots=True)
class Scale:
    """The scale of one tensor."""

    movement: int
    """The mean over releases of Σ|movement|, in grid units, times `_MEMORY`."""
    shift: int
    """The scale is 2^shift grid units."""
    held: int = 0
    """Releases since it changed."""


class Quantiser:
    """The quantiser of one lineage on one grid."""

    def __init__(self) -> None:
        self._left: npt.NDArray[np.int32] | None = None
        """x − p after the last release, in grid units."""
        self._scales: dict[int, Scale] = {}
        self._lag = _LAGS
        """Mean number of versions that updates are late, times `_LAGS`."""

    def late(self, versions: Iterable[int]) -> None:
        """Record the lateness of applied updates, in versions."""
        for lag in versions:
            self._lag += min(max(lag, 0), 2 * _LATEST) - self._lag // _LAGS

    @property
    def _spread(self) -> float:
        return _SPREAD * min(max(self._lag / _LAGS, 1.0), float(_LATEST))

    def begin(self, x: Vector, state: State) -> None:
        """Start at a keyframe."""
        self._left = _narrow(_behind(x, state))
        self._scales.clear()

    def step(self, x: Vector, state: State) -> Integers | None:
        """The step that takes a state near the exact model.

        None if the state would leave its grid: then the next release is a snapshot on a coarser one.

        Raises:
            ValueError: the exact model is not finite.
        """
        if not np.isfinite(x).all():
            raise ValueError("the exact model is not finite")
        if x.size and float(np.max(np.abs(x))) >= 2.0 ** (HEADROOM + state.exponent):
            return None
        left = _behind(x, state)
        before = np.zeros(x.size, np.int32) if self._left is None else self._left
        step = np.zeros(x.size, np.int32)
        for index, tensor, place in state.schema.shared:
            if tensor.role == "averaged":  # exact on the grid; float32 would round x − p
                exact = np.rint(np.ldexp(x[place], -state.exponent)).astype(np.int64) - state.integers[place]
                step[place] = np.clip(exact, -LARGEST, LARGEST)
            elif tensor.size:
                moved = int(np.abs(np.rint(left[place]).astype(np.int64) - before[place]).sum())
                finer = _FINER if x.size <= _SMALL else 0
                step[place] = _rounded(left[place], max(0, self._shift(index, moved, tensor.size) - finer))
        self._left = _narrow(left - step)
        return step

    def _shift(self, index: int, moved: int, size: int) -> int:
        """The scale of a tensor, as a power of two of grid units, from the summed movement of its values."""
        scale = self._scales.get(index)
        if scale is None:
            scale = self._scales[index] = Scale(_MEMORY * moved, _octave(_MEMORY * moved, size, self._spread))
            return scale.shift
        scale.movement += moved - scale.movement // _MEMORY
        scale.held += 1
        right = _octave(scale.movement, size, self._spread)
        if abs(right - scale.shift) > 1 or (right != scale.shift and _beyond(scale, size, self._spread)):
            if right < scale.shift or scale.held >= _HOLD:
                scale.shift, scale.held = right, 0
        elif scale.held >= _TRY and scale.shift:
            scale.shift, scale.held = scale.shift - 1, 0
        return scale.shift

    # ---------------------------------------------------------------- checkpoints

    def dump(self) -> tuple[dict[str, npt.NDArray[Any]], list[list[int]]]:
        """Arrays and plain values for `load`."""
        arrays = {} if self._left is None else {"left": self._left}
        scales = [[index, scale.movement, scale.shift, scale.held] for index, scale in self._scales.items()]
        return arrays, [[self._lag], *scales]

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[Any]], scales: list[list[int]]) -> "Quantiser":
        """Restore from the result of `dump`."""
        quantiser = cls()
        quantiser._left = np.array(arrays["left"], np.int32) if "left" in arrays else None
        (quantiser._lag,), *rows = scales
        quantiser._scales = {index: Scale(*rest) for index, *rest in rows}
        return quantiser


def _behind(x: Vector, state: State) -> Vector:
    """How far p is behind x, in grid units."""
    left: Vector = np.ldexp(x - state.values(), -state.exponent)
    return left


def _narrow(left: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    # float32 has no 2^31 − 1: larger values become the largest float32 below 2^31
    return np.rint(np.clip(left.astype(np.float64), -LARGEST, LARGEST)).astype(np.int32)


def _octave(movement: int, size: int, spread: float) -> int:
    """The power of two near the scale for a movement."""
    return min(max(0, math.frexp(spread * (movement / (_MEMORY * size)))[1] - 1), 30)


def _beyond(scale: Scale, size: int, spread: float) -> bool:
    """Whether the scale is off by an octave or more."""
    exact = spread / math.sqrt(2) * (scale.movement / (_MEMORY * size))
    return not 2.0 ** (scale.shift - 1) < exact < 2.0 ** (scale.shift + 1)


def _rounded(left: Vector, shift: int) -> npt.NDArray[np.int64]:
    """Multiples of 2^shift near these values, in grid units; 0 inside the dead zone."""
    multiples = np.rint(np.ldexp(left, -shift)).astype(np.int64)
    if shift:
        multiples[np.abs(left) < np.float32(0.75 * 2.0**shift)] = 0
    return np.clip(multiples, -(LARGEST >> shift), LARGEST >> shift) << shift
