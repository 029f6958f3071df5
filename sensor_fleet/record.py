"""The description of a run, written at its start, so that it can be read, repeated and compared: `run.json`."""

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.models import FleetModel
from midge.sensor_fleet.setting import Setting

FILE: Final = "run.json"
_PACKAGES: Final = ("midge", "numpy", "torch", "paho-mqtt", "aiomqtt")


def describe(
    setting: Setting, data: FleetData, model: FleetModel, *, target: float | None, seconds: float, began: float
) -> dict[str, Any]:
    """Describe a run as plain values: setting, data, model, devices and versions, but no addresses or passwords."""
    population = setting.world.population(list(data.devices))
    return {
        "format": 1,
        "began": began,
        "target": target,
        "seconds": seconds,
        "setting": setting.packed(),
        "data": {
            "task": data.task,
            "kind": data.kind,
            "shape": list(data.shape),
            "classes": data.classes,
            "rows": sum(len(rows) for rows in data.devices.values()),
            "test_rows": len(data.test),
        },
        "model": {
            "name": getattr(model, "name", type(model).__name__),
            "parameters": sum(int(array.size) for array in model.initial.values()),
        },
        "devices": {
            name: {
                "rows": len(rows),
                "bytes": int(rows.x.nbytes),  # of x as stored; targets are small beside it
                "seconds": population.seconds(name),
                "engine": setting.engine_of(number),
            }
            for number, (name, rows) in enumerate(data.devices.items())
        },
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def write(directory: Path, about: Mapping[str, Any]) -> None:
    """Write `run.json` into the run's directory."""
    (directory / FILE).write_text(json.dumps(about, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the relevant packages."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
