"""How a device's delta becomes bytes.

A codec is named on the wire, and a name is parsed once: `float32`, or `int8:B` with one float32 scale for each block of
B values. Decoding trusts nothing: the lengths come from our schema, and what is not finite is refused.

An update's body is the trained part, encoded, and then the averaged part as plain float32: buffers are never coarse.
"""

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wire.errors import WireError
from wire.frames import Buffer
from wire.schema import Schema, Vector

_BLOCK = re.compile(r"[1-9][0-9]{1,4}")

Places = npt.NDArray[np.intp] | slice


class Codec(Protocol):
    """A pair of pure functions between a float32 vector and bytes."""

    def size(self, count: int) -> int:
        """Bytes that `count` values take."""

    def encode(self, vector: Vector) -> bytes: ...

    def decode(self, data: Buffer, count: int) -> Vector:
        """A new vector of `count` values.

        Raises:
            WireError: the bytes are not what `encode` makes of so many values.
        """


@dataclass(frozen=True, slots=True)
class Float32:
    """Little-endian, as they are."""

    def size(self, count: int) -> int:
        return 4 * count

    def encode(self, vector: Vector) -> bytes:
        return np.ascontiguousarray(vector, dtype="<f4").tobytes()

    def decode(self, data: Buffer, count: int) -> Vector:
        _expect(data, self.size(count))
        return np.frombuffer(data, "<f4").astype(np.float32)


@dataclass(frozen=True, slots=True)
class Int8:
    """Blocks of `block` values, each `scale · q` with q in −127 … 127 and scale = max|v| / 127, rounded to nearest.

    The scales come first, then the integers; the last block may be shorter. Scales are float32: in float16 they lose
    every delta below about 1e-7. A block whose scale is not above 1e-37 has only zeros, because 1 / scale would leave
    float32. A block that is not finite keeps a scale that is not, so that whoever decodes it can tell.
    """

    block: int = 256

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def size(self, count: int) -> int:
        return 4 * self._blocks(count) + count

    def encode(self, vector: Vector) -> bytes:
        rows = _rows(np.asarray(vector, np.float32), self.block)
        scales = np.max(np.abs(rows), axis=1) / np.float32(127)
        if not (finite := np.isfinite(scales)).all():
            rows = np.where(finite[:, None], rows, np.float32(0))
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > np.float32(1e-37))
        integers = np.clip(np.rint(rows * inverse[:, None]), -127, 127).astype(np.int8)
        packed: bytes = np.concatenate(
            [scales.astype("<f4").view(np.int8), integers.reshape(-1)[: vector.size]]
        ).tobytes()
        return packed

    def decode(self, data: Buffer, count: int) -> Vector:
        _expect(data, self.size(count))
        blocks = self._blocks(count)
        scales = np.frombuffer(data, "<f4", blocks).astype(np.float32)
        rows = _rows(np.frombuffer(data, np.int8, count, 4 * blocks), self.block).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # the caller looks for what is not finite
            rows *= scales[:, None]
        return rows.reshape(-1)[:count]


def _expect(data: Buffer, size: int) -> None:
    if len(data) != size:
        raise WireError(f"the encoded delta has {len(data)} bytes, not {size}")


def _rows(vector: npt.NDArray[np.generic], block: int) -> npt.NDArray[np.generic]:
    """The vector as rows of `block`, the last one filled up with zeros."""
    padding = -vector.size % block
    return (np.concatenate([vector, np.zeros(padding, vector.dtype)]) if padding else vector).reshape(-1, block)


def parse(name: str) -> Codec:
    """The codec of a name on the wire.

    Raises:
        WireError: there is none of that name.
    """
    match name.split(":"):
        case ["float32"]:
            return Float32()
        case ["int8"]:
            return Int8()
        case ["int8", digits] if _BLOCK.fullmatch(digits) and 16 <= int(digits) <= 65536:
            return Int8(int(digits))
    raise WireError(f"unknown codec {name[:40]!r}; known are float32 and int8:B")


def _places(schema: Schema, tensors: tuple[int, ...] | None) -> tuple[Places, int, Places, int]:
    """Where the trained and the averaged values of the covered tensors lie in the flat vector, and how many each."""
    if tensors is None and schema.fine is None:
        return slice(None), schema.size, slice(0, 0), 0
    places = np.concatenate([np.arange(p.start, p.stop) for p in schema.covered(tensors)] or [np.empty(0, np.intp)])
    fine = np.zeros(places.size, np.bool_) if schema.fine is None else schema.fine[places]
    averaged = int(fine.sum())
    return places[~fine], places.size - averaged, places[fine], averaged


def encode_delta(delta: Vector, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None) -> bytes:
    """The body of an update: `delta` is the flat vector of shape (schema.size,).

    Raises:
        WireError: an unknown codec, or a tensor that cannot be covered.
    """
    trained, _, averaged, _ = _places(schema, tensors)
    return parse(codec).encode(delta[trained]) + Float32().encode(delta[averaged])


def decode_delta(data: Buffer, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None) -> Vector:
    """Read an update's body into a new flat vector of shape (schema.size,), zero where it covers nothing.

    Raises:
        WireError: unknown codec, wrong length, a tensor that cannot be covered, or a value that is not finite.
    """
    trained, count, averaged, fine = _places(schema, tensors)
    view = memoryview(data)
    if len(view) < 4 * fine:
        raise WireError("the averaged tensors are cut short")
    values = parse(codec).decode(view[: len(view) - 4 * fine], count)
    if count == schema.size:
        vector = values
    else:
        vector = np.zeros(schema.size, np.float32)
        vector[trained] = values
        vector[averaged] = Float32().decode(view[len(view) - 4 * fine :], fine)
    if not np.isfinite(vector).all():
        raise NonFinite("the delta holds NaN or infinity")
    return vector


class NonFinite(WireError):
    """A delta with NaN or infinity in it."""
