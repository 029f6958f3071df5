"""What is wrong with data in the field: wrong labels, rows that are lost, sensors that are silent for hours."""

from dataclasses import dataclass, fields
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.sensors.chance import Floats, Places, draw, key, uniform

DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Flaws:
    """How bad it is. 0 turns each of them off.

    Raises:
        ValueError: a share that is none, or a length below 0.
    """

    labels: float = 0.02
    """Share of the rows with a wrong label: another class; of a regression, a target that is up to half off."""
    lost: float = 0.01
    """Share of the rows that are lost one by one."""
    outages: float = 0.05
    """The chance that the sensor falls silent on a given day."""
    outage: float = 4 * 3600.0
    """Seconds that it then is silent, in the mean: exponential, a day at most."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "outage":
                if not 0 <= value <= DAY:
                    raise ValueError(f"an outage of {value:g} s in the mean cannot be: give 0 to {DAY:g} s.")
            elif not 0 <= value <= 0.9:
                raise ValueError(f"{field.name}={value:g} is no share that can be: give 0 to 0.9.")

    @classmethod
    def none(cls) -> Self:
        """All of them off."""
        return cls(labels=0.0, lost=0.0, outages=0.0)

    def present(self, of: Any, slots: Places, times: Floats) -> npt.NDArray[np.bool_]:
        """Which rows of a device there are, from their numbers and times; `of` is what its chance hangs on."""
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
    """A change of concept: what the same readings mean, from a time on.

    Raises:
        ValueError: times below 0.
    """

    at: float
    """Seconds from the start at which the first device changes."""
    over: float = 6 * 3600.0
    """Seconds within which all the others do, each at a time of its own."""

    def __post_init__(self) -> None:
        if self.at < 0 or self.over < 0:
            raise ValueError(f"a drift at {self.at:g} s over {self.over:g} s cannot be: give seconds of at least 0.")

    def of(self, whom: Any) -> float:
        """When this device changes."""
        return self.at + self.over * draw(whom, "drift")
