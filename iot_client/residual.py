"""Error feedback: what a coarse codec left out of one update goes into the next.

A device encodes v = Δ + e and keeps e ← v − C(v) (Seide et al., 2014; Karimireddy et al., 2019, arXiv:1901.09847). So
nothing is lost for good: it is only late. The rules:

- e belongs to a lineage and a schema, and is dropped with them.
- e changes when an update is stored, in the same transaction; a resend sends what is stored. Whether the aggregator
  accepts, refuses or loses the update makes no difference to e: of what was tried, nothing was measurably better.
- |e| is at most twice the median |Δ| of late: where little gets through, it would grow old and large.
- A codec whose errors are random, or small, keeps none; what another has left is sent, and gone.

It is kept as bfloat16, half of what float32 would wear the flash: what that rounds off is a thousandth of it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wire import frames
from wire.codecs import BFloat16
from wire.errors import WireError
from wire.rice import Reader
from wire.schema import Schema, Vector

LIMIT = 2.0
"""Norm of the residual, in median norms of the deltas."""
NORMS = 9
"""Deltas that the median covers."""


@dataclass(frozen=True, eq=False, slots=True)
class Residual:
    """What is left to say to one lineage: the flat vector of its schema, and the L2 norms of the last deltas."""

    lineage: bytes
    schema_hash: bytes
    values: Vector
    norms: tuple[float, ...]

    def pack(self) -> bytes:
        """For a file."""
        body = BFloat16().encode(self.values)
        header = {
            "lineage": self.lineage,
            "schema": self.schema_hash,
            "norms": list(self.norms),
            "crc": _crc(body, list(self.norms)),
        }
        return frames.encode(header, body)


def unpack(data: bytes, lineage: bytes, schema: Schema) -> Residual | None:
    """Read what `pack` wrote; None where it is of another lineage or schema, or damaged."""
    try:
        header, body = frames.decode(data)
        if (header["lineage"], header["schema"], header["crc"]) != (
            lineage,
            schema.hash,
            _crc(body, header["norms"]),
        ):
            return None
        values = BFloat16().read(Reader(body), (schema.size,))
        return Residual(lineage, schema.hash, values, tuple(float(norm) for norm in header["norms"]))
    except (WireError, KeyError, TypeError, ValueError):
        return None


def _crc(body: frames.Buffer, norms: Sequence[float]) -> int:
    return zlib.crc32(body, zlib.crc32(frames.pack(norms)))


def keep(left: Vector, delta: Vector, lineage: bytes, schema: Schema, *, norms: Sequence[float]) -> Residual:
    """The residual of which v − C(v) is `left`; `norms` are those of the deltas before this one."""
    norms = (*norms, _norm(delta))[-NORMS:]
    size, limit = _norm(left), LIMIT * float(np.median(norms))
    if size > limit:
        left = left * np.float32(limit / size)
    return Residual(lineage, schema.hash, left, norms)


def _norm(vector: Vector) -> float:
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))
