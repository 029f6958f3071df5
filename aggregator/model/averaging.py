"""Averaged tensors: a weighted mean of the devices' values, independent of the optimiser of the trained ones.

A device keeps the variance of a BatchNorm above 0, but a sum of deltas need not: each Δ_i is relative to p_v, the
version that its device began from, and x has moved since. Momentum, Adam, cached deltas and scales make it worse. So
these tensors move towards values, not along deltas. With v_i = p_v + Δ_i the value of device i,

    m = Σ a_i·v_i / Σ a_i        x ← x + ρ·(m − x)        ρ = min(η·Σ a_i / N, k / (k + 1))

for the k updates that cover a tensor; the weights a_i, η and N are those of the step (`aggregator.core.strategy`).

- On updates of the newest version this equals a plain step: x + η·Σ a_i·Δ_i / N.
- Momentum multiplies η by 1 / (1 − β1) in the long run, so ρ has that factor too. The rate of Adam is a length, not a
  share: 1 stands for it.
- x counts as at least one more update, so that ρ < 1. Otherwise the last step before a release could remove all
  earlier devices' work, and publish a single device's values.
- A scale f_i (clipping, unequal local steps) belongs to a delta, and has no effect here.

If all v_i and x are at least 0, so is every intermediate result: rounding is monotone, and each operation is a move
towards a value by a factor of at most 1. Every operation is elementwise float32 in a fixed order, like all of the
model's arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.aggregator.core.records import StepRecord
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.reducer import Contribution
from midge.wire.lineage import State
from midge.wire.schema import Schema, Vector

KEPT_BYTES = 2**24
"""Most bytes of published values that are kept, unless FEWEST versions take more."""
FEWEST, MOST = 8, 1024
"""Versions that are kept. Updates of older ones leave averaged tensors unchanged, because their v_i is unknown."""


def refuse_noise(strategy: Strategy, schema: Schema) -> None:
    """Refuse differential privacy and secure aggregation for models with averaged tensors.

    Noise makes no sense in a variance, and values published without noise are not private.

    Raises:
        ValueError: one of both is asked for; the tensors are named.
    """
    names = [tensor.name for _, tensor, _ in schema.shared if tensor.role == "averaged"]
    if strategy.masked and names:
        raise ValueError(
            f"secure aggregation cannot average values of single devices ({', '.join(names[:5])}"
            f"{', …' if len(names) > 5 else ''}). Use GroupNorm in place of BatchNorm, or give these tensors the role "
            '"local" or "frozen".'
        )
    if strategy.privacy is not None and names:
        raise ValueError(
            f"differential privacy cannot protect averaged tensors ({', '.join(names[:5])}"
            f"{', …' if len(names) > 5 else ''}): noise would make variances negative. Use GroupNorm in place of "
            'BatchNorm, or give these tensors the role "local" or "frozen".'
        )


class Averaging:
    """The averaged tensors of a model: their places, and their values in each version that updates may be based on."""

    def __init__(self, schema: Schema) -> None:
        of = np.concatenate(
            [np.empty(0, np.intp), *(np.full(tensor.size, index, np.intp) for index, tensor, _ in schema.shared)]
        )
        self._places = np.empty(0, np.intp) if schema.fine is None else np.flatnonzero(schema.fine)
        self._tensors = of[self._places]
        """The tensor of each value."""
        self._published: dict[int, Vector] = {}
        self._most = min(max(KEPT_BYTES // max(4 * self._places.size, 1), FEWEST), MOST)

    def __bool__(self) -> bool:
        """Whether the model has averaged values."""
        return self._places.size > 0

    def released(self, version: int, state: State) -> None:
        """Keep the published values of a version. The set of kept versions depends only on the releases, for replay."""
        if not self:
            return
        self._published[version] = np.ldexp(state.integers[self._places].astype(np.float32), state.exponent)
        while len(self._published) > self._most:
            del self._published[next(iter(self._published))]

    # ---------------------------------------------------------------------- steps

    def split(self, item: Contribution) -> Contribution:
        """Take the averaged part out of a delta, so that no norm, cache or optimiser includes it."""
        if not self:
            return item
        delta = item.delta.copy()
        delta[self._places] = 0
        return replace(item, delta=delta, averaged=item.delta[self._places])

    def whole(self, item: Contribution) -> Vector:
        """The delta with its averaged part, as it was sent."""
        if item.averaged is None:
            return item.delta
        delta = item.delta.copy()
        delta[self._places] = item.averaged
        return delta

    def values(self, x: Vector) -> Vector:
        """A copy of the averaged values of a model."""
        return x[self._places]

    def step(self, x: Vector, before: Vector, record: StepRecord, items: Sequence[Contribution]) -> None:
        """Move the averaged values of x from `before` towards the mean of the devices' values."""
        if not self:
            return
        weight, count, mean = (np.zeros(self._places.size, np.float32) for _ in range(3))
        masses = record.masses or ((1, 1.0),) * len(items)
        for (_, a), (many, mass), item in zip(record.updates, masses, items, strict=True):
            base = self._published.get(item.base)
            if base is None or item.averaged is None:
                continue
            covered = self._covered(item)
            own = np.float32(a) * np.float32(mass) * covered
            weight += own
            count += np.float32(many) * covered
            mean += _quotient(own, weight) * ((base + item.averaged) - mean)
        share = np.minimum(_share(record) * _normalised(record, weight, count), count / (count + np.float32(1)))
        x[self._places] = before + share * (mean - before)

    def _covered(self, item: Contribution) -> Vector:
        """1 for each value that an update covers, 0 for the others."""
        if item.tensors is None:
            return np.ones(self._places.size, np.float32)
        return np.isin(self._tensors, item.tensors).astype(np.float32)

    # ---------------------------------------------------------------- checkpoints

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays for `load`."""
        if not self._published:
            return {}
        return {
            "averaged.versions": np.array(list(self._published), np.int64),
            "averaged.values": np.stack(list(self._published.values())),
        }

    @classmethod
    def load(cls, schema: Schema, arrays: Mapping[str, npt.NDArray[Any]]) -> "Averaging":
        """Restore from the result of `dump`."""
        averaging = cls(schema)
        if "averaged.versions" in arrays:
            values = np.array(arrays["averaged.values"], np.float32)
            averaging._published = dict(zip(np.asarray(arrays["averaged.versions"]).tolist(), values, strict=True))
        return averaging


def _share(record: StepRecord) -> np.float32:
    """Total factor of a lasting delta, as a share."""
    kind, beta1, _, _ = record.optimizer
    return np.float32(record.rate / (1 - beta1)) if kind == "sgd" else np.float32(1)


def _normalised(record: StepRecord, weight: Vector, count: Vector) -> Vector:
    """Σ a_i / N of each value."""
    if record.divisor:
        return weight / np.float32(record.divisor)
    match record.normalise:
        case "weight":
            return (weight > 0).astype(np.float32)
        case "count":
            return _quotient(weight, count)
        case _:
            return weight


def _quotient(dividend: Vector, divisor: Vector) -> Vector:
    """The quotient; 0 where the divisor is 0."""
    return np.divide(dividend, divisor, out=np.zeros_like(dividend), where=divisor > 0)
