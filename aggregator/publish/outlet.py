"""Outputs of a federation: messages, events and counters."""

from collections.abc import Callable
from dataclasses import dataclass, field

from midge.aggregator.metrics.counters import Meters
from midge.aggregator.publish.publish_queue import Post


@dataclass(frozen=True, slots=True)
class Outlet:
    """Shared by all parts that produce output, so that none needs a queue of its own."""

    put: Callable[[Post], None]
    """Takes a message to publish."""
    tell: Callable[..., None]
    """Takes an event, by name and fields."""
    meters: Meters = field(default_factory=Meters)
