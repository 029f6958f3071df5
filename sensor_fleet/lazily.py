"""Rows of large fleets, made on access: those of a hundred thousand devices would not fit into memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.dataset import ALPHA, FleetData, Rows

ROWS: Final = (16, 96)
"""Minimum and maximum number of rows of a device that draws from a shared set."""


class LazyRows(Mapping[str, Rows]):
    """Devices' rows by name, made by number: a number gives the same rows in any process at any time."""

    def __init__(self, names: tuple[str, ...], make: Callable[[int], Rows]) -> None:
        self._make = make
        self._numbers = dict(zip(names, range(len(names)), strict=True))

    def __getitem__(self, name: str) -> Rows:
        return self._make(self._numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def numbered(self, number: int) -> Rows:
        """The rows of the device of that number."""
        return self._make(number)

    def number(self, name: str) -> int | None:
        """A device's number; None for an unknown name."""
        return self._numbers.get(name)


def numbered(devices: Mapping[str, Rows]) -> Callable[[int], Rows]:
    """A function from a device's number to its rows."""
    return devices.numbered if isinstance(devices, LazyRows) else list(devices.values()).__getitem__


def names_of(devices: int) -> tuple[str, ...]:
    """Names such as device-0007, with the digits of the highest number."""
    width = len(str(devices - 1))
    return tuple(f"device-{number:0{width}d}" for number in range(devices))


@dataclass(frozen=True, eq=False)
class _Draws:
    """Draws a device's rows from those of all, with a mixture of classes of its own; rows may repeat across devices."""

    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic]
    ordered: npt.NDArray[np.intp]
    """Row indices, grouped by class, or by decile of a regression target."""
    counts: npt.NDArray[np.intp]
    """Number of rows of each group."""
    seed: int

    def __call__(self, number: int) -> Rows:
        rng = np.random.default_rng((self.seed, 7, number))
        count = int(rng.integers(ROWS[0], ROWS[1] + 1))
        mixture = np.cumsum(rng.dirichlet(np.full(len(self.counts), ALPHA)))
        group = np.minimum(np.searchsorted(mixture, rng.random(count), side="right"), len(self.counts) - 1)
        within = (rng.random(count) * self.counts[group]).astype(np.intp)
        first = np.cumsum(self.counts) - self.counts
        rows = np.sort(self.ordered[first[group] + within])
        return Rows(self.x[rows], self.y[rows])


def shared(data: FleetData, devices: int, seed: int) -> FleetData:
    """Share the data among more devices than own rows of it.

    Each device draws 16 to 96 training rows with its own mixture of classes, from Dirichlet(0.3) as rows without an
    owner are dealt (`sensor_fleet.data`). Devices then share rows: the variation between devices is realistic, the
    amount of data is not.
    """
    pooled = data.pooled()
    labels = pooled.y
    if data.task == "regression":
        labels = np.searchsorted(np.quantile(labels, np.linspace(0.1, 0.9, 9)), labels)
    _, counts = np.unique(labels, return_counts=True)
    ordered = np.argsort(labels, kind="stable")
    return replace(data, devices=LazyRows(names_of(devices), _Draws(pooled.x, pooled.y, ordered, counts, seed)))
