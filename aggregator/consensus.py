"""In which direction most devices want to move the model, and how far an update agrees with that.

Norms bound how much a liar can push, not where: several that push the same way, against what all others have learned,
add up, while honest deltas of unlike data mostly cancel. Of the newest delta of each device a sketch is kept: random
signs, and sums over interleaved coordinates, which keep angles to 1/√1024 (Charikar, Chen and Farach-Colton, "Finding
frequent items in data streams", 2002). The median of the directions, value by value, is a direction that fewer than
half of the devices cannot turn around.

Nothing of it is durable. What it says of an update is journaled with it; after a restart the devices that are heard
make it again.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wire.schema import Vector

_WIDTH = 1024
_BLOCK = 2**15
"""Coordinates that share their signs with those of other blocks; each block is turned against the others."""
_TURN = 389
_DEVICES = 256
"""Devices whose sketch is kept, at most: a megabyte."""
_FEWEST = 3


class Consensus:
    """Sketches of the newest delta of each of the devices that were heard last."""

    def __init__(self) -> None:
        self._signs = np.random.default_rng(0x6D69646765).integers(0, 2, _BLOCK).astype(np.float32) * 2 - 1
        self._sketches: dict[str, Vector] = {}
        """Of unit length, the device that was heard longest ago first."""
        self._centre: Vector | None = None
        self._changed = 0

    def agreement(self, device: str, delta: Vector, norm: float) -> float:
        """Take a delta in; its cosine with the direction of most devices, 0 if too few were heard."""
        if not norm > 0:
            return 0.0
        sketch = self._sketch(delta)
        length = float(np.sqrt(np.sum(np.square(sketch, dtype=np.float64))))
        if not 0 < length < float("inf"):
            return 0.0
        sketch /= np.float32(length)
        centre = self._direction()
        self._sketches.pop(device, None)
        self._sketches[device] = sketch
        if len(self._sketches) > _DEVICES:
            del self._sketches[next(iter(self._sketches))]
        self._changed += 1
        return 0.0 if centre is None else min(max(float(np.sum(sketch * centre)), -1.0), 1.0)

    def forget(self, device: str) -> None:
        """Remove what is kept of a device."""
        self._sketches.pop(device, None)
        self._centre = None

    def _direction(self) -> Vector | None:
        """The median direction, of unit length; computed again once an eighth of the devices has been heard."""
        if len(self._sketches) < _FEWEST:
            return None
        if self._centre is None or self._changed > len(self._sketches) // 8:
            self._changed = 0
            centre = np.median(np.stack(list(self._sketches.values())), axis=0).astype(np.float32)
            length = float(np.sqrt(np.sum(np.square(centre, dtype=np.float64))))
            self._centre = centre / np.float32(length) if length > 0 else centre
        return self._centre

    def _sketch(self, delta: Vector) -> Vector:
        total = np.zeros(_WIDTH, np.float32)
        for number, sums in enumerate(self._sums(delta)):
            total += np.roll(sums, number * _TURN)
        return total

    def _sums(self, delta: Vector) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, delta.size, _BLOCK):
            part = delta[start : start + _BLOCK]
            signed = part * self._signs[: part.size]
            whole = signed.size - signed.size % _WIDTH
            sums = signed[:whole].reshape(-1, _WIDTH).sum(axis=0)
            sums[: signed.size - whole] += signed[whole:]
            yield sums
