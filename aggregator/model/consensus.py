"""In which direction most devices want to move the model, and how far an update agrees with that.

Norms bound how much a liar can push, not where: several that push the same way, against what all others have learned,
add up, while honest deltas of unlike data mostly cancel. Of the newest delta of each device a sketch is kept: random
signs, and sums over interleaved coordinates, which keep angles to 1/√1024 (Charikar, Chen and Farach-Colton, "Finding
frequent items in data streams", 2002). The median of the directions, value by value, is a direction that fewer than
half of the devices cannot turn around.

A delta says what the model lacked at the version that it was trained from. Once the model has moved on, the deltas of
slow devices and of late messages still point where it came from: as a majority they would vote down the devices that
see where it is, and the model would swing. So each delta is moved to the newest version first: a device whose delta
changes by −κ·d when its base moves by d would by now have sent Δ − κ·(x − x_base). The contraction κ is measured, as
what the trainings of two thirds of the devices show (a secant of the loss along the way of the model).
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.wire.schema import Vector

_WIDTH = 1024
_BLOCK = 2**15
"""Coordinates that share their signs with those of other blocks; each block is turned against the others."""
_TURN = 389
_DEVICES = 256
"""Devices whose sketch is kept, at most: a megabyte."""
_FEWEST = 3
_VERSIONS, _SPARSE, _EVERY = 32, 256, 8
"""Versions whose sketches are kept: the newest, and of older ones every eighth; a quarter of a megabyte at most."""
_ARRAY = "consensus"
_SIGNS = np.random.default_rng(0x6D69646765).integers(0, 2, _BLOCK).astype(np.float32) * 2 - 1


def sketch(vector: Vector) -> Vector | None:
    """A delta or a model in 1,024 values, which is linear in it; None if it is not finite."""
    total = np.zeros(_WIDTH, np.float32)
    for number, sums in enumerate(_sums(vector)):
        total += np.roll(sums, number * _TURN)
    return total if _length(total) < math.inf else None


def direction(delta: Vector) -> Vector | None:
    """The sketch of a delta; None if it has no direction: it is zero or not finite."""
    found = sketch(delta)
    return None if found is None or not found.any() else found


def _sums(vector: Vector) -> Iterator[npt.NDArray[np.float32]]:
    for start in range(0, vector.size, _BLOCK):
        part = vector[start : start + _BLOCK]
        signed = part * _SIGNS[: part.size]
        whole = signed.size - signed.size % _WIDTH
        sums = signed[:whole].reshape(-1, _WIDTH).sum(axis=0)
        sums[: signed.size - whole] += signed[whole:]
        yield sums


def _length(values: Vector) -> float:
    return float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))


@dataclass(slots=True)
class _Opinion:
    """What is kept of a device."""

    delta: Vector
    """The sketch of its newest delta."""
    base: int | None
    """The version that it was trained from; None if the delta is not moved."""
    change: float = 0.0
    """Of its deltas along the way of their bases, summed up; what is older counts half."""
    moved: float = 0.0
    """The squared length of that way, summed up in the same manner."""

    def follow(self, before: "_Opinion", way: Vector | None) -> None:
        """Take in the device's delta before this one, and the way of the model between their bases."""
        self.change, self.moved = before.change / 2, before.moved / 2
        if way is None:
            return
        own, moved = before.delta.astype(np.float64), way.astype(np.float64)
        # The device has moved the model itself, noise and all: along its last delta, any two trainings contract.
        moved -= own * (np.sum(own * moved) / np.sum(np.square(own)))
        square, change = float(np.sum(np.square(moved))), -float(np.sum(self.delta * moved))
        if math.isfinite(square) and math.isfinite(change):
            self.change += change
            self.moved += square

    @property
    def contraction(self) -> float | None:
        """κ of the device, from 0 to 1; None if it is not known."""
        return min(max(self.change / self.moved, 0.0), 1.0) if self.moved > 0 else None


class Consensus:
    """The directions of the newest deltas of the devices that were heard last, and their median."""

    def __init__(self) -> None:
        self._opinions: dict[str, _Opinion] = {}
        """The device that was heard longest ago first."""
        self._versions: dict[int, Vector] = {}
        """Sketches of versions, in their order."""
        self._newest = -1
        self._contraction = 0.0
        self._centre: Vector | None = None
        self._place: int | None = None
        """The version from which the centre was computed."""
        self._changed = 0
        """Deltas that came since the median was computed."""

    @property
    def follows(self) -> bool:
        """Whether it knows a version of the model."""
        return bool(self._versions)

    def released(self, version: int, values: Vector | None) -> None:
        """Take in the sketch of a version; None if it has none."""
        if values is None:
            return
        if version <= self._newest:  # an earlier version was put back, and counting goes on from there
            self._versions.clear()
        self._versions[version] = values
        self._newest = version
        for old in (version - _VERSIONS, version - _SPARSE):
            if old in self._versions and (old % _EVERY or old == version - _SPARSE):
                del self._versions[old]

    def agreement(self, delta: Vector | None) -> float:
        """The cosine of a delta, by its sketch, with the direction of most devices; 0 if too few were heard.

        The delta is not moved: only whether the model needs it now counts, however old its base is.
        """
        if delta is None or self._centre is None:
            return 0.0
        centre = self._moved(self._centre, self._place)
        length = _length(delta) * _length(centre)
        return min(max(float(np.sum(delta * centre)) / length, -1.0), 1.0) if length > 0 else 0.0

    def take(self, device: str, delta: Vector, base: int | None) -> None:
        """Let a delta stand for its device. The median is computed again once an eighth of the devices was heard."""
        opinion, before = _Opinion(delta, base), self._opinions.pop(device, None)
        if before is not None:
            opinion.follow(before, self._way(before.base, base))
        self._opinions[device] = opinion
        if len(self._opinions) > _DEVICES:
            del self._opinions[next(iter(self._opinions))]
        self._changed += 1
        if len(self._opinions) >= _FEWEST and (self._centre is None or self._changed > len(self._opinions) // 8):
            self._compute()

    def forget(self, device: str) -> None:
        """Remove what is kept of a device."""
        if self._opinions.pop(device, None) is not None:
            self._centre = None
            if len(self._opinions) >= _FEWEST:
                self._compute()

    def _way(self, since: int | None, until: int | None) -> Vector | None:
        """The sketch of how far the model moved from one version to another; None if that is not known or nowhere."""
        if since is None or until is None or since == until or not self._versions:
            return None
        return self._at(until) - self._at(since)

    def _at(self, version: int) -> Vector:
        """The sketch of a version, or of the newest that is kept before it, or of the oldest."""
        if version in self._versions:
            return self._versions[version]
        kept = list(self._versions)
        return self._versions[kept[max(bisect_right(kept, version) - 1, 0)]]

    def _moved(self, delta: Vector, base: int | None) -> Vector:
        """A delta as it would be from the newest version."""
        if not self._contraction or (way := self._way(base, self._newest)) is None:
            return delta
        return delta - np.float32(self._contraction) * way

    def _compute(self) -> None:
        self._changed, self._place = 0, self._newest
        opinions = list(self._opinions.values())
        known = sorted(opinion.contraction for opinion in opinions if opinion.contraction is not None)
        # What two thirds of the devices show: of the noise that trainings have, half of them seem to contract.
        self._contraction = known[len(known) // 3] if len(known) >= _FEWEST else 0.0
        rows = np.stack([self._moved(opinion.delta, opinion.base) for opinion in opinions])
        lengths = np.sqrt(np.sum(np.square(rows, dtype=np.float64), axis=1, keepdims=True))
        rows = (rows / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        # As np.median over the devices; sorted along memory it takes a fifth of the time for 20 devices.
        values, count = rows.T.copy(), len(opinions)
        values.sort(axis=1)
        centre = (values[:, (count - 1) // 2] + values[:, count // 2]) / np.float32(2)
        self._centre = centre * np.float32(statistics.median_low(lengths.ravel().tolist()))

    # ---------------------------------------------------------------------- checkpoints

    def dump(self) -> tuple[dict[str, npt.NDArray[Any]], list[Any]]:
        """Return the arrays and the values that `load` takes."""
        if not self._versions and not self._opinions:
            return {}, []
        rows = [opinion.delta for opinion in self._opinions.values()]
        rows += [] if self._centre is None else [self._centre]
        rows += self._versions.values()
        known = [[each.base, each.change, each.moved] for each in self._opinions.values()]
        about = [self._contraction, self._place, self._centre is not None, list(self._versions), known]
        return {_ARRAY: np.stack(rows)}, [self._changed, *self._opinions, about]

    @classmethod
    def load(cls, arrays: Mapping[str, npt.NDArray[Any]], values: Sequence[Any]) -> "Consensus":
        """Take up what `dump` returned. Older checkpoints have none of it, or no versions."""
        found = cls()
        if not values:
            return found
        rows = iter(np.array(arrays[_ARRAY], np.float32))
        found._changed, *devices = values
        if not devices or isinstance(devices[-1], str):
            found._opinions = {device: _Opinion(next(rows), None) for device in devices}
            found._centre = next(rows, None)
            return found
        *devices, (found._contraction, found._place, centred, versions, known) = devices
        found._opinions = {device: _Opinion(next(rows), *each) for device, each in zip(devices, known, strict=True)}
        found._centre = next(rows) if centred else None
        found._versions = {version: next(rows) for version in versions}
        found._newest = versions[-1] if versions else -1
        return found
