"""One step of the model: combines the updates of a buffer, and applies the server's optimiser.

Everything is elementwise, in float32, in a fixed order: addition, multiplication, division, square roots, and sorting.
Weights, scales and noise come from the journal. So replaying a step gives the same bits on any processor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.aggregator.core.records import StepRecord
from midge.aggregator.core.strategy import trimmed_count
from midge.aggregator.model.noisy_sum import noisy_sum
from midge.wire.schema import Schema, Vector

Integers8 = npt.NDArray[np.int8]
Noise = npt.NDArray[Any]
"""Noise of a private step: int32 in steps of its grid; float32 in the journal of an earlier Midge."""

_AT_ONCE = 2**16
"""Coordinates sorted at a time."""
_BLOCKED = 2**15
"""Coordinates combined at a time."""
_BLOCK = 256
"""Values of a cached delta that share a scale."""
_ONE = np.float32(1)
_UNKNOWN = -1
"""The step of a delta in a checkpoint of an earlier Midge: it counts as cached in the next step."""
CACHE_BYTES = 2**30
"""Bytes of cached deltas; beyond that the least recently active device is dropped."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """One decoded update, prepared for a step."""

    delta: Vector
    tensors: tuple[int, ...] | None
    base: int
    device: str = ""
    averaged: Vector | None = None
    """The delta of the averaged tensors (`aggregator.model.averaging`); `delta` is 0 there."""


@dataclass(frozen=True, slots=True, eq=False)
class Cached:
    """A delta as int8 with a power-of-two scale for each block of 256: a quarter of float32."""

    integers: Integers8
    exponents: Integers8
    size: int
    step: int
    """The step in which it was cached."""

    @classmethod
    def of(cls, delta: Vector, step: int) -> "Cached":
        rows = _blocks(delta)
        largest = np.abs(rows).max(axis=1, initial=np.float32(0))
        exponents = np.clip(np.frexp(largest)[1] - 7, -126, 120).astype(np.int32)
        exponents[largest == 0] = 0
        scaled = np.rint(np.ldexp(rows, -exponents[:, None]))
        return cls(np.clip(scaled, -127, 127).astype(np.int8), exponents.astype(np.int8), delta.size, step)

    def values(self) -> Vector:
        whole = np.ldexp(self.integers.astype(np.float32), self.exponents.astype(np.int32)[:, None])
        vector: Vector = whole.reshape(-1)[: self.size]
        return vector


def _blocks(vector: Vector) -> Vector:
    padding = -vector.size % _BLOCK
    rows: Vector = np.concatenate([vector, np.zeros(padding, np.float32)]).reshape(-1, _BLOCK)
    return rows


class ServerState:
    """The server's state between steps, beside the model itself; empty if the strategy needs none."""

    def __init__(self) -> None:
        self.vectors: dict[str, Vector] = {}
        """Momentum, second moments, the last combined delta, the sum of cached deltas: by name, shape (size,)."""
        self.caches: dict[str, Cached] = {}
        """The last delta of each device, oldest first."""

    def vector(self, name: str, size: int) -> Vector:
        """A vector by name, initially of zeros."""
        if name not in self.vectors:
            self.vectors[name] = np.zeros(size, np.float32)
        return self.vectors[name]

    def remember(self, device: str, delta: Vector, step: int) -> None:
        """Replace the device's cached delta."""
        total = self.vector("cached", delta.size)
        self.forget(device)
        cached = Cached.of(delta, step)
        self.caches[device] = cached
        total += cached.values()
        while len(self.caches) * delta.size > CACHE_BYTES and len(self.caches) > 1:
            self.forget(next(iter(self.caches)))

    def forget(self, device: str) -> None:
        """Remove a device from the cached sum."""
        before = self.caches.pop(device, None)
        if before is not None:
            self.vectors["cached"] -= before.values()

    def forget_before(self, oldest: int, step: int) -> None:
        """Remove devices whose deltas were cached before the step `oldest`; this is `step`."""
        for device, cached in list(self.caches.items()):
            if cached.step == _UNKNOWN:
                self.caches[device] = replace(cached, step=step)
            elif cached.step < oldest:
                self.forget(device)

    def dump(self) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
        """Arrays by name, and the devices whose deltas are cached, in order."""
        arrays: dict[str, npt.NDArray[Any]] = {f"server.{name}": vector for name, vector in self.vectors.items()}
        if self.caches:
            arrays["cache.integers"] = np.stack([cached.integers for cached in self.caches.values()])
            arrays["cache.exponents"] = np.stack([cached.exponents for cached in self.caches.values()])
            arrays["cache.steps"] = np.array([cached.step for cached in self.caches.values()], np.int64)
        return arrays, list(self.caches)

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[Any]], devices: Sequence[str], size: int) -> "ServerState":
        """Restore from the result of `dump`."""
        state = cls()
        state.vectors = {
            name.removeprefix("server."): np.array(array, np.float32)
            for name, array in arrays.items()
            if name.startswith("server.")
        }
        for number, device in enumerate(devices):
            integers, exponents = arrays["cache.integers"][number], arrays["cache.exponents"][number]
            step = int(arrays["cache.steps"][number]) if "cache.steps" in arrays else _UNKNOWN
            state.caches[device] = Cached(np.array(integers, np.int8), np.array(exponents, np.int8), size, step)
        return state


@dataclass(frozen=True, slots=True)
class _Item:
    """An update with its weight and scale in the step."""

    weight: np.float32
    scale: np.float32
    contribution: Contribution
    count: int = 1
    """How many updates it stands for."""
    mass: np.float32 = _ONE
    """The sum of their weights: of a gateway's sum, what the delta was not divided by."""

    def delta(self, place: slice) -> Vector:
        part: Vector = self.contribution.delta[place]
        return part if self.scale == 1 else self.scale * part


def make_step(  # noqa: PLR0917 - a formula's terms
    x: Vector,
    schema: Schema,
    record: StepRecord,
    contributions: Sequence[Contribution],
    state: ServerState,
    noise: Noise | None = None,
) -> None:
    """Update x by the record; `contributions` are in the order of its updates, `noise` is added to their sum."""
    scales = record.scales or (1.0,) * len(record.updates)
    if record.clip and noise is not None:
        factors = [weight * scale for (_, weight), scale in zip(record.updates, scales, strict=True)]
        total = noisy_sum(record, list(zip(factors, contributions, strict=True)), schema, noise)
        mean = np.divide(total, np.float32(record.divisor), dtype=np.float32)
        x += _optimised(record, mean, slice(0, schema.size), state, schema.size)
        return
    masses = record.masses or ((1, 1.0),) * len(record.updates)
    items = [
        _Item(np.float32(weight), np.float32(scale), contribution, count, np.float32(mass))
        for (_, weight), scale, contribution, (count, mass) in zip(
            record.updates, scales, contributions, masses, strict=True
        )
    ]
    if record.cached_since:
        state.forget_before(record.cached_since, record.step)
    plain = record.combine == "mean" and not record.calibration and _plain(record)
    counted = _counted(schema, record)
    for place, covering in _places(schema, items, split=bool(counted)):
        if plain and place.start not in counted:
            _mean_step(x, record, covering, place, noise)
            continue
        combined = _combined(record, covering, place, state, schema.size, None if noise is None else noise[place])
        if combined is not None:
            if place.start in counted:
                combined = _by_rows(combined, covering, place, counted[place.start])
            x[place] += _optimised(record, combined, place, state, schema.size)
    if record.calibration:
        for item in items:
            delta = item.scale * item.contribution.delta
            if item.contribution.tensors is not None:
                delta = _over_cached(delta, item, state, schema)
            state.remember(item.contribution.device, delta, record.step)


def _plain(record: StepRecord) -> bool:
    kind, momentum, _, _ = record.optimizer
    return kind == "sgd" and momentum == 0


def _mean_step(x: Vector, record: StepRecord, items: Sequence[_Item], place: slice, noise: Noise | None) -> None:
    """Add η·(Σ a·f·Δ) / N to one part of x, in pieces whose intermediate values fit the processor's cache.

    Value by value these are the operations of `_combined` and `_optimised`, in their order, with the same bits.
    """
    divisor, rate = _divisor(record, items), np.float32(record.rate)
    if divisor <= 0:
        return
    size = min(_BLOCKED, place.stop - place.start)
    sums, products = np.empty(size, np.float32), np.empty(size, np.float32)
    for start in range(place.start, place.stop, _BLOCKED):
        part = slice(start, min(start + _BLOCKED, place.stop))
        total, product = sums[: part.stop - start], products[: part.stop - start]
        total.fill(0)
        for item in items:
            delta = item.contribution.delta[part]
            if item.scale != 1:
                delta = np.multiply(item.scale, delta, out=product)
            np.multiply(item.weight, delta, out=product)
            np.add(total, product, out=total)
        if noise is not None:
            np.add(total, noise[part], out=total)
        if divisor != 1:
            np.divide(total, divisor, out=total)
        np.multiply(rate, total, out=total)
        np.add(x[part], total, out=x[part])


def _over_cached(delta: Vector, item: _Item, state: ServerState, schema: Schema) -> Vector:
    """Add the cached values of tensors that an update does not cover."""
    before = state.caches.get(item.contribution.device)
    whole = np.zeros(schema.size, np.float32) if before is None else before.values().copy()
    for place in schema.covered(item.contribution.tensors):
        whole[place] = delta[place]
    return whole


def _counted(schema: Schema, record: StepRecord) -> dict[int, int]:
    """The tensors whose rows are counted: where each begins in the vector, and its number of rows."""
    return {
        place.start: tensor.shape[0]
        for _, tensor, place in schema.shared
        if len(tensor.shape) > 1 and tensor.size and any(fnmatchcase(tensor.name, pattern) for pattern in record.rows)
    }


def _by_rows(combined: Vector, items: Sequence[_Item], place: slice, rows: int) -> Vector:
    """The combined delta of a tensor, each row for the updates that changed it instead of for all: times their share.

    Rows that one device in ten has would move by a tenth of what it learned. A gateway's sum counts as all its devices.
    """
    whole, changed = np.float32(0), np.zeros(rows, np.float32)
    for item in items:
        mass = item.weight * item.mass
        whole += mass
        changed += np.where(item.contribution.delta[place].reshape(rows, -1).any(axis=1), mass, np.float32(0))
    factors = np.divide(whole, changed, out=np.ones(rows, np.float32), where=changed > 0)
    scaled: Vector = (combined.reshape(rows, -1) * factors[:, None]).reshape(-1)
    return scaled


def _places(schema: Schema, items: Sequence[_Item], *, split: bool) -> Iterator[tuple[slice, list[_Item]]]:
    """The parts of the vector, each with the updates that cover it; tensor by tensor with `split`."""
    if not split and all(item.contribution.tensors is None for item in items):
        yield slice(0, schema.size), list(items)
        return
    for index, _, place in schema.shared:
        covering = [item for item in items if item.contribution.tensors is None or index in item.contribution.tensors]
        if covering:
            yield place, covering


def _combined(  # noqa: PLR0917 - a formula's terms
    record: StepRecord, items: list[_Item], place: slice, state: ServerState, size: int, noise: Noise | None
) -> Vector | None:
    """U on one part of the vector; None if all weights are 0."""
    if record.combine == "trimmed":
        return _trimmed(items, place, record.trim)
    if record.combine == "centred":
        return _centred(items, place, state.vector("centre", size))
    beta = np.float32(record.calibration)
    total = np.zeros(place.stop - place.start, np.float32)
    for item in items:
        delta = item.delta(place)
        cached = state.caches.get(item.contribution.device) if beta else None
        total += item.weight * (delta if cached is None else delta - beta * cached.values()[place])
    if noise is not None:
        total += noise
    divisor = _divisor(record, items)
    if divisor <= 0:
        return None
    combined = total if divisor == 1 else np.divide(total, divisor, dtype=np.float32)
    if beta and state.caches:
        share = np.float32(beta / np.float32(len(state.caches)))
        combined = combined + share * state.vector("cached", size)[place]
    return combined


def _divisor(record: StepRecord, items: Sequence[_Item]) -> np.float32:
    if record.divisor:
        return np.float32(record.divisor)
    match record.normalise:
        case "count":
            return np.float32(sum(item.count for item in items))
        case "weight":
            total = np.float32(0)
            for item in items:
                total += item.weight * item.mass
            return total
        case _:
            return np.float32(1)


def _trimmed(items: Sequence[_Item], place: slice, trim: float) -> Vector | None:
    """The weighted mean of each coordinate without its smallest and its largest values (Yin et al., ICML 2018)."""
    drop = trimmed_count(len(items), trim)
    weights = np.array([item.weight for item in items], np.float32)
    result = np.zeros(place.stop - place.start, np.float32)
    for start in range(place.start, place.stop, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, place.stop))
        values = np.stack([item.delta(part) for item in items])
        order = np.argsort(values, axis=0, kind="stable")[drop : len(items) - drop]
        kept, their = np.take_along_axis(values, order, axis=0), weights[order]
        total, weight = np.zeros(values.shape[1], np.float32), np.zeros(values.shape[1], np.float32)
        for row, share in zip(kept, their, strict=True):
            total += share * row
            weight += share
        np.divide(total, weight, out=result[part.start - place.start : part.stop - place.start], where=weight > 0)
    return result


def _centred(items: Sequence[_Item], place: slice, centre: Vector) -> Vector | None:
    """Centred clipping (Karimireddy et al., ICML 2021): v ← v + Σ a_i·f_i·(Δ_i − v) / Σ a_i, with scales f_i."""
    total, weight = np.zeros(place.stop - place.start, np.float32), np.float32(0)
    for item in items:
        total += item.weight * item.scale * (item.contribution.delta[place] - centre[place])
        weight += item.weight
    if weight <= 0:
        return None
    centre[place] += total / weight
    return centre[place].copy()


def distances(items: Sequence[Contribution], state: ServerState) -> list[float]:
    """The L2 distance of each delta from the last combined one, for centred clipping."""
    centre = state.vectors.get("centre")
    return [
        float(np.sqrt(np.sum(np.square(item.delta if centre is None else item.delta - centre, dtype=np.float64))))
        for item in items
    ]


def _optimised(record: StepRecord, u: Vector, place: slice, state: ServerState, size: int) -> Vector:
    """The optimiser's increment of x."""
    kind, beta1, beta2, epsilon = record.optimizer
    rate = np.float32(record.rate)
    one, b1, b2 = np.float32(1), np.float32(beta1), np.float32(beta2)
    if kind == "sgd":
        if beta1 == 0:
            return rate * u
        momentum = state.vector("momentum", size)
        momentum[place] = b1 * momentum[place] + u
        return rate * momentum[place]
    momentum, second = state.vector("momentum", size), state.vector("second", size)
    momentum[place] = b1 * momentum[place] + (one - b1) * u
    second[place] = b2 * second[place] + (one - b2) * (u * u)
    scale = second
    if kind == "amsgrad":
        scale = state.vector("largest", size)
        scale[place] = np.maximum(scale[place], second[place])
    below = np.sqrt(scale[place]) + np.float32(epsilon)
    step: Vector = np.divide(rate * momentum[place], below, dtype=np.float32)
    return step
