"""Incidents of a simulated federation beyond its profile: restarts, pauses, outages, delays and clock errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midge.sensor_fleet.profiles.presence import Interval


@dataclass(frozen=True, slots=True)
class Crash:
    """A crash of the aggregator's process, and its restart from the store."""

    at: float
    until: float
    """When the next process starts."""
    clock: float
    """Monotonic clock of the next process at its start."""
    actions: int = 0
    """Shell actions still carried out after `at`: the process can end between any two of them."""
    clean: bool = False
    """Whether it is a clean shutdown, which writes a checkpoint."""


@dataclass(frozen=True, slots=True, order=True)
class Outage:
    """An interval in which a device is not connected."""

    start: float
    end: float
    reboot: bool = False
    """Whether the device's process restarts too: a training under way is lost, the outbox survives."""


@dataclass(frozen=True, slots=True)
class Incidents:
    """All incidents of one simulation, in virtual seconds."""

    crashes: Sequence[Crash] = ()
    """In ascending order, without overlap. If there are none, nothing is kept for a restart."""
    pauses: Sequence[Interval] = ()
    """Intervals in which the operator has paused the aggregator."""
    outages: Mapping[str, Sequence[Outage]] = field(default_factory=dict)
    """By device, in ascending order."""
    late: float = 0.0
    """Share of a device's messages that are delayed, so that later ones overtake them."""
    delay: float = 0.0
    """Mean delay in seconds; exponentially distributed."""
    clocks: Mapping[str, float] = field(default_factory=dict)
    """Offset of each device's clock to virtual time; after a reboot it starts at 0."""
    claims: Mapping[str, float] = field(default_factory=dict)
    """By device, the factor by which it misreports the duration of its trainings."""
    checkpoint: int = 300
    """Journal records between checkpoints."""
