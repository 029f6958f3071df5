"""Rows that arrive over time: computed on access, and the same for every caller.

Time is divided into slots. The row of slot k arrives at k·interval − history seconds after the start; some slots have
none, since sensors fail. Only the blocks made last are cached.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.counter_rng import Places
from midge.sensor_fleet.sensors.data_faults import Flaws

KEPT: Final = 2**28
"""Maximum bytes of cached blocks."""
_ROUNDING: Final = 1e-6
"""Tolerance of sums of times, in seconds."""

Inputs = npt.NDArray[np.float32]
Targets = npt.NDArray[Any]


class Maker(Protocol):
    """What a sensor measures."""

    features: tuple[str, ...]
    label: str
    names: tuple[str, ...]
    """Names of the classes; empty for regression."""
    at_once: int
    """Number of slots that are computed together."""

    def block(self, device: int, slots: Places) -> tuple[Inputs, Targets]:
        """True rows for consecutive slots: x of shape (n, features) and y of shape (n,)."""

    def bench(self, now: float) -> Rows:
        """Held-out rows under the conditions at that time, without faults; the same object until they change."""


class Flow:
    """The rows of all devices, by number and time."""

    def __init__(self, maker: Maker, *, seed: int, interval: float, history: float, window: int, flaws: Flaws) -> None:
        if interval <= 0 or history < 0 or window < 1:
            raise ValueError(
                f"interval={interval:g}, history={history:g}, window={window}: rows come at intervals above 0 s, a "
                "history is at least 0 s long, and a window holds a row at least."
            )
        self.maker, self.seed, self.flaws = maker, seed, flaws
        self.interval, self.history, self.window = interval, history, window
        self._recent = _Recent()

    def slots(self, until: float) -> int:
        """Number of slots by a time."""
        return max(0, int((until + self.history + _ROUNDING) // self.interval) + 1)

    def time(self, slot: int) -> float:
        """When the row of a slot arrives."""
        return slot * self.interval - self.history

    def present(self, device: int, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Mask of the slots from `first` up to, but excluding, `last` that have a row."""
        slots = np.arange(first, last)
        return self.flaws.present((self.seed, device), slots, slots.astype(np.float64) * self.interval - self.history)

    def new(self, device: int, taken: int, slots: int) -> int:
        """Number of rows in the slots since `taken`, limited to those that the window still holds."""
        first = max(taken, slots - 2 * self.window)
        return min(self.window, int(np.count_nonzero(self.present(device, first, slots)))) if first < slots else 0

    def enough(self, device: int, taken: int, rows: int) -> int:
        """The slot by which a number of rows will have arrived since `taken`."""
        first, found = taken, 0
        while True:
            last = first + 2 * rows
            there = np.flatnonzero(self.present(device, first, last))
            if found + len(there) >= rows:
                return first + int(there[rows - found - 1])
            first, found = last, found + len(there)

    def kept(self, device: int, slots: int) -> Places:
        """The slots whose rows a device holds after a number of slots: the newest rows, up to the window."""
        first, found = slots, np.empty(0, np.int64)
        while first > 0 and len(found) < self.window:
            last, first = first, max(0, first - self.window - self.window // 8)
            found = np.concatenate([first + np.flatnonzero(self.present(device, first, last)), found])
        return found[-self.window :]

    def rows(self, device: int, slots: int) -> Rows:
        """The rows that a device holds after a number of slots, oldest first, with their faults."""
        kept = self.kept(device, slots)
        if not len(kept):
            x, y = self._block(device, 0)
            return Rows(x[:0], y[:0])
        size = self.maker.at_once
        numbers = range(int(kept[0]) // size, int(kept[-1]) // size + 1)
        blocks = [self._block(device, number) for number in numbers]
        places = kept - numbers[0] * size
        return Rows(
            np.concatenate([x for x, _ in blocks])[places],
            np.concatenate([y for _, y in blocks])[places],
        )

    def _block(self, device: int, number: int) -> tuple[Inputs, Targets]:
        def make() -> tuple[Inputs, Targets]:
            slots = np.arange(number * self.maker.at_once, (number + 1) * self.maker.at_once)
            x, y = self.maker.block(device, slots)
            return x, self.flaws.mislabelled((self.seed, device), y, slots, len(self.maker.names) or None)

        return self._recent.get((device, number), make)


class _Recent:
    """Cache of the blocks used last; not pickled."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[int, int], tuple[Inputs, Targets]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type["_Recent"], tuple[()]]:
        return _Recent, ()

    def get(self, place: tuple[int, int], make: Callable[[], tuple[Inputs, Targets]]) -> tuple[Inputs, Targets]:
        block = self._blocks.get(place)
        if block is not None:
            self._blocks.move_to_end(place)
            return block
        block = self._blocks[place] = make()
        self._bytes += block[0].nbytes
        while self._bytes > KEPT:
            self._bytes -= self._blocks.popitem(last=False)[1][0].nbytes
        return block
