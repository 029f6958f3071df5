"""What updates become on their way: encoded as devices do, without the work that only makes them few bytes.

Rice coding changes no value, and takes a device longer than its training here. So of updates that are Rice coded only
one in 32 is made into bytes, from which the weight of the others is reckoned by how many values they send.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from midge.iot_client.training.residual import norms_of
from midge.iot_client.training.update_encoder import chosen, encode
from midge.wire.codecs import EncodedDeltas
from midge.wire.messages import Plan
from midge.wire.schema import Schema, Vector

MEASURED = 32
"""Of Rice coded updates one in this number is made into bytes, and the first ones besides."""
FIRST = 4


@dataclass(frozen=True, slots=True)
class Said:
    """An update as the aggregator reads it, and what it weighs."""

    codec: str
    size: int
    """Bytes of its body."""
    delta: Vector
    """As it is decoded."""
    norm: float
    """Of the same, L2."""
    tensors: tuple[int, ...] | None = None
    """Indices of those that it covers; None is all."""


@dataclass(frozen=True, slots=True)
class _Behind:
    """What a device keeps behind an update: its number, the lineage, and the packed residual, if there is one."""

    number: int = 0
    lineage: bytes = b""
    residual: bytes | None = None


_NOTHING = _Behind()


class Coding:
    """How the deltas of some devices are encoded, by the devices' names.

    An update may be encoded again, for one that was expected may turn out otherwise: what was left before it is kept.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._behind: dict[str, tuple[_Behind, _Behind]] = {}
        """The last update of each device, and the one before."""
        self._encoded = 0
        """Rice coded updates."""
        self._ratio = 1.0
        """Of the bytes that they took to those that were reckoned."""

    def encode(
        self,
        updates: Sequence[tuple[str, int]],
        deltas: Sequence[Vector],
        plan: Plan,
        lineage: bytes,
        tensors: tuple[int, ...] | None = None,
    ) -> list[Said | None]:
        """Updates of different devices, by name and number, counted from 1; None of a delta that is not finite.

        What an update leaves to say goes into the device's next. All cover the same tensors.
        """
        found: list[Said | None] = [None] * len(updates)
        fine = [place for place, delta in enumerate(deltas) if np.isfinite(delta).all()]
        if not fine:
            return found
        codec, updates = chosen(plan), [updates[place] for place in fine]
        coded, left = encode(
            np.stack([deltas[place] for place in fine]),
            codec,
            lineage,
            self._schema,
            tensors,
            feedback=plan.feedback,
            left=[self._before(*update, lineage) for update in updates],
            seeds=[crc32(f"{name}/{number}".encode()) for name, number in updates],
        )
        sizes = self._sizes(coded)
        for row, norm in enumerate(norms_of(coded.values)):
            if math.isfinite(norm):
                self._keep(*updates[row], lineage, left[row])
                found[fine[row]] = Said(codec, sizes[row], coded.values[row], float(norm), tensors)
        return found

    def _before(self, name: str, number: int, lineage: bytes) -> bytes | None:
        """What the update before this one has left."""
        last, earlier = self._behind.get(name, (_NOTHING, _NOTHING))
        before = last if last.number < number else earlier
        return before.residual if before.lineage == lineage else None

    def _keep(self, name: str, number: int, lineage: bytes, residual: bytes | None) -> None:
        last, earlier = self._behind.get(name, (_NOTHING, _NOTHING))
        before = last if last.number < number else earlier
        self._behind[name] = _Behind(number, lineage, residual), before

    def _sizes(self, coded: EncodedDeltas) -> list[int]:
        """Bytes of each body; of Rice coded ones measured of some, of the others by how many values they send.

        Of k values among n, each place takes log2(n / k) bits and a little, sign and size two more.
        """
        rows, many = coded.values.shape
        if not coded.rice_coded:
            return [len(coded.body(row)) for row in range(rows)]
        sent = np.maximum(np.count_nonzero(coded.values, axis=1), 1)
        sizes = []
        for row, reckoned in enumerate(sent * (np.log2(many / sent) + 3.5) / 8):
            if self._encoded < FIRST or self._encoded % MEASURED == 0:
                ratio = len(coded.body(row)) / reckoned
                self._ratio += (0.2 if self._encoded else 1.0) * (ratio - self._ratio)
                sizes.append(len(coded.body(row)))
            else:
                sizes.append(round(self._ratio * reckoned))
            self._encoded += 1
        return sizes
