"""A step as bytes: mostly zeros, a few small integers, Golomb-Rice coded.

The vector is cut into sections of 2,048 values. In each, the integers that are not zero share their trailing zero bits
(the section's shift); what is left of one is said by the zeros before it, its sign and its size. Numbers of zeros and
sizes are Rice coded with a parameter for each section: a number is n >> b in unary, ones before a zero bit being the
costly way, and its last b bits as they are (Rice and Plaunt, 1971). All streams of one sort lie together, so that both
directions are a handful of array operations whatever the number of sections.

What a decoder allocates follows from the size that it expects, never from what the bytes claim.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wire import frames
from wire.errors import WireError

Integers = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Parameters = npt.NDArray[np.uint8]

SECTION = 2048
_LARGEST = 2**31 - 1
_WIDEST = 30
"""Bits of a Rice parameter."""
_AT_ONCE = 2**16
"""Numbers whose remainders are taken apart at a time."""
_TABLE = np.dtype([("count", "<u2"), ("shift", "u1"), ("zeros", "u1"), ("size", "u1")])
FINEST, COARSEST = -40, 60
"""Exponents that a grid may have."""


def encode_step(step: Integers, exponent: int) -> bytes:
    """A step of a grid of this exponent as a frame."""
    places = np.flatnonzero(step)
    section = places // SECTION
    table = np.zeros(-(-step.size // SECTION), _TABLE)
    table["count"] = np.bincount(section, minlength=table.size)
    values = step[places].astype(np.int64)
    table["shift"] = shifts = _shared_zeros(np.abs(values), section, table.size)
    sizes = (np.abs(values) >> shifts[section]) - 1
    zeros = np.diff(places, prepend=-1) - 1
    firsts = np.flatnonzero(np.diff(section, prepend=-1))
    zeros[firsts] = places[firsts] - section[firsts] * SECTION
    table["zeros"] = _parameters(zeros, section, table["count"])
    table["size"] = _parameters(sizes, section, table["count"])
    zeros_high, zeros_low = _rice(zeros, table["zeros"][section])
    sizes_high, sizes_low = _rice(sizes, table["size"][section])
    header = {
        "kind": "step",
        "exponent": exponent,
        "size": step.size,
        "zeros": len(zeros_high),
        "sizes": len(sizes_high),
    }
    signs = np.packbits(values < 0).tobytes()
    return frames.encode(header, b"".join((table.tobytes(), zeros_high, zeros_low, signs, sizes_high, sizes_low)))


def decode_step(data: frames.Buffer, size: int) -> tuple[Integers, int]:
    """Read a step of `size` values, and the exponent of its grid.

    Raises:
        WireError: it is no step, or not of that size.
    """
    header, body = frames.decode(data)
    if header.get("kind") != "step" or type(header.get("size")) is not int or header["size"] != size:
        raise WireError(f"no step of {size} values")
    exponent = read_exponent(header.get("exponent"))
    reader = _Reader(body)
    table = np.frombuffer(reader.take(-(-size // SECTION) * _TABLE.itemsize), _TABLE)
    counts = table["count"].astype(np.int64)
    lengths = np.minimum(SECTION, size - np.arange(table.size) * SECTION)
    if (counts > lengths).any() or (table["shift"] > _WIDEST).any():
        raise WireError("a section of the step claims what it cannot hold")
    if (table["zeros"] > _WIDEST).any() or (table["size"] > _WIDEST).any():
        raise WireError("a section of the step has an unknown parameter")
    section = np.repeat(np.arange(table.size), counts)
    zeros = _read_rice(reader, header.get("zeros"), table["zeros"][section])
    signs = np.unpackbits(np.frombuffer(reader.take(-(-section.size // 8)), np.uint8), count=section.size)
    sizes = _read_rice(reader, header.get("sizes"), table["size"][section])
    reader.end()
    values = (sizes + 1) << table["shift"][section].astype(np.int64)
    if values.size and int(values.max()) > _LARGEST:
        raise WireError("a step beyond 32 bits")
    step = np.zeros(size, np.int32)
    step[_places(zeros, section, counts, size)] = np.where(signs == 1, -values, values)
    return step, exponent


def _places(zeros: Numbers, section: Numbers, counts: Numbers, size: int) -> Numbers:
    """Where the values lie that have so many zeros before them, each within its section."""
    ends = np.cumsum(zeros + 1)
    before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # what the sections before a section add up to
    local = ends - before[section] - 1
    places: Numbers = section * SECTION + local
    if section.size and (int(local.max()) >= SECTION or int(places[-1]) >= size):
        raise WireError("a value of the step lies outside its section")
    return places


def read_exponent(value: object) -> int:
    """The exponent of a grid, from a header.

    Raises:
        WireError: it is none, or out of range.
    """
    if type(value) is not int or not FINEST <= value <= COARSEST:
        raise WireError("the grid's exponent is out of range")
    return value


def _shared_zeros(values: Numbers, section: Numbers, count: int) -> Numbers:
    """How many trailing zero bits all values of each section have."""
    bits = np.zeros(count, np.int64)
    np.bitwise_or.at(bits, section, values)
    return np.where(bits == 0, 0, np.frexp((bits & -bits).astype(np.float64))[1] - 1).astype(np.int64)


# ---------------------------------------------------------------------- Rice coding


def _parameters(numbers: Numbers, section: Numbers, counts: npt.NDArray[np.uint16]) -> Parameters:
    """The parameter of each section that makes its numbers shortest."""
    best = np.zeros(counts.size, np.uint8)
    shortest = np.bincount(section, numbers, counts.size)
    for parameter in range(1, int(numbers.max(initial=0)).bit_length() + 1):
        length = np.bincount(section, numbers >> parameter, counts.size) + parameter * counts.astype(np.float64)
        better = length < shortest
        best[better], shortest[better] = parameter, length[better]
    return best


def _rice(numbers: Numbers, parameters: Parameters) -> tuple[bytes, bytes]:
    """The unary parts, and the remainders."""
    ends = np.cumsum((numbers >> parameters) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    bits = [
        ((np.repeat(numbers[some], widths) >> _places_of_bits(widths)) & 1).astype(np.uint8)
        for some, widths in _portions(parameters)
    ]
    return np.packbits(unary).tobytes(), np.packbits(np.concatenate([np.empty(0, np.uint8), *bits])).tobytes()


def _read_rice(reader: "_Reader", length: object, parameters: Parameters) -> Numbers:
    """The inverse of `_rice`, for as many numbers as there are parameters."""
    if type(length) is not int or length < 0:
        raise WireError("the step's header lacks the length of a stream")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(reader.take(length), np.uint8)))
    if ends.size != parameters.size:
        raise WireError(f"a stream of the step holds {ends.size} numbers, not {parameters.size}")
    numbers: Numbers = np.left_shift(np.diff(ends, prepend=-1) - 1, parameters, dtype=np.int64)
    total = int(parameters.sum(dtype=np.int64))
    bits = np.unpackbits(np.frombuffer(reader.take(-(-total // 8)), np.uint8), count=total)
    at = 0
    for some, widths in _portions(parameters):
        stops = np.cumsum(widths)
        weighed = bits[at : at + int(stops[-1])].astype(np.int64) << _places_of_bits(widths)
        sums = np.concatenate([[0], np.cumsum(weighed)])
        numbers[some] += sums[stops] - sums[stops - widths]
        at += int(stops[-1])
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= _LARGEST:
        raise WireError("a number of the step is beyond 32 bits")
    return numbers


def _portions(parameters: Parameters) -> Iterator[tuple[slice, Numbers]]:
    """The widths of the remainders, so many at a time that what is made of their bits stays small."""
    for start in range(0, parameters.size, _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        yield some, parameters[some].astype(np.int64)


def _places_of_bits(widths: Numbers) -> Numbers:
    """For each bit of fields of these widths, one after the other, how far it is shifted: highest first."""
    stops = np.repeat(np.cumsum(widths), widths)
    return stops - np.arange(stops.size) - 1


class _Reader:
    """Takes one piece after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise WireError("the step is cut short")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError("bytes follow the step")
