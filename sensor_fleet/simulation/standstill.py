"""Strategies whose model cannot move in a simulation, or moves by noise: said before it runs."""

import logging
import math

from midge.aggregator.core.strategy import Strategy

log = logging.getLogger("simulation")

_DROWNED = 100.0
"""Multiple of what the devices of a step can give at most above which its noise is reported: a hundred steps that all
point the same way are then no longer than their noise."""


def refuse_standstill(strategy: Strategy, devices: int, values: int, seconds: float) -> None:
    """Refuse a strategy whose model would never move; warn of one whose steps are noise.

    Args:
        strategy: of the federation.
        devices: number of devices.
        values: number of values that are trained.
        seconds: length of the run.

    Raises:
        ValueError: it needs what a simulation does not have: a mask helper, more distinct devices, or more time.
    """
    if strategy.masked:
        raise ValueError(
            "a simulation has no mask helper, so that the model would never move: run midge demo --secure, or simulate "
            "fedbuff, whose steps are those of secure but for the rounding."
        )
    if strategy.release_floor > devices:
        raise ValueError(
            f"a release carries the work of {strategy.release_floor} distinct devices at least, and there are "
            f"{devices}: none would ever be made. Give a smaller release_floor, or more devices."
        )
    if strategy.release_interval >= seconds:
        raise ValueError(
            f"the first version with work of devices is released after {strategy.release_interval:g} seconds, and the "
            f"run has {seconds:g}: give a shorter release_interval, or more seconds."
        )
    privacy = strategy.privacy
    if privacy is None:
        return
    size = strategy.size(devices)
    if strategy.deadline is None and size > devices:
        raise ValueError(
            f"a private step takes the updates of {size} distinct devices, and there are {devices}: no step would "
            "ever be made. Give a smaller buffer_size, or more devices."
        )
    if (ratio := privacy.noise * math.sqrt(values) / size) > _DROWNED:
        log.warning(
            "The noise of a private step is about %.0f times as long as all that its %d devices can give: the model "
            "moves by the noise. Use less noise, a larger buffer_size, or a smaller model.",
            ratio,
            size,
        )
