"""Simulated sensors that stream: vibration of bearings whose faults grow, and the load of sites, hour by hour."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from sensor_fleet.data import FleetData
from sensor_fleet.sensors.flaws import DAY, Drift, Flaws
from sensor_fleet.sensors.machines import vibration
from sensor_fleet.sensors.sites import energy
from sensor_fleet.sensors.stream import Sensor, Stream

KINDS: Final[Mapping[str, Callable[..., Stream]]] = {"vibration": vibration, "energy": energy}
"""By the name that `--data` takes."""

__all__ = ["KINDS", "Drift", "Flaws", "Sensor", "Stream", "a_week", "energy", "vibration"]


def a_week(kind: str, devices: int, seed: int) -> FleetData:
    """What sensors of a kind have told after a week, standing still, as a data set to train on."""
    standing = KINDS[kind](devices, seed=seed, window=168).at(7 * DAY)
    return replace(standing, devices=dict(standing.devices))
