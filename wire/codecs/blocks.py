"""Stages that encode every value, alone or with a scale per block: float32, bfloat16, int8, int4, sign."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midge.wire.codecs.stages import Chance, Quantised, Sizes, inverse, pack, spread, starts, take_floats, unpack
from midge.wire.errors import WireError
from midge.wire.frames import Buffer
from midge.wire.rice import BodyReader
from midge.wire.schema import Vector, Vectors

_AT_ONCE = 2**15
"""Values widened at a time."""
_LARGEST_BFLOAT16 = np.uint16(0x7F7F)


@dataclass(frozen=True, slots=True)
class Float32:
    """Little-endian float32, unchanged."""

    biased = False
    seeded = False
    feedback = False

    def size(self, count: int) -> int:
        return 4 * count

    def encode(self, vector: Vector, sizes: Sizes = (), chance: Chance | None = None) -> bytes:
        return np.ascontiguousarray(vector, dtype="<f4").tobytes()

    def decode(self, data: Buffer, count: int) -> Vector:
        """A new vector of `count` values.

        Raises:
            WireError: there are fewer.
        """
        _expect(data, self.size(count))
        vector = np.empty(count, "<f4")  # a copy of the bytes, because an unaligned view is slow
        if count:
            vector.view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return vector.astype(np.float32, copy=False)

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        return take_floats(reader, sum(sizes))


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of each float32, rounded to nearest, ties to even; the largest value instead of infinity."""

    biased = False
    seeded = False

    def encode(self, vector: Vector, sizes: Sizes = (), chance: Chance | None = None) -> bytes:
        bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
        halves = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
        sign = halves & np.uint16(0x8000)
        kept: bytes = (sign | np.minimum(halves & np.uint16(0x7FFF), _LARGEST_BFLOAT16)).astype("<u2").tobytes()
        return kept

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance | None = None) -> Vector:
        halves = np.frombuffer(reader.take(2 * sum(sizes)), "<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """Blocks of `block` values, each `scale · q` with q in −127 … 127 and scale = max|v| / 127, rounded to nearest.

    The scales come first, then the integers; the last block may be shorter. Scales are float32: in float16 they would
    lose every delta below about 1e-7. A block with a scale of at most 1e-37 has only zeros, because 1 / scale would
    overflow float32. A block with a non-finite value keeps a non-finite scale, so that the decoder can detect it.
    """

    block: int = 256
    biased = False
    seeded = False
    feedback = False

    def size(self, count: int) -> int:
        return 4 * -(-count // self.block) + count

    def encode(self, vector: Vector, sizes: Sizes = (), chance: Chance | None = None) -> bytes:
        rows = _rows(np.asarray(vector, np.float32), self.block)
        scales = np.max(np.abs(rows), axis=1) / np.float32(127)
        if not (finite := np.isfinite(scales)).all():
            rows = np.where(finite[:, None], rows, np.float32(0))
        integers = np.rint(rows * inverse(scales)[:, None])
        np.clip(integers, -127, 127, out=integers)
        integers = integers.astype(np.int8).reshape(-1)[: vector.size]
        return _bytes(scales) + integers.tobytes()

    def decode(self, data: Buffer, count: int) -> Vector:
        """A new vector of `count` values.

        Raises:
            WireError: the bytes are not of that number.
        """
        _expect(data, self.size(count))
        return self.read(BodyReader(memoryview(data)), (count,))

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance | None = None) -> Vector:
        count = sum(sizes)
        scales = take_floats(reader, -(-count // self.block))
        return _scaled(np.frombuffer(reader.take(count), np.int8), scales, self.block)


@dataclass(frozen=True, slots=True)
class Integers:
    """Blocks as in `Int8`, also in 4 bits (q in −7 … 7), with stochastic rounding.

    q = ⌊v / scale + u⌋, u uniform in [0, 1), is unbiased; rounding to nearest is not, which matters in 4 bits. Integers
    are packed with 7 or 8 added.
    """

    bits: Literal[4, 8]
    block: int
    stochastic: bool
    seeded = False

    @property
    def biased(self) -> bool:
        return self.bits < 8 and not self.stochastic

    @property
    def _top(self) -> int:
        return 127 if self.bits == 8 else 7

    def encode(self, vector: Vector, sizes: Sizes, chance: Chance) -> bytes:
        rows = _rows(vector, self.block)
        scales = np.max(np.abs(rows), axis=1) / np.float32(self._top)
        values = (rows * inverse(scales)[:, None]).reshape(-1)[: vector.size]
        if self.stochastic:  # 24 random bits: what float32 can hold below 1
            values += (chance.words(vector.size) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
            np.floor(values, out=values)
        else:
            np.rint(values, out=values)
        np.clip(values, -self._top, self._top, out=values)
        values += np.float32(self._top)
        return _bytes(scales) + pack(values.astype(np.uint8), self.bits)

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        count = sum(sizes)
        scales = take_floats(reader, -(-count // self.block))
        values = unpack(reader, count, self.bits).astype(np.float32)
        values -= np.float32(self._top)
        return _times(_rows(values, self.block), scales, count)


@dataclass(frozen=True, slots=True)
class Sign:
    """Each value as its sign, times the mean magnitude of its block.

    Seide et al., 2014; for top-k values: Sattler, 2019.
    """

    block: int
    biased = True
    seeded = False

    def encode(self, vector: Vector, sizes: Sizes, chance: Chance) -> bytes:
        rows = _rows(np.abs(vector), self.block)
        counts = np.full(len(rows), self.block)
        counts[-1] = vector.size - self.block * (len(rows) - 1)
        return _bytes(rows.sum(axis=1, dtype=np.float64) / counts) + pack((vector < 0).view(np.uint8), 1)

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        count = sum(sizes)
        scales = take_floats(reader, -(-count // self.block))
        signs = np.float32(1) - np.float32(2) * unpack(reader, count, 1)
        return _times(_rows(signs, self.block), scales, count)


@np.errstate(invalid="ignore", over="ignore")  # rows that are not finite, whose bytes are never used
def quantise_each(rows: Vectors, sizes: Sizes) -> Quantised:
    """Quantise each tensor as one block of `Int8`, whatever its size; for small tensors."""
    if not sizes:
        return Quantised(rows, rows, sizes)
    scales = np.maximum.reduceat(np.abs(rows), starts(sizes), axis=1).astype(np.float32, copy=False) / np.float32(127)
    integers: Vectors = rows * spread(inverse(scales), sizes)
    np.rint(integers, out=integers)
    return Quantised(np.clip(integers, -127, 127, out=integers), scales, sizes)


def pack_each(quantised: Quantised, row: int) -> bytes:
    """One row of `quantise_each` as bytes."""
    integers: npt.NDArray[np.int8] = quantised.integers[row].astype(np.int8)
    return _bytes(quantised.steps[row]) + integers.tobytes()


def read_each(reader: BodyReader, sizes: Sizes) -> Vector:
    """The inverse of `pack_each`.

    Raises:
        WireError: the body is too short.
    """
    scales = take_floats(reader, len(sizes))
    integers = np.frombuffer(reader.take(sum(sizes)), np.int8).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return integers * np.repeat(scales, sizes)


def _bytes(scales: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(scales, "<f4").tobytes()


def _times(rows: Vector, scales: Vector, count: int) -> Vector:
    with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for non-finite values
        rows *= scales[:, None]
    return rows.reshape(-1)[:count]


def _scaled(integers: npt.NDArray[np.int8], scales: Vector, block: int) -> Vector:
    """Integers times the scale of their block, in pieces that fit the processor's cache."""
    vector = np.empty(integers.size, np.float32)
    whole = integers.size // block
    rows, wide = integers[: whole * block].reshape(-1, block), vector[: whole * block].reshape(-1, block)
    step = max(1, _AT_ONCE // block)
    with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for non-finite values
        for start in range(0, whole, step):
            some = slice(start, min(start + step, whole))
            wide[some] = rows[some]
            wide[some] *= scales[some, None]
        if whole < scales.size:
            np.multiply(integers[whole * block :], scales[-1], out=vector[whole * block :], dtype=np.float32)
    return vector


def _expect(data: Buffer, size: int) -> None:
    if len(data) != size:
        raise WireError(f"the encoded delta has {len(data)} bytes, not {size}")


def _rows(vector: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """The vector as rows of `block`, the last one padded with zeros; may be a view."""
    padding = -vector.size % block
    return (np.concatenate([vector, np.zeros(padding, vector.dtype)]) if padding else vector).reshape(-1, block)
