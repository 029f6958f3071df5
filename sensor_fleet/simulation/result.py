"""What a simulation found, as arrays, and by hardware class: who took part how much, how stale, at which cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from midge.wire.schema import Parameters

from midge.sensor_fleet.report.svg import Plot
from midge.sensor_fleet.simulation import notebook
from midge.sensor_fleet.simulation.usage import BoardCosts
from midge.wire.plurals import counted

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
MONTH = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """One class. Bytes and joules are of one device in the mean, over the whole run."""

    name: str
    devices: int
    took_part: float
    """The share of its devices of which an update was accepted."""
    trainings: int
    updates: int
    """Accepted."""
    share_of_updates: float
    share_of_weight: float
    """Of all that moved the model."""
    training_seconds: float
    """What one training takes, in the median."""
    bytes_up: float
    bytes_down: float
    joules: float
    staleness: tuple[int, int, int] | None
    """Of its updates, in steps: median, 90th percentile, largest."""
    monthly_bytes: float
    monthly_joules: float
    board: BoardCosts | None = None
    """What it costs, if it is of microcontrollers."""

    def packed(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


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
    """Payload bytes that each device received: 0 without a profile, for then frames are not weighed."""
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
    troubles: Mapping[str, int] = field(default_factory=dict)
    """How often devices were told of something that no receipt answers, by what it was."""
    boards: Mapping[str, BoardCosts] = field(default_factory=dict)
    """What taking part costs the microcontrollers of each class, by its name."""
    left_out: tuple[str, ...] = ()
    """A sentence for each class that takes no part, because the model does not fit into its memory."""

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

    def by_class(self) -> dict[str, ClassSummary]:
        """Each hardware class: who took part how much, how stale, and at which cost in bytes and joules."""
        return by_class(self)

    def __repr__(self) -> str:
        """One line: what it was, and how it ended."""
        scores = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.metrics.items() if len(values))
        what = f"{counted(len(self.devices), 'device')}, {self._title()}"
        return f"<{type(self).__name__}: {what}; at the end: {scores or 'nothing was evaluated'}>"

    def _title(self) -> str:
        if not len(self.times):
            return "nothing was measured"
        trained, accepted = counted(self.trainings, "training"), counted(len(self.senders), "update")
        told = (
            f"{self.times[-1] / 3600:,.1f} virtual hours: {trained}, {accepted} accepted, "
            f"{counted(int(self.versions[-1]), 'version')} (it took {self.took:,.1f} s)"
        )
        return ". ".join((told, *self.left_out))

    def _repr_html_(self) -> str:
        """What a notebook shows: the curve, and the classes."""
        rows = [
            (
                one.name,
                f"{one.devices:,}",
                f"{one.took_part:.0%}",
                f"{one.updates:,}",
                f"{one.bytes_up / 1e3:,.1f}",
                f"{one.bytes_down / 1e3:,.1f}",
                f"{one.joules:,.3g}",
                "–" if one.staleness is None else " / ".join(map(str, one.staleness)),
            )
            for one in (self.by_class().values() if self.classes else ())
        ]
        return notebook.shown(len(self.devices), self._title(), self.times, self.metrics, rows)

    def plot(self, metric: str | None = None) -> Plot:
        """Draw a metric over virtual time: an SVG that a notebook shows, as text by `str()`."""
        name = metric or next(iter(self.metrics))
        return notebook.curve(name, self.times, self.metrics[name])


LOWER = ("rmse", "loss")
"""Metrics that are better where they are lower."""


def by_class(found: Simulated, seconds: float | None = None) -> dict[str, ClassSummary]:
    """Each class of a result; all devices are one class where no profile had any. `seconds` is the run's length."""
    length = float(found.times[-1]) if seconds is None else seconds
    names = found.classes or ("all",)
    weight = float(found.weights.sum()) or 1.0
    owner = found.class_of[found.senders]
    summaries: dict[str, ClassSummary] = {}
    for place, name in enumerate(names):
        mine = found.class_of == place
        number = int(mine.sum())
        if not number:
            continue
        theirs = owner == place
        taus = np.sort(found.staleness[theirs])
        up, down = float(found.bytes_up[mine].mean()), float(found.bytes_down[mine].mean())
        joules = float(found.joules[mine].mean())
        month = MONTH / length if length else 0.0
        summaries[name] = ClassSummary(
            name,
            number,
            float(np.mean(found.per_device[mine] > 0)),
            int(found.trainings_of[mine].sum()),
            int(theirs.sum()),
            float(theirs.sum() / max(len(owner), 1)),
            float(found.weights[theirs].sum()) / weight,
            float(np.median(found.seconds[mine])),
            up,
            down,
            joules,
            None if not len(taus) else (int(_at(taus, 0.5)), int(_at(taus, 0.9)), int(taus[-1])),
            (up + down) * month,
            joules * month,
            found.boards.get(name),
        )
    return summaries


def _at(ordered: Any, share: float) -> Any:
    return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]


def histogram(found: Simulated) -> Mapping[str, list[list[int]]]:
    """How many accepted updates were how stale, class by class: [steps, number]."""
    owner = found.class_of[found.senders]
    told = {}
    for place, name in enumerate(found.classes or ("all",)):
        steps, counts = np.unique(found.staleness[owner == place], return_counts=True)
        told[name] = [[int(step), int(count)] for step, count in zip(steps, counts, strict=True)]
    return told
