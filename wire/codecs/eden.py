"""EDEN: a random rotation, then few bits per value, near optimal for any vector after the rotation.

Vargaftik et al., ICML 2022 (arXiv:2108.08842); with one bit DRIVE, NeurIPS 2021 (arXiv:2105.08339). Blocks of 1,024
values are rotated by z = H·diag(σ)·v, with H the orthonormal Walsh-Hadamard matrix and σ random signs. Then z is nearly
normal, and each coordinate is rounded to the nearest level of the Lloyd-Max quantiser for N(0, 1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from midge.wire.codecs.stages import Chance, NonFinite, Sizes, pack, take_floats, unpack
from midge.wire.rice import BodyReader
from midge.wire.schema import Vector

BLOCK: Final = 1024
_AT_ONCE: Final = 64
"""Rows rotated together: they stay in a processor's cache."""
LEVELS: Final = {
    1: (0.79788,),
    2: (0.45278, 1.51042),
    4: (0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259),
}
"""The positive levels of the Lloyd-Max quantiser for N(0, 1), by bits."""


@dataclass(frozen=True, slots=True)
class Eden:
    """Unbiased by a scale S = |z|² / ⟨q, z⟩ for each block; with `least`, least error by S = ⟨q, z⟩ / |q|².

    The latter is for error feedback. The last block is padded with zeros to a power of two, 1,024 at most. A block of
    zeros has the scale 0.
    """

    bits: Literal[1, 2, 4]
    least: bool
    seeded = True

    @property
    def biased(self) -> bool:
        return self.least

    def encode(self, vector: Vector, sizes: Sizes, chance: Chance) -> bytes:
        levels = _levels(self.bits)
        thresholds = (levels[1:] + levels[:-1]) / 2
        pieces = []
        for start, rows, width in _runs(vector.size):
            block = np.zeros(rows * width, np.float32)
            values = vector[start : start + rows * width]
            block[: values.size] = values
            matrix = block.reshape(rows, width)
            matrix *= _signs(chance, matrix.shape)
            largest = np.max(np.abs(matrix), axis=1, keepdims=True)  # so that no square overflows float32
            largest[largest < np.float32(1e-37)] = np.inf
            z = hadamard(matrix / largest)
            squares = np.einsum("ij,ij->i", z, z, dtype=np.float64)
            norms = np.sqrt(squares / width)
            unit = z * (1 / np.where(norms > 0, norms, 1)).astype(np.float32)[:, None]
            index = np.searchsorted(thresholds, unit.reshape(-1)).astype(np.uint8)
            q = levels[index].reshape(rows, width)
            with np.errstate(divide="ignore", invalid="ignore"):
                products = np.einsum("ij,ij->i", q, z, dtype=np.float64)
                scales = products / np.einsum("ij,ij->i", q, q, dtype=np.float64) if self.least else squares / products
            scales = np.where(squares > 0, scales * np.where(np.isinf(largest), 0, largest)[:, 0] / width, 0)
            # z and H·q are both √width too long without normalisation: hence the division by the width
            pieces.append(scales.astype("<f4").tobytes() + pack(index, self.bits))
        return b"".join(pieces)

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        count = sum(sizes)
        levels = _levels(self.bits)
        fields = 8 // self.bits
        pieces = [
            (start, width, take_floats(reader, rows), reader.take(-(-rows * width // fields)))
            for start, rows, width in _runs(count)
        ]
        # Rotations are expensive: what is too long or not finite is refused before the first.
        reader.end()
        if not all(np.isfinite(scales).all() for _, _, scales, _ in pieces):
            raise NonFinite("a scale of the delta is NaN or infinite")
        vector = np.empty(count, np.float32)
        for start, width, scales, packed in pieces:
            for row in range(0, scales.size, _AT_ONCE):
                some = scales[row : row + _AT_ONCE]
                fields_of = BodyReader(packed[row * width // fields :])
                matrix = hadamard(levels[unpack(fields_of, some.size * width, self.bits)].reshape(-1, width))
                with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for non-finite values
                    matrix *= some[:, None]
                matrix *= _signs(chance, matrix.shape)
                place = vector[start + row * width : start + (row + some.size) * width]
                place[:] = matrix.reshape(-1)[: place.size]
        return vector


def hadamard(rows: Vector) -> Vector:
    """Each row times the Walsh-Hadamard matrix of ±1, in Sylvester's order. The width is a power of two.

    Butterflies in the constant geometry of Pease (1968): sums and differences of neighbours, in a fixed order, so that
    it gives the same bits on every processor, as a matrix product does not.
    """
    width = rows.shape[1]
    done = np.empty_like(rows)
    for start in range(0, len(rows), _AT_ONCE):
        here = rows[start : start + _AT_ONCE]
        there, spare = np.empty_like(here), np.empty_like(here)
        for _ in range(width.bit_length() - 1):
            np.add(here[:, 0::2], here[:, 1::2], out=there[:, : width // 2])
            np.subtract(here[:, 0::2], here[:, 1::2], out=there[:, width // 2 :])
            here, there, spare = there, spare, there
        done[start : start + _AT_ONCE] = here
    return done


def _levels(bits: int) -> Vector:
    positive = np.array(LEVELS[bits], np.float32)
    return np.concatenate([-positive[::-1], positive])


def _runs(size: int) -> Iterator[tuple[int, int, int]]:
    """Offset, number of rows and width: first of all full blocks, then of the rest."""
    if size >= BLOCK:
        yield 0, size // BLOCK, BLOCK
    if rest := size % BLOCK:
        yield size - rest, 1, 1 << (rest - 1).bit_length()


def _signs(chance: Chance, shape: tuple[int, int]) -> Vector:
    return np.float32(1) - np.float32(2) * chance.bits(shape[0] * shape[1]).reshape(shape)
