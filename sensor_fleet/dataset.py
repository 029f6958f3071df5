"""What a fleet's data is: each device's rows, and what stays for the test."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from midge.iot_client.training.numpy_models import Task

Kind = Literal["table", "image", "window"]
Array = npt.NDArray[Any]
ALPHA: Final = 0.3
"""Concentration of the Dirichlet distribution that rows without an owner are dealt by: small is uneven."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Inputs of shape (n, *shape), as they are stored, and targets of shape (n,)."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, eq=False)
class FleetData:
    """A data set as a fleet has it."""

    devices: Mapping[str, Rows]
    """The training rows of each device, by its name; perhaps made when they are asked for (`sensor_fleet.lazily`)."""
    test: Rows
    task: Task
    classes: int | None
    """How many; None for regression. Labels are 0 to classes - 1."""
    names: tuple[str, ...]
    """Of the classes; empty for regression."""
    kind: Kind
    shape: tuple[int, ...]
    """Of one x: (features,), (height, width), (height, width, colours) or (time, channels)."""
    missing: int
    """How many values of x are NaN or infinite, test rows included."""

    def pooled(self) -> Rows:
        """All training rows together: what no device ever sees, to compare with."""
        rows = self.devices.values()
        return Rows(np.concatenate([part.x for part in rows]), np.concatenate([part.y for part in rows]))
