"""Data faults: wrong labels, lost rows, and sensor outages."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.sensors.counter_rng import Floats, Places, draw, key, uniform
from midge.wire.clocks import DAY


@dataclass(frozen=True, slots=True)
class Flaws:
    """Rates of data faults; 0 turns each of them off.

    Raises:
        ValueError: a share or a duration is out of range.
    """

    labels: float = 0.02
    """Share of rows with a wrong label: another class, or a regression target that is up to half off."""
    lost: float = 0.01
    """Share of rows that are lost individually."""
    outages: float = 0.05
    """Probability of a sensor outage on a given day."""
    outage: float = 4 * 3600.0
    """Mean duration of an outage in seconds: exponential, a day at most."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "outage":
                if not 0 <= value <= DAY:
                    raise ValueError(f"a mean outage of {value:g} s is out of range: give 0 to {DAY:g} s.")
            elif not 0 <= value <= 0.9:
                raise ValueError(f"{field.name}={value:g} is out of range: give a share from 0 to 0.9.")

    @classmethod
    def none(cls) -> Self:
        """No faults."""
        return cls(labels=0.0, lost=0.0, outages=0.0)

    def present(self, of: Any, slots: Places, times: Floats) -> npt.NDArray[np.bool_]:
        """Mask of the rows that exist, by slots and times of shape (n,); `of` seeds the device's randomness."""
        there = np.ones(len(slots), np.bool_)
        if self.lost:
            there &= uniform(key(of, "lost"), slots) >= self.lost
        if self.outages and self.outage:
            today = np.floor(times / DAY).astype(np.int64)
            days = np.arange(today.min() - 1, today.max() + 1) if len(today) else today  # one may last into the next
            silent, begins, lasts = (uniform(key(of, word), days) for word in ("out", "begins", "lasts"))
            for day in np.flatnonzero(silent < self.outages):
                begin = DAY * (days[day] + begins[day])
                length = min(-self.outage * float(np.log1p(-lasts[day])), DAY)
                there &= (times < begin) | (times >= begin + length)
        return there

    def mislabelled(self, of: Any, y: npt.NDArray[Any], slots: Places, classes: int | None) -> npt.NDArray[Any]:
        """Labels of shape (n,), some of them wrong."""
        if not self.labels:
            return y
        wrong = uniform(key(of, "wrong"), slots) < self.labels
        how = uniform(key(of, "how"), slots)
        if classes is None:
            return np.where(wrong, y * (0.5 + how), y).astype(y.dtype)
        return np.where(wrong, (y + 1 + (how * (classes - 1)).astype(y.dtype)) % classes, y)


@dataclass(frozen=True, slots=True)
class Drift:
    """Concept drift: a change of what the same readings mean.

    Raises:
        ValueError: a negative time.
    """

    at: float
    """Seconds from the start at which the first device changes."""
    over: float = 6 * 3600.0
    """Seconds within which all other devices change, each at its own time."""

    def __post_init__(self) -> None:
        if self.at < 0 or self.over < 0:
            raise ValueError(f"a drift at {self.at:g} s over {self.over:g} s is out of range: give at least 0 s.")

    def of(self, whom: Any) -> float:
        """When this device changes."""
        return self.at + self.over * draw(whom, "drift")
