"""The body of an update: a flat delta and its schema, encoded as bytes.

With float32 and int8:B it is the encoded trained values. With any other codec it is a byte that tells whether it is
coded at all (what would not become smaller, and what is not finite, stays float32); a seed of eight bytes if the codec
is random; the small tensors, whose bytes hardly count and whose errors do, as int8 with a scale each; and the large
ones in the codec. Then always the averaged tensors as plain float32: buffers are never coarse.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from midge.wire.codecs import lossless
from midge.wire.codecs.blocks import Float32, pack_each, quantise_each, read_each
from midge.wire.codecs.names import Chain, parse
from midge.wire.codecs.sparse import Uniform
from midge.wire.codecs.stages import Chance, NonFinite, Quantised, Sizes
from midge.wire.errors import WireError
from midge.wire.frames import Buffer
from midge.wire.rice import BodyReader
from midge.wire.schema import Schema, Vector, Vectors

_AT_ONCE = 8192
"""Values squared at a time, so that their float64 copies stay in the L1 cache."""
SMALL = 256
"""A tensor of at most this many values is small."""
_SEED = struct.Struct("<Q")
_AS_IT_IS, _CODED = b"\0", b"\1"


@dataclass(frozen=True)
class _Parts:
    """Where the values of the covered tensors lie in the flat vector; no slice is empty."""

    trained: tuple[slice, ...]
    averaged: tuple[slice, ...]

    size: int
    """Length of the flat vector."""

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, schema: Schema, tensors: tuple[int, ...] | None) -> "_Parts":
        """Find the places. Cached: a federation has one schema, and its devices cover few sets of tensors."""
        if tensors is not None:
            list(schema.covered(tensors))  # raises if it cannot be covered
        wanted = None if tensors is None else set(tensors)
        places = [(tensor.role, place) for index, tensor, place in schema.shared if wanted is None or index in wanted]
        filled = [(role, place) for role, place in places if place.stop > place.start]
        return cls(
            tuple(place for role, place in filled if role == "trained"),
            tuple(place for role, place in filled if role == "averaged"),
            schema.size,
        )

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Number of trained and of averaged values."""
        return sum(_sizes(self.trained)), sum(_sizes(self.averaged))

    def whole(self, places: tuple[slice, ...]) -> bool:
        """Whether these places are the whole vector in one piece, so that decoded values need no copy."""
        return places == (slice(0, self.size),)

    @property
    def room(self) -> int:
        """Bytes that a reader reserves for Zstandard's output; what takes more is sent uncompressed."""
        return 4 * self.counts[0] + 64

    @cached_property
    def always_coded(self) -> bool:
        """Whether Rice coded steps are smaller than float32, whatever the values.

        A value of a large tensor takes at most 19 bits: two for place and sign, 17 for its size. One of a small tensor
        adds its scale. Parameters, lengths and what Zstandard may add fit in the rest.
        """
        small, large = sum(_sizes(self.small)), sum(_sizes(self.large))
        return small + 2.5 * large + 4 * (len(self.small) + len(self.large)) + 128 < 4 * (small + large)

    @cached_property
    def small(self) -> tuple[slice, ...]:
        return tuple(place for place in self.trained if place.stop - place.start <= SMALL)

    @cached_property
    def large(self) -> tuple[slice, ...]:
        return tuple(place for place in self.trained if place.stop - place.start > SMALL)


def _sizes(places: tuple[slice, ...]) -> Sizes:
    return tuple(place.stop - place.start for place in places)


def _gather(values: Vectors, places: tuple[slice, ...]) -> Vectors:
    """The values of these tensors, from a flat vector or from rows of them."""
    if len(places) == 1:
        return values[..., places[0]]
    return np.concatenate([values[..., :0], *(values[..., place] for place in places)], axis=-1)


def _scatter(values: Vectors, places: tuple[slice, ...], found: Vectors) -> None:
    at = 0
    for place in places:
        size = place.stop - place.start
        found[..., place] = values[..., at : at + size]
        at += size


def encode_delta(
    delta: Vector, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None, *, seed: int = 0
) -> bytes:
    """The body of an update: `delta` is the flat vector of shape (schema.size,).

    `seed` is 64 bits, different for each device and update, for random codecs; it travels in the body.

    Raises:
        WireError: an unknown codec, one that this process lacks, or a tensor that cannot be covered.
    """
    return EncodedDeltas(np.asarray(delta, np.float32)[None], schema, codec, tensors, seeds=(seed,)).body(0)


class EncodedDeltas:
    """Updates of several devices in one codec, a row each: bodies, and the values that a reader decodes from them.

    Entropy coding changes no value. So with a Rice coded codec `values` computes all rows at once, without making
    bytes.
    """

    def __init__(
        self, rows: Vectors, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None, *, seeds: Sequence[int]
    ) -> None:
        """`rows` are flat vectors, of shape (devices, schema.size); `seeds` are theirs, as `encode_delta` takes them.

        Raises:
            WireError: as `encode_delta`.
        """
        self._rows, self._seeds = rows, seeds
        self._reading = schema, codec, tensors
        self._parts, self._found = _Parts.of(schema, tensors), parse(codec)
        self._uniform: Uniform | None = None
        """The stage that quantises the large tensors, if it is the only one besides entropy coding."""
        if isinstance(self._found, Chain) and self._found.selection is None:
            quantiser = self._found.quantiser
            self._uniform = quantiser if isinstance(quantiser, Uniform) else None
        self._bodies: dict[int, bytes] = {}

    @cached_property
    def rice_coded(self) -> bool:
        """Whether `values` needs no bytes, which are the costly part; `body` makes those of one row."""
        return self._uniform is not None and self._uniform.rice and self._parts.always_coded

    @cached_property
    def values(self) -> Vectors:
        """What `decode_delta` returns for each body; a non-finite row for one that it refuses.

        Raises:
            WireError: as `encode_delta`.
        """
        if not self.rice_coded:
            return np.stack([self._read(row) for row in range(len(self._rows))])
        values, parts = np.zeros_like(self._rows), self._parts
        _scatter(self._small.values, parts.small, values)
        if parts.large:
            _scatter(self._large.values, parts.large, values)
        _scatter(_gather(self._rows, parts.averaged), parts.averaged, values)
        return values

    def _read(self, row: int) -> Vector:
        try:
            return decode_delta(self.body(row), *self._reading)
        except NonFinite:
            return np.full(self._parts.size, np.nan, np.float32)

    def body(self, row: int) -> bytes:
        """The body of one update.

        Raises:
            WireError: as `encode_delta`.
        """
        if row not in self._bodies:
            self._bodies[row] = self._body(self._rows[row], row)
        return self._bodies[row]

    def _body(self, delta: Vector, row: int) -> bytes:
        parts, found = self._parts, self._found
        averaged = Float32().encode(_gather(delta, parts.averaged))
        if not isinstance(found, Chain):
            return found.encode(_gather(delta, parts.trained)) + averaged
        finite = all(np.isfinite(delta[place]).all() for place in parts.trained)
        coded = self._coded(delta, row, found) if finite else b""
        if coded and len(coded) < 4 * parts.counts[0]:
            return b"".join((_CODED, coded, averaged))
        return b"".join((_AS_IT_IS, Float32().encode(_gather(delta, parts.trained)), averaged))

    def _coded(self, delta: Vector, row: int, chain: Chain) -> bytes:
        parts, seed = self._parts, self._seeds[row]
        pieces = [_SEED.pack(seed % 2**64)] if chain.seeded else []
        pieces.append(pack_each(self._small, row))
        if parts.large and self._uniform is not None:
            pieces.append(self._uniform.pack(self._large, row))
        elif parts.large:
            values, sizes = _gather(delta, parts.large), _sizes(parts.large)
            if chain.selection is not None:
                which, values = chain.selection.encode(values, Chance(seed, 0))
                pieces.append(which)
                sizes = (values.size,)
            if values.size:
                pieces.append(chain.quantiser.encode(values, sizes, Chance(seed, 1)))
        coded = b"".join(pieces)
        if not chain.squeezed:
            return coded
        return lossless.compress(coded) if len(coded) <= parts.room else b""

    @cached_property
    def _small(self) -> Quantised:
        return quantise_each(_gather(self._rows, self._parts.small), _sizes(self._parts.small))

    @cached_property
    def _large(self) -> Quantised:
        assert self._uniform is not None
        return self._uniform.quantise(_gather(self._rows, self._parts.large), _sizes(self._parts.large))


def decode_delta(data: Buffer, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None) -> Vector:
    """Read an update's body into a new flat vector of shape (schema.size,), zero where it covers nothing.

    Raises:
        WireError: unknown codec, wrong length, a tensor that cannot be covered, or a value that is not finite.
    """
    return decode_measured(data, schema, codec, tensors)[0]


def decode_measured(
    data: Buffer, schema: Schema, codec: str, tensors: tuple[int, ...] | None = None
) -> tuple[Vector, float]:
    """`decode_delta`, and the L2 norm of the result.

    Raises:
        WireError: as `decode_delta`.
    """
    parts, found = _Parts.of(schema, tensors), parse(codec)
    view = memoryview(data)
    trained, fine = parts.counts
    if len(view) < 4 * fine:
        raise WireError("the averaged tensors are cut short")
    body = view[: len(view) - 4 * fine]
    if isinstance(found, Chain):
        vector = _decode(body, parts, found)
    else:
        vector = _scattered(found.decode(body, trained), parts.trained, parts)
    if fine:
        _scatter(Float32().decode(view[len(view) - 4 * fine :], fine), parts.averaged, vector)
    norm = norm_of(vector)
    if not math.isfinite(norm):
        raise NonFinite("the delta holds NaN or infinity")
    return vector, norm


def norm_of(vector: Vector) -> float:
    """The L2 norm, in float64; not finite if a value is not. A square of a finite float32 is always finite in float64.

    So one pass serves for both. The last bits depend on the processor: a decision by the norm must be recorded with it.
    """
    squared, scratch = 0.0, np.empty(min(vector.size, _AT_ONCE))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, vector.size, _AT_ONCE):
            part = vector[start : start + _AT_ONCE]
            wide = scratch[: part.size]
            wide[:] = part
            squared += float(np.dot(wide, wide))
    return math.sqrt(squared) if squared >= 0 else math.nan


def _scattered(values: Vector, places: tuple[slice, ...], parts: _Parts) -> Vector:
    """Values at their places in the flat vector; may return `values` itself."""
    if parts.whole(places):
        return values
    vector = np.zeros(parts.size, np.float32)
    _scatter(values, places, vector)
    return vector


def _decode(body: memoryview, parts: _Parts, chain: Chain) -> Vector:
    trained, _ = parts.counts
    flag, body = bytes(body[:1]), body[1:]
    if flag == _AS_IT_IS:
        return _scattered(Float32().decode(body, trained), parts.trained, parts)
    if flag != _CODED or len(body) >= 4 * trained:
        raise WireError("a delta that is neither coded nor as it is")
    reader = BodyReader(memoryview(lossless.decompress(body, parts.room)) if chain.squeezed else body)
    seed = _SEED.unpack(reader.take(_SEED.size))[0] if chain.seeded else 0
    small = read_each(reader, _sizes(parts.small)) if parts.small else np.empty(0, np.float32)
    if parts.large:
        vector = _scattered(_read_large(reader, chain, _sizes(parts.large), seed), parts.large, parts)
    else:
        vector = np.zeros(parts.size, np.float32)
    _scatter(small, parts.small, vector)
    reader.end()
    return vector


def _read_large(reader: BodyReader, chain: Chain, sizes: Sizes, seed: int) -> Vector:
    chance = Chance(seed, 1)
    if chain.selection is None:
        return chain.quantiser.read(reader, sizes, chance)
    values = np.zeros(sum(sizes), np.float32)
    mask = chain.selection.read(reader, values.size, Chance(seed, 0))
    if sent := int(np.count_nonzero(mask)):
        values[mask] = chain.selection.scale(chain.quantiser.read(reader, (sent,), chance))
    return values
