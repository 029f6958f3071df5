"""Error feedback: the error of a lossy codec in one update is added to the next.

A device encodes v = Δ + e and keeps e ← v − C(v) (Seide et al., 2014; Karimireddy et al., 2019, arXiv:1901.09847). So
nothing is lost, only delayed. The rules:

- e belongs to a lineage and a schema, and is dropped with them.
- e changes when an update is stored, in the same transaction; a resend sends what is stored. Whether the aggregator
  accepts, refuses or loses the update does not affect e: no alternative that was tried was measurably better.
- |e| is at most twice the recent median |Δ|: if little gets through, it would grow old and large.
- A codec with small or random errors keeps none; the residual of another codec is sent, and then it is empty.

It is stored as bfloat16, which wears the flash half as much as float32: the rounding error is a thousandth of it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from midge.wire import frames
from midge.wire.codecs import BFloat16
from midge.wire.errors import WireError
from midge.wire.rice import BodyReader
from midge.wire.schema import Schema, Vector, Vectors

LIMIT = 2.0
"""Norm of the residual, in median norms of the deltas."""
NORMS = 9
"""Deltas that the median covers."""


@dataclass(frozen=True, eq=False, slots=True)
class Residual:
    """The residual of one lineage: a flat vector of its schema, and the L2 norms of the last deltas."""

    lineage: bytes
    schema_hash: bytes
    values: Vector
    norms: tuple[float, ...]

    def pack(self) -> bytes:
        """Encode for a file."""
        body = BFloat16().encode(self.values)
        header = {
            "lineage": self.lineage,
            "schema": self.schema_hash,
            "norms": list(self.norms),
            "crc": _crc(body, list(self.norms)),
        }
        return frames.encode(header, body)


def unpack(data: bytes, lineage: bytes, schema: Schema) -> Residual | None:
    """Read what `pack` wrote; None if it is of another lineage or schema, or damaged."""
    try:
        header, body = frames.decode(data)
        if (header["lineage"], header["schema"], header["crc"]) != (
            lineage,
            schema.hash,
            _crc(body, header["norms"]),
        ):
            return None
        values = BFloat16().read(BodyReader(body), (schema.size,))
        return Residual(lineage, schema.hash, values, tuple(float(norm) for norm in header["norms"]))
    except (WireError, KeyError, TypeError, ValueError):
        return None


def _crc(body: frames.Buffer, norms: Sequence[float]) -> int:
    return zlib.crc32(body, zlib.crc32(frames.pack(norms)))


def keep(
    left: Vectors, deltas: Vectors, lineage: bytes, schema: Schema, *, norms: Sequence[Sequence[float]]
) -> list[Residual]:
    """The residuals of several devices, a row each, where `left` is v − C(v), which is clipped in place.

    `norms` are those of each device's earlier deltas.
    """
    of_each = [(*past, float(norm))[-NORMS:] for past, norm in zip(norms, norms_of(deltas), strict=True)]
    sizes, limits = norms_of(left), LIMIT * np.array([median(each) for each in of_each])
    for row in np.flatnonzero(sizes > limits):
        left[row] *= np.float32(limits[row] / sizes[row])
    return [Residual(lineage, schema.hash, values, each) for values, each in zip(left, of_each, strict=True)]


def norms_of(rows: Vectors) -> npt.NDArray[np.float64]:
    """The L2 norm of each row; not finite if one of its values is not."""
    norms: npt.NDArray[np.float64] = np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=1))
    return norms
