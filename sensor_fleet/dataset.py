"""The data of a fleet: each device's rows, and the test rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_models import Task

Kind = Literal["table", "image", "window"]
Array = npt.NDArray[Any]
ALPHA: Final = 0.3
"""Concentration of the Dirichlet distribution for dealing rows without an owner: smaller is more uneven."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Inputs of shape (n, *shape), as stored, and targets of shape (n,)."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, eq=False)
class FleetData:
    """The data set of a fleet."""

    devices: Mapping[str, Rows]
    """The training rows of each device, by name; possibly made on access (`sensor_fleet.lazily`)."""
    test: Rows
    task: Task
    classes: int | None
    """Number of classes; None for regression. Labels are 0 to classes - 1."""
    names: tuple[str, ...]
    """Names of the classes; empty for regression."""
    kind: Kind
    shape: tuple[int, ...]
    """Shape of one input: (features,), (height, width), (height, width, colours) or (time, channels)."""
    missing: int
    """Number of values of x that are NaN or infinite, test rows included."""

    def pooled(self) -> Rows:
        """All training rows together, which no device has: for comparison."""
        rows = self.devices.values()
        return Rows(np.concatenate([part.x for part in rows]), np.concatenate([part.y for part in rows]))
