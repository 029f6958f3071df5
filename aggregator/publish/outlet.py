"""Where what a federation says goes: messages, events and counts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from midge.aggregator.metrics.counters import Meters
from midge.aggregator.publish.publish_queue import Post


@dataclass(frozen=True, slots=True)
class Outlet:
    """Given to every part that says something; each has its own reasons and none its own queue."""

    put: Callable[[Post], None]
    """Takes a message to publish."""
    tell: Callable[..., None]
    """Takes an event, by name and fields."""
    meters: Meters = field(default_factory=Meters)
