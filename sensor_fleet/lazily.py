"""The rows of many devices, made when a device trains: a fleet of a hundred thousand does not lie in memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.dataset import ALPHA, FleetData, Rows

ROWS: Final = (16, 96)
"""Rows of a device that draws its own from a set that many share: at least and at most."""


class LazyRows(Mapping[str, Rows]):
    """Devices' rows by name, made by number: the same number gives the same rows, in any process, at any time."""

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
        """A device's number; None where there is none of that name."""
        return self._numbers.get(name)


def numbered(devices: Mapping[str, Rows]) -> Callable[[int], Rows]:
    """The rows of devices by their numbers."""
    return devices.numbered if isinstance(devices, LazyRows) else list(devices.values()).__getitem__


def names_of(devices: int) -> tuple[str, ...]:
    """device-0007: as many digits as the highest number has."""
    width = len(str(devices - 1))
    return tuple(f"device-{number:0{width}d}" for number in range(devices))


@dataclass(frozen=True, eq=False)
class _Draws:
    """Each device draws its rows from all of them, with a mixture of classes of its own, and again what others drew."""

    x: npt.NDArray[np.generic]
    y: npt.NDArray[np.generic]
    ordered: npt.NDArray[np.intp]
    """All rows, those of each class, or of each tenth of a number, together."""
    counts: npt.NDArray[np.intp]
    """Of each class."""
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
    """The same data for more devices than own rows of it.

    Each of them draws 16 to 96 of the training rows with a mixture of classes of its own, from Dirichlet(0.3) as rows
    without an owner are dealt (`sensor_fleet.data`). Several devices have the same row then: the spread between devices
    is real, the amount of data is not.
    """
    pooled = data.pooled()
    labels = pooled.y
    if data.task == "regression":
        labels = np.searchsorted(np.quantile(labels, np.linspace(0.1, 0.9, 9)), labels)
    _, counts = np.unique(labels, return_counts=True)
    ordered = np.argsort(labels, kind="stable")
    return replace(data, devices=LazyRows(names_of(devices), _Draws(pooled.x, pooled.y, ordered, counts, seed)))
