"""Simulated sensors that stream: vibration of bearings whose faults grow, and the load of sites, hour by hour."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from midge.sensor_fleet.dataset import FleetData
from midge.sensor_fleet.sensors.flaws import DAY, Drift, Flaws
from midge.sensor_fleet.sensors.machines import vibration
from midge.sensor_fleet.sensors.sites import energy
from midge.sensor_fleet.sensors.stream import Sensor, Stream

KINDS: Final[Mapping[str, Callable[..., Stream]]] = {"vibration": vibration, "energy": energy}
"""By the name that `--data` takes."""

_IN_A_WEEK: Final[Mapping[str, Mapping[str, Any]]] = {"vibration": {"faulty": 0.9}, "energy": {}}
"""So that twenty machines show each fault."""

__all__ = ["KINDS", "Drift", "Flaws", "Sensor", "Stream", "a_week", "energy", "vibration"]


def a_week(kind: str, devices: int, seed: int) -> FleetData:
    """What sensors of a kind hold after a week, 168 rows each, standing still. Most machines are faulty by then."""
    standing = KINDS[kind](devices, seed=seed, window=168, **_IN_A_WEEK[kind]).at(7 * DAY)
    return replace(standing, devices=dict(standing.devices))
