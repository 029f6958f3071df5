"""What a simulation found, as arrays."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from wire.schema import Parameters

from sensor_fleet.report.svg import Plot
from sensor_fleet.simulation import notebook
from sensor_fleet.simulation.summary import OfClass, by_class

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """A simulated federation. Times are virtual seconds from its start."""

    times: Floats
    """When the model was evaluated."""
    metrics: dict[str, Floats]
    """What the evaluations gave, by name: of the model that users would get."""
    versions: Counts
    """The newest version at each evaluation."""
    updates: Counts
    """How many updates had been accepted at each evaluation."""
    staleness: Counts
    """Of each accepted update, in steps, in the order in which they were taken."""
    update_times: Floats
    """When each of them was taken."""
    senders: Counts
    """The device of each of them: its place in `devices`."""
    weights: Floats
    """What each of them counted in its step."""
    devices: tuple[str, ...]
    per_device: Counts
    """Accepted updates of each device."""
    seconds: Floats
    """How long one training takes on each device, at least."""
    bytes_up: Counts
    """Payload bytes that each device sent."""
    bytes_down: Counts
    """Payload bytes that each device received: 0 where no profile asked for them, for then nobody weighs frames."""
    trainings_of: Counts
    """How many trainings each device began."""
    steps_of: Counts
    """Optimiser steps that each device did."""
    classes: tuple[str, ...]
    """Hardware classes, where a profile has them."""
    class_of: Counts
    """The class of each device: its place in `classes`."""
    joules: Floats
    """Energy that training and the link took of each device, where a profile says what they take."""
    bytes_at: Counts
    """Payload bytes that all devices had sent and received at each evaluation, of shape (evaluations, 2)."""
    refused: dict[str, int]
    """Refused updates by verdict."""
    trainings: int
    """How many trainings began."""
    events: int
    """How many events the clock came to."""
    took: float
    """Seconds of the wall clock."""
    parameters: "Parameters" = field(repr=False)
    """The model at the end, all tensors by name."""

    def seconds_to(self, target: float, metric: str | None = None, *, held: float = 0.0) -> float | None:
        """When the metric first was at the target and stayed there for `seconds`; None if it never did.

        A metric whose name is `rmse` or `loss` is at the target from below, any other from above.
        """
        name = metric or next(iter(self.metrics))
        good = self.metrics[name] <= target if name in LOWER else self.metrics[name] >= target
        since: float | None = None
        for time, reached in zip(self.times, good, strict=True):
            if not reached:
                since = None
                continue
            since = float(time) if since is None else since
            if time - since >= held:
                return since
        return None

    def by_class(self) -> dict[str, OfClass]:
        """Each hardware class: who took part how much, how stale, and at which cost in bytes and joules."""
        return by_class(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the curve, and the classes."""
        return notebook.shown(self)

    def plot(self, metric: str | None = None) -> Plot:
        """Draw a metric over virtual time: an SVG that a notebook shows, as text by `str()`."""
        return notebook.curve(self, metric or next(iter(self.metrics)))


LOWER = ("rmse", "loss")
"""Metrics that are better where they are lower."""
