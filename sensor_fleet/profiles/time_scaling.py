"""A strategy in scaled time, for a scaled population (`sensor_fleet.profiles.population`)."""

from dataclasses import replace
from typing import Final

from midge.aggregator.core.strategy import Strategy

FASTEST_RATE: Final = 64e6
"""Maximum bytes per second of a scaled strategy: the broker and the devices of a live fleet are real."""


def scaled_strategy(strategy: Strategy, factor: float) -> Strategy:
    """Return the strategy with times divided by a factor and rates multiplied."""

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
