"""Results of a simulation as arrays, and summaries by hardware class."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from midge.wire.schema import Parameters

from midge.sensor_fleet.progress import quantile
from midge.sensor_fleet.report.svg import Plot
from midge.sensor_fleet.simulation import notebook
from midge.sensor_fleet.simulation.usage import BoardCosts
from midge.wire.clocks import DAY
from midge.wire.plurals import counted

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
MONTH = 30 * DAY


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """Summary of one hardware class. Bytes and joules are means over its devices, for the whole run."""

    name: str
    devices: int
    took_part: float
    """Share of its devices with at least one accepted update."""
    trainings: int
    updates: int
    """Number of accepted updates."""
    share_of_updates: float
    share_of_weight: float
    """Share of the total weight of all updates."""
    training_seconds: float
    """Median duration of one training."""
    bytes_up: float
    bytes_down: float
    joules: float
    staleness: tuple[int, int, int] | None
    """Median, 90th percentile and maximum of its updates, in steps."""
    monthly_bytes: float
    monthly_joules: float
    board: BoardCosts | None = None
    """Costs of a microcontroller; None for other hardware."""

    def packed(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """Results of a simulated federation. Times are virtual seconds from its start."""

    times: Floats
    """Times of the evaluations, of shape (evaluations,)."""
    metrics: dict[str, Floats]
    """Values of each metric at the evaluations, by name: of the model that users would get."""
    versions: Counts
    """The newest version at each evaluation."""
    updates: Counts
    """Number of updates accepted before each evaluation."""
    staleness: Counts
    """Staleness of each accepted update in steps, of shape (updates,), in order of acceptance."""
    update_times: Floats
    """When each of them was accepted."""
    senders: Counts
    """Index in `devices` of the sender of each."""
    weights: Floats
    """Weight of each in its step."""
    devices: tuple[str, ...]
    per_device: Counts
    """Number of accepted updates of each device."""
    seconds: Floats
    """Duration of a usual training on each device."""
    bytes_up: Counts
    """Payload bytes that each device sent."""
    bytes_down: Counts
    """Payload bytes that each device received; 0 without a profile, since frames are not encoded then."""
    trainings_of: Counts
    """Number of trainings that each device started."""
    steps_of: Counts
    """Optimiser steps of each device."""
    classes: tuple[str, ...]
    """Names of the profile's hardware classes; empty without a profile."""
    class_of: Counts
    """Index in `classes` of each device's class."""
    joules: Floats
    """Energy of each device's trainings and link; 0 without a profile."""
    bytes_at: Counts
    """Payload bytes that all devices had sent and received at each evaluation, of shape (evaluations, 2)."""
    refused: dict[str, int]
    """Number of refused updates, by verdict."""
    trainings: int
    """Number of trainings started."""
    events: int
    """Number of events on the virtual clock."""
    took: float
    """Wall-clock seconds."""
    parameters: "Parameters" = field(repr=False)
    """The final model, all tensors by name."""
    troubles: Mapping[str, int] = field(default_factory=dict)
    """Number of trouble messages to devices, by reason."""
    boards: Mapping[str, BoardCosts] = field(default_factory=dict)
    """Costs of the microcontrollers of each class, by class name."""
    sites: Mapping[str, int] = field(default_factory=dict)
    """Of a federation with gateways: their number, the bytes at the root, the sums, and the updates of devices that
    were lost or counted twice between site and root; empty without them."""
    left_out: tuple[str, ...] = ()
    """A sentence for each class that is left out because the model does not fit into its memory."""
    privacy: Mapping[str, float] = field(default_factory=dict)
    """What the devices of a private federation have spent (`PrivacySpent`); empty if it is not private. It describes a
    federation with noise that cannot be predicted, which simulated noise can."""

    def seconds_to(self, target: float, metric: str | None = None, *, held: float = 0.0) -> float | None:
        """When the metric first reached the target and stayed there for `held` seconds; None if it never did.

        For `rmse` and `loss` lower is better, for any other metric higher.
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
        """Summaries of the hardware classes: participation, staleness, and cost in bytes and joules."""
        return by_class(self)

    def __repr__(self) -> str:
        """One line: what was simulated, and the final metrics."""
        scores = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.metrics.items() if len(values))
        what = f"{counted(len(self.devices), 'device')}, {self._title()}"
        return f"<{type(self).__name__}: {what}; final: {scores or 'no evaluation'}>"

    def _title(self) -> str:
        if not len(self.times):
            return "no evaluation"
        trained, accepted = counted(self.trainings, "training"), counted(len(self.senders), "update")
        summary = (
            f"{self.times[-1] / 3600:,.1f} virtual hours: {trained}, {accepted} accepted, "
            f"{counted(int(self.versions[-1]), 'version')} (it took {self.took:,.1f} s)"
        )
        return ". ".join((summary, *self.left_out))

    def _repr_html_(self) -> str:
        """Curves and a table of the classes, for a notebook."""
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
        """Draw a metric over virtual time: an SVG that a notebook shows; `str()` gives its text."""
        name = metric or next(iter(self.metrics))
        return notebook.curve(name, self.times, self.metrics[name])


class AcceptedUpdates:
    """The accepted updates of a run, one column for each attribute."""

    def __init__(self) -> None:
        self.at = array("d")
        self.device = array("q")
        """Index of the device."""
        self.staleness = array("q")
        self.weight = array("d")

    def __len__(self) -> int:
        return len(self.at)

    def arrays(self, devices: int) -> dict[str, npt.NDArray[Any]]:
        """The columns as arrays under the names of `Simulated`, and the number of updates of each device."""
        senders = np.array(self.device, np.int64)
        return {
            "staleness": np.array(self.staleness, np.int64),
            "update_times": np.array(self.at),
            "senders": senders,
            "weights": np.array(self.weight),
            "per_device": np.bincount(senders, minlength=devices).astype(np.int64),
        }

    def add(self, at: float, device: int, staleness: int, weight: float) -> None:
        self.at.append(at)
        self.device.append(device)
        self.staleness.append(staleness)
        self.weight.append(weight)


LOWER = ("rmse", "loss")
"""Metrics for which lower is better."""


def by_class(found: Simulated, seconds: float | None = None) -> dict[str, ClassSummary]:
    """Summarise each class; without a profile all devices are one class. `seconds` is the run's length."""
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
        taus = Counter(found.staleness[theirs].tolist())
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
            (quantile(taus, 0.5), quantile(taus, 0.9), max(taus)) if taus else None,
            (up + down) * month,
            joules * month,
            found.boards.get(name),
        )
    return summaries


def histogram(found: Simulated) -> Mapping[str, list[list[int]]]:
    """Histogram of the staleness of accepted updates for each class, as pairs [steps, count]."""
    owner = found.class_of[found.senders]
    histograms = {}
    for place, name in enumerate(found.classes or ("all",)):
        steps, counts = np.unique(found.staleness[owner == place], return_counts=True)
        histograms[name] = [[int(step), int(count)] for step, count in zip(steps, counts, strict=True)]
    return histograms
