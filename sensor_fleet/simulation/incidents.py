"""What befalls a simulated federation beside what its profile says: restarts, pauses, outages, delays, wrong clocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from midge.sensor_fleet.profiles.presence import Interval


@dataclass(frozen=True, slots=True)
class Crash:
    """The aggregator's process ends, and another one goes on from its store."""

    at: float
    until: float
    """When the next process is there."""
    clock: float
    """What the monotonic clock of the next process says when it begins."""
    actions: int = 0
    """Actions of the shell that are still carried out from then on: it ends between any two of them."""
    clean: bool = False
    """Whether it is asked to end, and so writes a checkpoint."""


@dataclass(frozen=True, slots=True, order=True)
class Outage:
    """A device is not connected."""

    start: float
    end: float
    reboot: bool = False
    """Whether its process ends as well: what it was training is lost, its outbox is not."""


@dataclass(frozen=True, slots=True)
class Incidents:
    """All of one simulation, in virtual seconds."""

    crashes: Sequence[Crash] = ()
    """In order, and apart. Without any, nothing is kept for a restart."""
    pauses: Sequence[Interval] = ()
    """When the operator holds updates off."""
    outages: Mapping[str, Sequence[Outage]] = field(default_factory=dict)
    """By device, in order."""
    late: float = 0.0
    """The share of a device's messages that arrive late, so that later ones overtake them."""
    delay: float = 0.0
    """By how many seconds, in the mean."""
    clocks: Mapping[str, float] = field(default_factory=dict)
    """By device, how far its clock is ahead of the virtual one; after a reboot it begins at 0."""
    claims: Mapping[str, float] = field(default_factory=dict)
    """By device, the factor by which it is wrong about how long its trainings take."""
    checkpoint: int = 300
    """Records of the journal from one checkpoint to the next."""
