"""Progress reports of a fleet, virtual or live."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

REPORTS = 400
"""Progress reports to `watch` in one run."""


@dataclass(frozen=True, slots=True)
class FleetProgress:
    """A progress report of a simulation."""

    now: float
    """Virtual seconds."""
    until: float
    version: int
    trainings: int
    updates: int
    events: int
    metrics: Mapping[str, float]
    """Of the last evaluation, by name."""
    live: int
    """Devices that are connected."""
    evaluated: bool
    """Whether an evaluation has just been done."""
    doing: str = ""
    """What is being prepared before the run starts; empty during the run."""


Watch = Callable[[FleetProgress], None]
