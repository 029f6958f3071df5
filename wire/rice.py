"""Rice coding of many numbers at once.

A number is n >> b in unary, zeros before a one bit being the costly way, and its last b bits as they are; b is the
parameter of the group that it belongs to (Rice and Plaunt, 1971). All unary parts lie together, and so do all
remainders, so that both directions are a handful of array operations whatever the number of groups.

What a reader allocates follows from the parameters that it is given and from the bytes that are there, never from what
they claim.
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
"""Bits of a parameter."""
_MASKS = (np.uint64(1) << np.arange(WIDEST + 1, dtype=np.uint64)) - np.uint64(1)
_AT_ONCE = 2**16
"""Numbers whose remainders are taken apart at a time."""


def choose(numbers: Numbers, group: Numbers, counts: npt.NDArray[np.integer]) -> Parameters:
    """The parameter of each group that makes its numbers shortest. `group` is the group of each number, from 0.

    With parameter b a number takes (number >> b) + 1 + b bits. Where 2^b is above the mean of a group, all unary parts
    together are fewer bits than its numbers, and one bit more for each of them cannot pay: no larger b is tried.
    """
    best = np.zeros(counts.size, np.uint8)
    shortest = np.bincount(group, numbers, counts.size)
    means = shortest / np.maximum(counts, 1)
    for parameter in range(1, int(means.max(initial=0)).bit_length() + 1):
        length = np.bincount(group, numbers >> parameter, counts.size) + parameter * counts.astype(np.float64)
        better = length < shortest
        best[better], shortest[better] = parameter, length[better]
    return best


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


def read(reader: "BodyReader", length: object, parameters: Parameters) -> Numbers:
    """The inverse of `encode`, for as many numbers as there are parameters; `length` is that of the unary parts.

    Raises:
        WireError: there are fewer, one is beyond 32 bits, or `length` is no length.
    """
    if type(length) is not int or length < 0:
        raise WireError("the length of a stream is missing")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(reader.take(length), np.uint8)))
    if ends.size != parameters.size:
        raise WireError(f"a stream holds {ends.size} numbers, not {parameters.size}")
    numbers = ends.astype(np.int64)
    numbers[1:] -= ends[:-1] + 1  # the zeros before each
    np.left_shift(numbers, parameters, out=numbers)
    total = int(parameters.sum(dtype=np.int64))
    if total:
        _add_remainders(numbers, parameters, reader.take(-(-total // 8)))
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= LARGEST:
        raise WireError("a number is beyond 32 bits")
    return numbers


def _add_remainders(numbers: Numbers, parameters: Parameters, data: memoryview) -> None:
    """Each lies within the 64 bits from its first byte on, which are gathered for many numbers at once."""
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    words = np.ndarray(len(data) + 1, ">u8", padded, strides=(1,))
    at = 0
    for some, widths in _portions(parameters):
        stops = np.cumsum(widths)
        stops += at
        first = stops - widths
        found = words[first >> 3].astype(np.uint64)
        found >>= (64 - widths - (first & 7)).astype(np.uint64)
        found &= _MASKS[widths]
        numbers[some] += found.view(np.int64)
        at = int(stops[-1])


def _portions(parameters: Parameters) -> Iterator[tuple[slice, Numbers]]:
    """The widths of the remainders, in portions whose unpacked bits stay small."""
    for start in range(0, parameters.size, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        yield some, parameters[some].astype(np.int64)


def _places_of_bits(widths: Numbers) -> Numbers:
    """For each bit of fields of these widths, one after the other, how far it is shifted: highest first."""
    stops = np.repeat(np.cumsum(widths), widths)
    return stops - np.arange(stops.size) - 1


class BodyReader:
    """Takes one piece of a body after the other."""

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
