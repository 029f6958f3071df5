"""What updates become on their way, without the work that only makes them few bytes.

Entropy coding changes no value, and takes a device longer than its training here. So updates go in the same codec
without that stage. What the plan's usual codec makes of values is done for many devices at once
(`sensor_fleet.simulation.uniform`), and one update of 32 is encoded in full, from which the weight of the others is
reckoned by how many values they send; of other codecs every eighth of a device is, for what the next ones weigh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from zlib import crc32

import numpy as np
import numpy.typing as npt

from iot_client import residual
from iot_client.residual import Residual
from iot_client.training import Unfit, chosen, encode
from sensor_fleet.simulation.uniform import Uniformly, halved, restored, uniformly
from wire import codecs
from wire.errors import WireError
from wire.messages import Plan
from wire.schema import Schema, Vector

SAMPLED = 8
"""Of a device's updates in a codec that is not done for many at once, one in this number is encoded in full."""
MEASURED = 32
"""Of all updates in one that is, and the first ones besides."""
FIRST = 4
_BYTE = 127
"""Steps that `uq:k` can say without Rice coding."""


@lru_cache(maxsize=64)
def without_lossless(codec: str, largest: int) -> str:
    """A quicker codec with the same values for tensors of at most `size` values, if there is one.

    No value is beyond √n root mean squares of its tensor, so that steps of k of them can all be said in a byte up to
    (127·k)² values.
    """
    name = codec.removesuffix("|zstd")
    if not isinstance(codecs.parse(name), codecs.Chain):
        name = codec  # small tensors are another matter there
    quick = name.removesuffix("|rice")
    if quick != name and largest > (_BYTE * float(quick.removeprefix("uq:"))) ** 2:
        return name
    return quick


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


@dataclass(frozen=True, slots=True)
class _Left:
    """What is kept of one device behind an update."""

    number: int = 0
    """Of that update."""
    size: int = 0
    """Of the last one that was encoded in full."""
    codec: str = ""
    lineage: bytes = b""
    values: npt.NDArray[np.uint16] | None = None
    """What is left to say, in the upper halves of float32: as a device keeps it."""
    norms: tuple[float, ...] = ()


_NOTHING = _Left()


class Coding:
    """How the deltas of some devices are encoded, by the devices' names.

    An update may be encoded again, for one that was expected may turn out otherwise: what was left before it is kept.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._largest = max(place.stop - place.start for _, _, place in schema.shared)
        self._left: dict[str, tuple[_Left, _Left]] = {}
        """Behind the last update of each device, and behind the one before."""
        self._together_said = 0
        self._ratio = 1.0

    def encode(
        self, updates: Sequence[tuple[str, int]], deltas: Sequence[Vector], plan: Plan, lineage: bytes
    ) -> list[Said | None]:
        """Updates of different devices, by name and number, counted from 1; None of a delta that is not finite.

        What an update leaves to say goes into the device's next.
        """
        codec = chosen(plan)
        many = uniformly(codec, self._schema) if plan.feedback else None
        found: list[Said | None] = [None] * len(updates)
        fine = [place for place, delta in enumerate(deltas) if np.isfinite(delta).all()]
        if many is None:
            for place in fine:
                found[place] = self._alone(updates[place], deltas[place], plan, lineage)
        elif fine:
            said = self._together(many, [updates[n] for n in fine], np.stack([deltas[n] for n in fine]), codec, lineage)
            for place, each in zip(fine, said, strict=True):
                found[place] = each
        return found

    def _before(self, update: tuple[str, int], codec: str, lineage: bytes) -> _Left:
        """What the update before this one has left."""
        name, number = update
        last, earlier = self._left.get(name, (_NOTHING, _NOTHING))
        left = last if last.number < number else earlier
        if left.lineage != lineage:
            return _NOTHING
        return left if left.codec == codec else replace(left, size=0)

    def _keep(self, update: tuple[str, int], left: _Left) -> None:
        name, number = update
        last, earlier = self._left.get(name, (_NOTHING, _NOTHING))
        self._left[name] = left, last if last.number < number else earlier

    def _together(
        self,
        many: Uniformly,
        updates: Sequence[tuple[str, int]],
        deltas: npt.NDArray[np.float32],
        codec: str,
        lineage: bytes,
    ) -> list[Said]:
        before = [self._before(update, codec, lineage) for update in updates]
        wanted = deltas.copy()
        for row, left in enumerate(before):
            if left.values is not None:
                wanted[row] += restored(left.values)
        decoded = many.decoded(wanted)
        norms = [
            (*left.norms, float(length))[-residual.NORMS :] for left, length in zip(before, _norms(deltas), strict=True)
        ]
        weighs = self._weights(many, wanted, decoded, codec)
        missing = wanted - decoded
        limits = residual.LIMIT * np.array([median(each) for each in norms])
        sizes = _norms(missing)
        beyond = np.flatnonzero(sizes > limits)
        missing[beyond] *= (limits[beyond] / sizes[beyond]).astype(np.float32)[:, None]
        for row, update in enumerate(updates):
            self._keep(update, _Left(update[1], 0, codec, lineage, halved(missing[row]), norms[row]))
        quick = without_lossless(codec, self._largest)
        return [Said(quick, weighs[row], decoded[row], float(norm)) for row, norm in enumerate(_norms(decoded))]

    def _weights(
        self, many: Uniformly, wanted: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], codec: str
    ) -> list[int]:
        """Bytes of each body: measured of some, of the others by how many values they send."""
        sizes: list[int] = []
        for row, reckoned in zip(wanted, many.weights(decoded), strict=True):
            if self._together_said < FIRST or self._together_said % MEASURED == 0:
                whole = len(codecs.encode_delta(row, self._schema, codec))
                ratio = (whole - many.fixed) / reckoned if reckoned else 1.0
                self._ratio = ratio if not self._together_said else self._ratio + 0.2 * (ratio - self._ratio)
                sizes.append(whole)
            else:
                sizes.append(round(many.fixed + self._ratio * reckoned))
            self._together_said += 1
        return sizes

    def _alone(self, update: tuple[str, int], delta: Vector, plan: Plan, lineage: bytes) -> Said | None:
        schema, codec = self._schema, chosen(plan)
        quick = plan.model_copy(update={"codec": without_lossless(codec, self._largest), "narrow_codec": ""})
        name, number = update
        seed = crc32(f"{name}/{number}".encode())
        before = self._before(update, codec, lineage)
        left = None
        if before.values is not None:
            left = Residual(lineage, schema.hash, restored(before.values), before.norms)
        size = before.size
        try:
            coded = encode(delta, quick, lineage, schema, left=left, seed=seed)
            if quick.codec == codec:
                size = len(coded.body)
            elif not size or number % SAMPLED == 0:
                size = len(encode(delta, plan, lineage, schema, left=left, seed=seed).body)
            decoded = codecs.decode_delta(coded.body, schema, coded.codec)
        except (Unfit, WireError):
            return None
        after = coded.residual
        values, norms = (None, ()) if after is None else (halved(after.values), after.norms)
        self._keep(update, _Left(number, size, codec, lineage, values, norms))
        return Said(coded.codec, size, decoded, float(_norms(decoded[None])[0]))


def _norms(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """L2 norms of rows."""
    norms: npt.NDArray[np.float64] = np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=1))
    return norms
