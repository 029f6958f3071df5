"""Encoding of simulated updates, as on devices, without compressing every body.

Rice coding changes no value and would take longer than the training itself. So only one in 32 Rice-coded updates is
compressed; the sizes of the others are estimated from their number of non-zero values.
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
"""One in this many Rice-coded updates is compressed, besides the first ones."""
FIRST = 4


@dataclass(frozen=True, slots=True)
class DecodedUpdate:
    """An update as the aggregator decodes it, and its size."""

    codec: str
    size: int
    """Bytes of its body."""
    delta: Vector
    """The decoded values, of shape (n,)."""
    norm: float
    """L2 norm of `delta`."""
    tensors: tuple[int, ...] | None = None
    """Indices of the tensors that it covers; None is all."""


@dataclass(frozen=True, slots=True)
class _EncoderState:
    """What a device keeps after an update: its number, the lineage, and the packed residual, if any."""

    number: int = 0
    lineage: bytes = b""
    residual: bytes | None = None


_INITIAL = _EncoderState()


class FleetEncoder:
    """The encoders of some devices, by device name.

    An update may be encoded twice, since a predicted training may turn out differently: the residual before it is kept.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._states: dict[str, tuple[_EncoderState, _EncoderState]] = {}
        """The last update of each device, and the one before."""
        self._encoded = 0
        """Number of Rice-coded updates."""
        self._ratio = 1.0
        """Moving average of the ratio of measured to estimated bytes."""

    def encode(
        self,
        updates: Sequence[tuple[str, int]],
        deltas: Sequence[Vector],
        plan: Plan,
        lineage: bytes,
        tensors: tuple[int, ...] | None = None,
    ) -> list[DecodedUpdate | None]:
        """Encode updates of different devices, given as (name, number from 1); None for a delta that is not finite.

        Each residual is added to its device's next update. All deltas cover the same tensors.
        """
        found: list[DecodedUpdate | None] = [None] * len(updates)
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
                found[fine[row]] = DecodedUpdate(codec, sizes[row], coded.values[row], float(norm), tensors)
        return found

    def _before(self, name: str, number: int, lineage: bytes) -> bytes | None:
        """The residual of the update before this one."""
        last, earlier = self._states.get(name, (_INITIAL, _INITIAL))
        before = last if last.number < number else earlier
        return before.residual if before.lineage == lineage else None

    def _keep(self, name: str, number: int, lineage: bytes, residual: bytes | None) -> None:
        last, earlier = self._states.get(name, (_INITIAL, _INITIAL))
        before = last if last.number < number else earlier
        self._states[name] = _EncoderState(number, lineage, residual), before

    def _sizes(self, coded: EncodedDeltas) -> list[int]:
        """Bytes of each body: measured, or for most Rice-coded ones estimated from the number of non-zero values.

        With k of n values non-zero, each position takes about log2(n / k) bits, and sign and magnitude two more.
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
