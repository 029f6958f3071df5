"""Simulated sensors that stream: vibration of bearings whose faults grow, and the load of sites, hour by hour."""

from collections.abc import Callable, Mapping
from typing import Final

from sensor_fleet.sensors.flaws import Drift, Flaws
from sensor_fleet.sensors.machines import vibration
from sensor_fleet.sensors.sites import energy
from sensor_fleet.sensors.stream import Sensor, Stream

KINDS: Final[Mapping[str, Callable[..., Stream]]] = {"vibration": vibration, "energy": energy}
"""By the name that `--data` takes."""

__all__ = ["KINDS", "Drift", "Flaws", "Sensor", "Stream", "energy", "vibration"]
