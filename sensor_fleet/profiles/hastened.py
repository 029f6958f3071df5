"""A fleet in scaled time: the same devices, links, outages and pauses, faster by a factor.

What a profile says of seconds is divided, what it says of rates multiplied. What Midge itself waits for stays: how long
a session has patience, how soon a device connects again, how often it reads an announcement again. So a hastened fleet
is one of its own, and a virtual run of it has to be asked for as such to be compared with a live one.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from aggregator.strategy import Strategy
from sensor_fleet.world import Departure, Link, Surroundings

FASTEST_RATE: Final = 64e6
"""Bytes a second that a hastened strategy allows at most: the broker and the devices of a live fleet are real."""


class Hastened:
    """A world in scaled time."""

    def __init__(self, world: Surroundings, factor: float) -> None:
        self._world, self._factor = world, factor

    @property
    def seed(self) -> int:
        return self._world.seed

    @property
    def twice(self) -> float:
        return self._world.twice

    def seconds(self, device: str) -> float:
        """How long a usual training takes."""
        return self._world.seconds(device) / self._factor

    def joins(self, device: str) -> float:
        """When it first connects."""
        return self._world.joins(device) / self._factor

    def leaves(self, device: str) -> Departure | None:
        """When it leaves for good."""
        departure = self._world.leaves(device)
        return None if departure is None else replace(departure, at=departure.at / self._factor)

    def link(self, device: str) -> Link:
        """How fast its link is."""
        link, factor = self._world.link(device), self._factor
        return Link(link.bandwidth * factor, link.latency / factor, None if link.down is None else link.down * factor)

    def outages(self, device: str) -> Iterator[tuple[float, float]]:
        """When it has no connection."""
        return ((start / self._factor, end / self._factor) for start, end in self._world.outages(device))

    def pauses(self, device: str) -> Iterator[tuple[float, float]]:
        """When it is connected and does not train."""
        return ((start / self._factor, end / self._factor) for start, end in self._world.pauses(device))

    def twice_sent(self, device: str, number: int) -> bool:
        """Whether its message of that number reaches the broker twice."""
        return self._world.twice_sent(device, number)

    def says_goodbye(self, device: str) -> bool:
        """Whether it says so when an outage begins."""
        return self._world.says_goodbye(device)


def hastened(strategy: Strategy, factor: float) -> Strategy:
    """A strategy whose times go with such a world."""

    def less(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / factor

    pace, staleness = strategy.pace, strategy.staleness
    rate = pace.updates_per_second
    return replace(
        strategy,
        deadline=less(strategy.deadline),
        max_age=less(strategy.max_age),
        serve_interval=less(strategy.serve_interval),
        release_interval=strategy.release_interval / factor,
        byte_rate=max(strategy.byte_rate, min(strategy.byte_rate * factor, FASTEST_RATE)),
        staleness=replace(staleness, seconds=less(staleness.seconds)),
        pace=replace(pace, interval=pace.interval / factor, updates_per_second=None if rate is None else rate * factor),
    )
