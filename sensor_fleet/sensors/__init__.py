"""Simulated sensor streams: vibration of bearings with growing faults, and the hourly load of sites."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from midge.sensor_fleet.dataset import FleetData
from midge.sensor_fleet.sensors.data_faults import Drift, Flaws
from midge.sensor_fleet.sensors.machines import vibration
from midge.sensor_fleet.sensors.sites import energy
from midge.sensor_fleet.sensors.stream import Sensor, Stream
from midge.wire.clocks import DAY

KINDS: Final[Mapping[str, Callable[..., Stream]]] = {"vibration": vibration, "energy": energy}
"""By the name for `--data`."""

_IN_A_WEEK: Final[Mapping[str, Mapping[str, Any]]] = {"vibration": {"faulty": 0.9}, "energy": {}}
"""Options of a week of data: more faulty machines, so that twenty machines show each fault."""

__all__ = ["KINDS", "Drift", "Flaws", "Sensor", "Stream", "a_week", "energy", "vibration"]


def a_week(kind: str, devices: int, seed: int) -> FleetData:
    """Data of one week of sensors of a kind, 168 rows each, fixed. Most machines are faulty by then."""
    standing = KINDS[kind](devices, seed=seed, window=168, **_IN_A_WEEK[kind]).at(7 * DAY)
    return replace(standing, devices=dict(standing.devices))
