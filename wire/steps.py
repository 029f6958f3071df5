"""A step as bytes: mostly zeros, a few small integers, Golomb-Rice coded.

The vector is cut into blocks of 64 sections of 2,048 values. In a section, the non-zero integers share their trailing
zero bits (the section's shift); what remains of each is coded as the zeros before it, its sign and its magnitude. Runs
of zeros and magnitudes are Rice coded with a parameter for each section. In a block all streams of one kind lie
together, so that both directions take a few array operations and the memory of one block beside the values.

The states of a lineage are coded in the same way, as a step from zero.

A decoder's memory follows from the size that it expects, never from what the bytes claim.
"""

import struct

import numpy as np
import numpy.typing as npt

from midge.wire import frames, rice
from midge.wire.errors import WireError

Integers = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]

SECTION = 2048
BLOCK = 64 * SECTION
"""Values of a block."""
_TABLE = np.dtype([("count", "<u2"), ("shift", "u1"), ("zeros", "u1"), ("size", "u1")])
_LENGTHS = struct.Struct("<II")
"""Bytes of the unary parts of a block: of its runs of zeros, and of its magnitudes."""
FINEST, COARSEST = -40, 60
"""Range of a grid's exponent."""
LARGEST_VALUE = 2.0 ** (COARSEST + 25)
"""Values of a model must be below it in magnitude to be published."""


def encode_step(step: Integers, exponent: int) -> bytes:
    """Encode a step on a grid of this exponent as a frame."""
    return frames.encode({"kind": "step", "exponent": exponent, "size": step.size}, encode_integers(step))


def decode_step(data: frames.Buffer, size: int) -> tuple[Integers, int]:
    """Read a step of `size` values, and the exponent of its grid.

    Raises:
        WireError: it is no step, or not of that size.
    """
    header, body = frames.decode(data)
    if header.get("kind") != "step" or type(header.get("size")) is not int or header["size"] != size:
        raise WireError(f"no step of {size} values")
    return decode_integers(body, size), read_exponent(header.get("exponent"))


def encode_integers(values: Integers) -> bytes:
    """Encode integers above −2³¹, block after block."""
    return b"".join(_encode_block(values[start : start + BLOCK]) for start in range(0, values.size, BLOCK))


def decode_integers(body: memoryview, size: int) -> Integers:
    """Read `size` integers, which must fill the body.

    Raises:
        WireError: they do not, or one is beyond 32 bits.
    """
    if -(-size // SECTION) * _TABLE.itemsize > len(body):  # before memory is reserved for them
        raise WireError("the body is cut short")
    reader = rice.BodyReader(body)
    values = np.zeros(size, np.int32)
    for start in range(0, size, BLOCK):
        _decode_block(reader, values[start : start + BLOCK])
    reader.end()
    return values


def _encode_block(block: Integers) -> bytes:
    places = np.flatnonzero(block)
    section = places // SECTION
    table = np.zeros(-(-block.size // SECTION), _TABLE)
    table["count"] = np.bincount(section, minlength=table.size)
    values = block[places].astype(np.int64)
    table["shift"] = shifts = _shared_zeros(np.abs(values), section, table.size)
    sizes = (np.abs(values) >> shifts[section]) - 1
    zeros = np.diff(places, prepend=-1) - 1
    firsts = np.flatnonzero(np.diff(section, prepend=-1))
    zeros[firsts] = places[firsts] - section[firsts] * SECTION
    table["zeros"] = rice.choose(zeros, section, table["count"])
    table["size"] = rice.choose(sizes, section, table["count"])
    zeros_high, zeros_low = rice.encode(zeros, table["zeros"][section])
    sizes_high, sizes_low = rice.encode(sizes, table["size"][section])
    lengths = _LENGTHS.pack(len(zeros_high), len(sizes_high))
    signs = np.packbits(values < 0).tobytes()
    return b"".join((lengths, table.tobytes(), zeros_high, zeros_low, signs, sizes_high, sizes_low))


def _decode_block(reader: rice.BodyReader, block: Integers) -> None:
    """Decode into a block of zeros."""
    zeros_length, sizes_length = _LENGTHS.unpack(reader.take(_LENGTHS.size))
    table = np.frombuffer(reader.take(-(-block.size // SECTION) * _TABLE.itemsize), _TABLE)
    counts = table["count"].astype(np.int64)
    lengths = np.minimum(SECTION, block.size - np.arange(table.size) * SECTION)
    if (counts > lengths).any() or (table["shift"] > rice.WIDEST).any():
        raise WireError("a section of the step claims what it cannot hold")
    if (table["zeros"] > rice.WIDEST).any() or (table["size"] > rice.WIDEST).any():
        raise WireError("a section of the step has an unknown parameter")
    section = np.repeat(np.arange(table.size), counts)
    zeros = rice.read(reader, zeros_length, table["zeros"][section], section.size + block.size)
    signs = np.unpackbits(np.frombuffer(reader.take(-(-section.size // 8)), np.uint8), count=section.size)
    sizes = rice.read(reader, sizes_length, table["size"][section], rice.most_bits(section.size))
    values = (sizes + 1) << table["shift"][section].astype(np.int64)
    if values.size and int(values.max()) > rice.LARGEST:
        raise WireError("a step beyond 32 bits")
    block[_places(zeros, section, counts, block.size)] = np.where(signs == 1, -values, values)


def _places(zeros: Numbers, section: Numbers, counts: Numbers, size: int) -> Numbers:
    """Places of the values, from the number of zeros before each, within its section."""
    ends = np.cumsum(zeros + 1)
    before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # the sum over all sections before
    local = ends - before[section] - 1
    places: Numbers = section * SECTION + local
    if section.size and (int(local.max()) >= SECTION or int(places[-1]) >= size):
        raise WireError("a value of the step lies outside its section")
    return places


def read_exponent(value: object) -> int:
    """Check the exponent of a grid, from a header.

    Raises:
        WireError: it is no integer, or out of range.
    """
    if type(value) is not int or not FINEST <= value <= COARSEST:
        raise WireError("the grid's exponent is out of range")
    return value


def _shared_zeros(values: Numbers, section: Numbers, count: int) -> Numbers:
    """The number of trailing zero bits that all values of each section share."""
    bits = np.zeros(count, np.int64)
    np.bitwise_or.at(bits, section, values)
    return np.where(bits == 0, 0, np.frexp((bits & -bits).astype(np.float64))[1] - 1).astype(np.int64)
