"""Rice coding of many numbers at once.

A number is n >> b in unary, as that many zeros and a one, followed by its last b bits; b is the parameter of its group
(Rice and Plaunt, 1971). All unary parts lie together, and so do all remainders, so that both directions take a few
array operations whatever the number of groups.

A reader's memory follows from the given parameters, never from what the bytes claim or contain: a reader that unpacked
all unary parts at once made 2 GB of 948 bytes, for a model of 30 MB behind Zstandard.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from midge.wire.errors import WireError

Numbers = npt.NDArray[np.int64]
Parameters = npt.NDArray[np.uint8]

LARGEST = 2**31 - 1
"""Largest number that can be read."""
WIDEST = 30
"""Largest parameter, in bits."""
_MASKS = (np.uint64(1) << np.arange(WIDEST + 1, dtype=np.uint64)) - np.uint64(1)
_AT_ONCE = 2**16
"""Numbers whose remainders are assembled at a time."""
_BYTES = _AT_ONCE // 8
"""Bytes of unary parts that are unpacked at a time: each of their bits may be a number."""


def choose(numbers: Numbers, group: Numbers, counts: npt.NDArray[np.integer]) -> Parameters:
    """The parameter of each group that makes its numbers shortest. `group` is the group of each number, from 0.

    With parameter b a number takes (number >> b) + 1 + b bits. If 2^b is above the mean of a group, all its unary parts
    together are shorter than one bit a number, so that a larger b cannot pay and is not tried.
    """
    best = np.zeros(counts.size, np.uint8)
    shortest = np.bincount(group, numbers, counts.size)
    means = shortest / np.maximum(counts, 1)
    for parameter in range(1, int(means.max(initial=0)).bit_length() + 1):
        length = np.bincount(group, numbers >> parameter, counts.size) + parameter * counts.astype(np.float64)
        better = length < shortest
        best[better], shortest[better] = parameter, length[better]
    return best


def most_bits(count: int) -> int:
    """Most bits that the unary parts of any numbers take, if each group has the parameter that `choose` finds.

    The first parameter above a group's mean gives at most two bits a number, and a preferred one takes no more in all.
    """
    return count * (WIDEST + 3)


def encode(numbers: Numbers, parameters: Parameters) -> tuple[bytes, bytes]:
    """The unary parts, and the remainders. There is a parameter for each number."""
    ends = np.cumsum((numbers >> parameters) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    bits = [
        ((np.repeat(numbers[some], widths) >> _places_of_bits(widths)) & 1).astype(np.uint8)
        for some, widths in _portions(parameters)
    ]
    return np.packbits(unary).tobytes(), np.packbits(np.concatenate([np.empty(0, np.uint8), *bits])).tobytes()


def read(reader: "BodyReader", length: object, parameters: Parameters, most: int) -> Numbers:
    """The inverse of `encode`, for one number per parameter.

    Args:
        reader: stands before the unary parts.
        length: bytes of them, as the body claims.
        parameters: one for each number.
        most: most bits of the unary parts.

    Raises:
        WireError: there are fewer numbers, one is beyond 32 bits, or `length` is invalid.
    """
    portions = list(read_portions(reader, length, parameters, most))
    return portions[0] if len(portions) == 1 else np.concatenate([np.empty(0, np.int64), *portions])


def read_portions(reader: "BodyReader", length: object, parameters: Parameters, most: int) -> Iterator[Numbers]:
    """`read` in portions of a few ten thousand numbers: unpacked, a bit of a body takes up to sixteen bytes.

    Checks that need no unpacking are made before this returns.
    """
    if type(length) is not int or not 0 <= length <= -(-most // 8):
        raise WireError("a stream has no length, or one that its numbers cannot take")
    unary = reader.take(length)
    if length > _BYTES:
        _expect(sum(_ones(unary[start : start + _BYTES]) for start in range(0, length, _BYTES)), parameters)
    return _numbers(unary, reader.take(-(-int(parameters.sum(dtype=np.int64)) // 8)), parameters)


def _ones(data: memoryview) -> int:
    return int.from_bytes(data, "little").bit_count()


def _expect(count: int, parameters: Parameters) -> None:
    if count != parameters.size:
        raise WireError(f"a stream holds {count} numbers, not {parameters.size}")


def _numbers(unary: memoryview, remainders: memoryview, parameters: Parameters) -> Iterator[Numbers]:
    if len(unary) <= _BYTES:  # nearly always true, which saves a pass to count
        ends = _ends(unary)
        _expect(ends.size, parameters)
        if ends.size:
            yield _between(ends, -1, parameters, remainders, 0)[0]
        return
    done, last, at = 0, -1, 0
    for start in range(0, len(unary), _BYTES):
        ends = _ends(unary[start : start + _BYTES])
        if ends.size:
            ends += 8 * start
            widths = parameters[done : done + ends.size]
            done += ends.size
            numbers, at = _between(ends, last, widths, remainders, at)
            last = int(ends[-1])
            yield numbers


def _ends(unary: memoryview) -> Numbers:
    return np.flatnonzero(np.unpackbits(np.frombuffer(unary, np.uint8))).astype(np.int64, copy=False)


def _between(ends: Numbers, last: int, widths: Parameters, remainders: memoryview, at: int) -> tuple[Numbers, int]:
    """The numbers whose unary parts end at `ends`, after one that ended at `last`, and the end of their remainders."""
    numbers = ends.copy()
    numbers[0] -= last + 1
    numbers[1:] -= ends[:-1] + 1  # the zeros before each
    np.left_shift(numbers, widths, out=numbers)
    at = _add_remainders(numbers, widths.astype(np.int64), remainders, at)
    if int(numbers.max()) > LARGEST:
        raise WireError("a number is beyond 32 bits")
    return numbers, at


def _add_remainders(numbers: Numbers, widths: Numbers, data: memoryview, at: int) -> int:
    """Add the remainders from bit `at` on, and return their end.

    Each lies within the 64 bits from its first byte on, which are gathered for all numbers at once.
    """
    stops = np.cumsum(widths)
    stops += at
    end = int(stops[-1])
    if end == at:
        return at
    begin = at >> 3
    piece = data[begin : (end + 7) >> 3]
    padded = np.zeros(len(piece) + 8, np.uint8)
    padded[: len(piece)] = piece
    words = np.ndarray(len(piece) + 1, ">u8", padded, strides=(1,))
    first = stops - widths
    found = words[(first >> 3) - begin if begin else first >> 3].astype(np.uint64)
    found >>= (64 - widths - (first & 7)).astype(np.uint64)
    found &= _MASKS[widths]
    numbers += found.view(np.int64)
    return end


def _portions(parameters: Parameters) -> Iterator[tuple[slice, Numbers]]:
    """The widths of the remainders, in portions whose unpacked bits stay small."""
    for start in range(0, parameters.size, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        yield some, parameters[some].astype(np.int64)


def _places_of_bits(widths: Numbers) -> Numbers:
    """Shift of each bit, highest first, for consecutive fields of these widths."""
    stops = np.repeat(np.cumsum(widths), widths)
    return stops - np.arange(stops.size) - 1


class BodyReader:
    """Reads a body piece by piece."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise WireError("the body is cut short")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError("bytes follow the body")
