"""Stages that send few values: the largest, random ones, or those that a coarse step does not round to zero.

Places travel as the gaps between them, Rice coded (Golomb, 1966; Rice and Plaunt, 1971) with a parameter for each 256
gaps, which suits dense and sparse tensors alike.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midge.wire import rice
from midge.wire.codecs.stages import Chance, Mask, Quantised, Sizes, inverse, pack, spread, starts, take_floats, unpack
from midge.wire.errors import WireError
from midge.wire.rice import BodyReader, Numbers
from midge.wire.schema import Vector, Vectors

GROUP = 256
"""Gaps that share a Rice parameter."""
SAMPLED = 2**18
"""For longer vectors the threshold is estimated from a sample of 2^16 values."""
_AT_ONCE = 2**16
"""Random numbers drawn at a time."""
_U32 = struct.Struct("<I")


# ---------------------------------------------------------------------- numbers


def encode_numbers(numbers: Numbers) -> bytes:
    """Encode numbers from 0 to 2³¹ − 1; the reader must know how many."""
    group = np.arange(numbers.size) // GROUP
    counts = np.full(-(-numbers.size // GROUP), GROUP)
    if counts.size:
        counts[-1] = numbers.size - GROUP * (counts.size - 1)
    parameters = rice.choose(numbers, group, counts)
    high, low = rice.encode(numbers, parameters[group])
    return b"".join((parameters.tobytes(), _U32.pack(len(high)), high, low))


def read_numbers(reader: BodyReader, count: int, most: int | None = None) -> Iterator[Numbers]:
    """The inverse of `encode_numbers`, in portions; `most` bounds the sum of their unary parts.

    Raises:
        WireError: the body holds fewer.
    """
    parameters = np.frombuffer(reader.take(-(-count // GROUP)), np.uint8)
    if (parameters > rice.WIDEST).any():
        raise WireError("a group of numbers has an unknown parameter")
    (length,) = _U32.unpack(reader.take(_U32.size))
    bits = rice.most_bits(count) if most is None else count + most
    return rice.read_portions(reader, length, np.repeat(parameters, GROUP)[:count], bits)


def encode_places(places: npt.NDArray[np.intp]) -> bytes:
    """Encode ascending places."""
    return _U32.pack(places.size) + encode_numbers(np.diff(places, prepend=-1) - 1)


def read_places(reader: BodyReader, size: int, most: int | None = None) -> tuple[int, Iterator[Numbers]]:
    """Read how many places there are below `size`, and the places, ascending, in portions; `most` bounds their number.

    Raises:
        WireError: the bytes are not such places.
    """
    (count,) = _U32.unpack(reader.take(_U32.size))
    if count > min(size, size if most is None else most):
        raise WireError(f"{count} places among {size}")
    return count, _placed(read_numbers(reader, count, size), size)


def _placed(passed_over: Iterator[Numbers], size: int) -> Iterator[Numbers]:
    last = -1
    for numbers in passed_over:
        places = np.cumsum(numbers + 1)
        places += last
        last = int(places[-1])
        if last >= size:
            raise WireError("a value lies outside the tensor")
        yield places


def _together(places: Iterator[Numbers], numbers: Iterator[Numbers]) -> Iterator[tuple[Numbers, Numbers]]:
    """Split two streams into portions of equal length, since their own portions differ."""
    others = np.empty(0, np.int64)
    for some in places:
        while some.size:
            if not others.size:
                others = next(numbers)
            count = min(some.size, others.size)
            yield some[:count], others[:count]
            some, others = some[count:], others[count:]  # noqa: PLW2901 - what is left of it


# ---------------------------------------------------------------- which are sent


@dataclass(frozen=True, slots=True)
class TopK:
    """The share `part` of the values that are largest in magnitude, at least one; zeros are never sent.

    For a vector beyond 2^18 values the threshold is that of every n-th value, so that the number sent varies a little.
    """

    part: float
    biased = True
    seeded = False

    def encode(self, vector: Vector, chance: Chance) -> tuple[bytes, Vector]:
        sizes = np.abs(vector)
        k = max(1, int(self.part * vector.size))
        if vector.size > SAMPLED:
            sample = sizes[:: vector.size >> 16]
            rank = max(1, int(self.part * sample.size))
            places = np.flatnonzero(sizes >= np.partition(sample, -rank)[-rank])
            if places.size > 2 * k:  # the sample was not representative, or many values are equal
                places = _largest(sizes, k)
        else:
            places = _largest(sizes, k)
        places = places[sizes[places] > 0]
        return encode_places(places), vector[places]

    def read(self, reader: BodyReader, count: int, chance: Chance) -> Mask:
        mask = np.zeros(count, np.bool_)
        for places in read_places(reader, count, 2 * max(1, int(self.part * count)))[1]:
            mask[places] = True
        return mask

    def scale(self, values: Vector) -> Vector:
        return values


def _largest(sizes: Vector, k: int) -> npt.NDArray[np.intp]:
    return np.sort(np.argpartition(sizes, sizes.size - k)[sizes.size - k :])


@dataclass(frozen=True, slots=True)
class RandomK:
    """Each value with probability `part`, divided by it: unbiased. Places cost no bytes: they follow from the seed."""

    part: float
    biased = False
    seeded = True

    def encode(self, vector: Vector, chance: Chance) -> tuple[bytes, Vector]:
        return b"", vector[self._mask(vector.size, chance)]

    def read(self, reader: BodyReader, count: int, chance: Chance) -> Mask:
        return self._mask(count, chance)

    def scale(self, values: Vector) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for non-finite values
            return values / np.float32(self.part)

    def _mask(self, size: int, chance: Chance) -> Mask:
        mask, limit = np.empty(size, np.bool_), np.uint32(self.part * 2**32)
        for start in range(0, size, _AT_ONCE):
            part = mask[start : start + _AT_ONCE]
            np.less(chance.words(part.size), limit, out=part)
        return mask


# -------------------------------------------------------------- a step per tensor

_LEAST = 0.02
"""The share of a tensor's energy that must survive quantisation, otherwise the step is halved."""
_HALVINGS = 8
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each tensor in steps of `k` times its root mean square, rounded to nearest: most values become zero.

    It is the cheap core of NNCodec (ISO/IEC 15938-17): the share that is sent follows the tensor's tails. If the step
    would leave nearly nothing of a tensor, as when all its values are alike, it is halved until enough is left;
    otherwise error feedback could grow without bound. `rice` sends places, signs and magnitudes; without it each value
    is a byte.
    """

    k: float
    rice: bool
    biased = True
    seeded = False

    @np.errstate(invalid="ignore", over="ignore")  # rows that are not finite, whose bytes are never used
    def quantise(self, rows: Vectors, sizes: Sizes) -> Quantised:
        """The integers and steps of each row; meaningless for a row that is not finite."""
        energy = _energy(rows, sizes)
        steps = np.minimum(self.k * np.sqrt(energy / sizes), _LARGEST).astype(np.float32)
        integers = self._integers(rows, steps, sizes)
        some: slice | npt.NDArray[np.intp] = slice(None)
        for _ in range(_HALVINGS):
            missing = rows[some] - integers[some] * spread(steps[some], sizes)
            poor = _energy(missing, sizes) > (1 - _LEAST) * energy[some]
            if not poor.any():
                break
            steps[some] *= np.where(poor, np.float32(0.5), np.float32(1))
            if not (still := poor.any(axis=1)).all():  # rows whose steps are all fine enough are finished
                some = np.arange(len(rows))[some][still]
            integers[some] = self._integers(rows[some], steps[some], sizes)
        return Quantised(integers, steps, sizes)

    def _integers(self, rows: Vectors, steps: Vectors, sizes: Sizes) -> Vectors:
        top = np.float32(2**15 - 1 if self.rice else 127)
        values: Vectors = rows * spread(inverse(steps), sizes)
        np.rint(values, out=values)
        return np.clip(values, -top, top, out=values)

    def encode(self, vector: Vector, sizes: Sizes, chance: Chance) -> bytes:
        return self.pack(self.quantise(vector[None], sizes), 0)

    def pack(self, quantised: Quantised, row: int) -> bytes:
        """One row as bytes."""
        integers = quantised.integers[row].astype(np.int32)
        header: bytes = quantised.steps[row].astype("<f4").tobytes()
        if not self.rice:
            plain: bytes = integers.astype(np.int8).tobytes()
            return header + plain
        places = np.flatnonzero(integers)
        kept = integers[places].astype(np.int64)
        return b"".join(
            (header, encode_places(places), pack((kept < 0).view(np.uint8), 1), encode_numbers(abs(kept) - 1))
        )

    def read(self, reader: BodyReader, sizes: Sizes, chance: Chance) -> Vector:
        count = sum(sizes)
        steps = take_floats(reader, len(sizes))
        if not self.rice:
            values = np.frombuffer(reader.take(count), np.int8).astype(np.float32)
            with np.errstate(invalid="ignore", over="ignore"):
                return values * np.repeat(steps, sizes)
        found, places = read_places(reader, count)
        signs = unpack(reader, found, 1)
        sizes_sent = read_numbers(reader, found)
        reader.end()  # before unpacking: oversized input is refused at no cost
        vector, at = np.zeros(count, np.float32), 0
        ends = np.cumsum(sizes) if len(sizes) > 1 else None
        for where, sent in _together(places, sizes_sent):
            kept = (sent + 1).astype(np.float32)
            with np.errstate(invalid="ignore", over="ignore"):  # the caller checks for non-finite values
                kept *= np.where(signs[at : at + kept.size] == 1, np.float32(-1), np.float32(1))
                kept *= steps[0] if ends is None else steps[np.searchsorted(ends, where, side="right")]
            vector[where] = kept
            at += kept.size
        return vector


def _energy(rows: Vectors, sizes: Sizes) -> npt.NDArray[np.float64]:
    energy: npt.NDArray[np.float64] = np.add.reduceat(np.square(rows, dtype=np.float64), starts(sizes), axis=1)
    return energy
