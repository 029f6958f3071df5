"""The interface of a stage, and what stages share: reproducible randomness, and integers of a few bits."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from midge.wire.errors import WireError
from midge.wire.rice import BodyReader
from midge.wire.schema import Vector, Vectors

_SMALLEST = np.float32(1e-37)
"""A smaller step stands for zeros: 1 / step would overflow float32."""
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Sizes = tuple[int, ...]
"""How many values of the vector belong to each tensor; none is 0."""


class NonFinite(WireError):
    """A delta contains NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Values of several devices, a row each, as integer multiples of a step for each row and tensor."""

    integers: Vectors
    """Of shape (rows, values), as float32."""
    steps: Vectors
    """Of shape (rows, tensors)."""
    sizes: Sizes

    @property
    def values(self) -> Vectors:
        """The values that a reader decodes."""
        with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for non-finite values
            return self.integers * spread(self.steps, self.sizes)


class Chance:
    """Random bits that both ends can reproduce: the Philox generator (Salmon et al., 2011), keyed by a seed.

    NumPy promises the same raw stream in every version and on every processor.
    """

    def __init__(self, seed: int, stage: int) -> None:
        self._key = seed % 2**64 + (stage << 64)

    @cached_property
    def _philox(self) -> np.random.Philox:
        """Created lazily: most codecs never need it, and it takes longer than decoding a small update."""
        return np.random.Philox(key=self._key)

    def bits(self, count: int) -> Bytes:
        """Zeros and ones."""
        return np.unpackbits(self._raw(-(-count // 64)).view(np.uint8), count=count)

    def words(self, count: int) -> npt.NDArray[np.uint32]:
        """Uniform in 0 … 2³² − 1."""
        return self._raw(-(-count // 2)).view(np.uint32)[:count]

    def _raw(self, count: int) -> npt.NDArray[np.uint64]:
        return self._philox.random_raw(count).astype("<u8", copy=False)


class ValueQuantiser(Protocol):
    """A last stage: values to bytes, possibly lossy."""

    @property
    def biased(self) -> bool:
        """Whether its error is deterministic, so that error feedback helps."""

    @property
    def seeded(self) -> bool:
        """Whether decoding needs the random bits of encoding."""

    def encode(self, vector: Vector, sizes: Sizes, chance: Chance) -> bytes:
        """`vector` is finite, and not empty."""

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        """The inverse.

        Raises:
            WireError: the bytes are not what `encode` makes of that number of values.
        """


class Selection(Protocol):
    """A first stage: selects the values to send, and encodes their places."""

    @property
    def biased(self) -> bool: ...
    @property
    def seeded(self) -> bool: ...

    def encode(self, vector: Vector, chance: Chance) -> tuple[bytes, Vector]:
        """The places of the selected values, as bytes, and those values."""

    def read(self, reader: BodyReader, count: int, chance: Chance) -> Mask:
        """A mask of the selected ones of `count` values.

        Raises:
            WireError: the bytes are not what `encode` makes.
        """

    def scale(self, values: Vector) -> Vector:
        """Rescale the selected values for decoding."""


@lru_cache(maxsize=64)
def starts(sizes: Sizes) -> npt.NDArray[np.intp]:
    """Offset of each tensor; read-only."""
    return np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.intp)]).astype(np.intp)


def spread(steps: Vectors, sizes: Sizes) -> Vectors:
    """The step of each value, from the steps of its row's tensors."""
    return steps if len(sizes) == 1 else np.repeat(steps, sizes, axis=1)


def inverse(steps: Vector) -> Vector:
    """1 / step, and 0 where that would overflow float32: all values of such a step are zero."""
    return np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > _SMALLEST)


def pack(integers: Bytes, width: int) -> bytes:
    """Integers below 2^width as a stream of bits, lowest first; the last byte is padded. Width is 1, 2, 4 or 8."""
    fields = 8 // width
    rows = np.zeros(-(-integers.size // fields) * fields, np.uint8)
    rows[: integers.size] = integers
    packed = rows[::fields].copy()
    for field in range(1, fields):
        packed |= rows[field::fields] << np.uint8(field * width)
    return packed.tobytes()


def unpack(reader: BodyReader, count: int, width: int) -> Bytes:
    """The inverse of `pack`.

    Raises:
        WireError: the body is too short.
    """
    fields = 8 // width
    packed = np.frombuffer(reader.take(-(-count // fields)), np.uint8)
    if width == 1:
        return np.unpackbits(packed, count=count, bitorder="little")
    rows = np.empty((packed.size, fields), np.uint8)
    for field in range(fields):
        np.right_shift(packed, np.uint8(field * width), out=rows[:, field])
    rows &= np.uint8(2**width - 1)
    return rows.reshape(-1)[:count]


def take_floats(reader: BodyReader, count: int) -> Vector:
    """Read `count` float32 values.

    Raises:
        WireError: the body is too short.
    """
    return np.frombuffer(reader.take(4 * count), "<f4").astype(np.float32)
