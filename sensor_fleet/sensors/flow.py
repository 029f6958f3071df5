"""Rows that come while time goes on: made when they are asked for, the same ones by whomever and whenever.

Time is cut into slots. The row of slot k comes at k·interval − history seconds after the start; some slots have none,
for sensors fail. Nothing is kept for a device but, for as long as there is room, the rows that were made last.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.chance import Places
from midge.sensor_fleet.sensors.flaws import Flaws

KEPT: Final = 2**28
"""Bytes of blocks that are kept, at most."""
_ROUNDING: Final = 1e-6
"""Seconds by which a sum of times may be off."""

Inputs = npt.NDArray[np.float32]
Targets = npt.NDArray[Any]


class Maker(Protocol):
    """What is measured."""

    features: tuple[str, ...]
    label: str
    names: tuple[str, ...]
    """Of the classes; empty where the label is a number."""
    at_once: int
    """Slots that are made together."""

    def block(self, device: int, slots: Places) -> tuple[Inputs, Targets]:
        """Rows as they are in truth, for slots in a row: x of shape (n, features) and y of shape (n,)."""

    def bench(self, now: float) -> Rows:
        """Held-out rows under what holds at that time, without flaws; the same object while nothing has changed."""


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
        """How many slots there have been by a time."""
        return max(0, int((until + self.history + _ROUNDING) // self.interval) + 1)

    def time(self, slot: int) -> float:
        """When the row of a slot comes."""
        return slot * self.interval - self.history

    def present(self, device: int, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which of the slots from `first` up to, but not, `last` have a row."""
        slots = np.arange(first, last)
        return self.flaws.present((self.seed, device), slots, slots.astype(np.float64) * self.interval - self.history)

    def new(self, device: int, taken: int, slots: int) -> int:
        """How many rows have come in the slots since; those that the window does not hold any more do not count."""
        first = max(taken, slots - 2 * self.window)
        return min(self.window, int(np.count_nonzero(self.present(device, first, slots)))) if first < slots else 0

    def enough(self, device: int, taken: int, rows: int) -> int:
        """The slot by which a number of rows will have come since."""
        first, found = taken, 0
        while True:
            last = first + 2 * rows
            there = np.flatnonzero(self.present(device, first, last))
            if found + len(there) >= rows:
                return first + int(there[rows - found - 1])
            first, found = last, found + len(there)

    def kept(self, device: int, slots: int) -> Places:
        """The slots whose rows a device holds after a number of slots: the newest with a row, up to the window."""
        first, found = slots, np.empty(0, np.int64)
        while first > 0 and len(found) < self.window:
            last, first = first, max(0, first - self.window - self.window // 8)
            found = np.concatenate([first + np.flatnonzero(self.present(device, first, last)), found])
        return found[-self.window :]

    def rows(self, device: int, slots: int) -> Rows:
        """The rows that a device holds after a number of slots, oldest first, as it has them."""
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
    """Blocks that were used last; another process begins without any."""

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
