"""The results of a profile fleet's run, virtual or live, and their files."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from midge.sensor_fleet import record
from midge.sensor_fleet.data import FleetData
from midge.sensor_fleet.lazily import numbered
from midge.sensor_fleet.models import FleetModel
from midge.sensor_fleet.profiles.profile import Profile
from midge.sensor_fleet.progress import HELD, METRICS
from midge.sensor_fleet.simulation.result import Simulated, by_class, histogram

if TYPE_CHECKING:
    from midge.sensor_fleet.virtual import ProfileFleet

OWN: Final = 40
"""Maximum devices of each class on whose own rows the final model is evaluated."""
ARRAYS: Final = "arrays.npz"
SETTINGS: Final[Mapping[str, type]] = {
    "data": str,
    "seed": int,
    "model": str,
    "strategy": str,
    "buffer_size": int,
    "learning_rate": float,
    "local_steps": int,
    "batch_size": int,
    "codec": str,
}
"""The values of a `Setting` that a profile's fleet uses, with their types."""
_OF_LIVE: Final = ("speed_up", "federation")


@dataclass(frozen=True, slots=True, eq=False)
class FleetRun:
    """The results of a fleet's run."""

    fleet: "ProfileFleet"
    profile: Profile
    data: FleetData
    model: FleetModel
    result: Simulated
    live: Mapping[str, Any] | None = None
    """Additional results of a live fleet."""

    @property
    def metric(self) -> str:
        return next(iter(self.result.metrics))

    @property
    def value(self) -> float:
        """The mean of the last evaluations."""
        return float(np.mean(self.result.metrics[self.metric][-HELD:]))

    def seconds_to(self, target: float | None) -> float | None:
        """When the mean of the last evaluations reached a target, as a demo counts it."""
        curve = list(zip(self.result.times.tolist(), self.result.metrics[self.metric].tolist(), strict=True))
        return held(curve, target, METRICS[self.metric])

    def own(self) -> dict[str, dict[str, Any]]:
        """The final model on devices' own rows, by class: mean, 10th and 90th percentile, and number of devices."""
        rows_of, parameters = numbered(self.data.devices), self.result.parameters
        scores_by_class = {}
        for place, name in enumerate(self.result.classes):
            mine = np.flatnonzero(self.result.class_of == place)
            if not len(mine):
                continue
            chosen = mine[np.unique(np.linspace(0, len(mine) - 1, min(len(mine), OWN)).round().astype(int))]
            scores = [value_of(self.model.evaluate(parameters, rows_of(int(device)))) for device in chosen]
            scores_by_class[name] = {
                "mean": float(np.mean(scores)),
                "low": float(np.quantile(scores, 0.1)),
                "high": float(np.quantile(scores, 0.9)),
                "devices": len(scores),
            }
        return scores_by_class

    def outcome(self) -> dict[str, Any]:
        """The run as plain values: `result.json`."""
        result = self.result
        up, down = result.bytes_at[-1].tolist() if len(result.bytes_at) else (0, 0)
        return {
            "virtual": self.live is None,
            self.metric: self.value,
            "target": self.fleet.target,
            "seconds_to_target": self.seconds_to(self.fleet.target),
            "seconds": float(result.times[-1]),
            "took": result.took,
            "devices": len(result.devices),
            "versions": int(result.versions[-1]),
            "trainings": result.trainings,
            "updates": len(result.senders),
            "refused": result.refused,
            "troubles": dict(result.troubles),
            "events": result.events,
            "bytes_up": up,
            "bytes_down": down,
            "joules": float(result.joules.sum()),
            "left_out": list(result.left_out),
            "staleness": histogram(result),
            "classes": {name: one.packed() for name, one in by_class(result).items()},
            "own": self.own(),
            "raw_bytes": self._raw(),
            **({} if self.live is None else {"live": dict(self.live)}),
            **({"sites": dict(result.sites)} if result.sites else {}),
        }

    def _raw(self) -> float:
        """Mean bytes of a device's inputs as stored, over a sample of devices."""
        rows_of, number = numbered(self.data.devices), len(self.data.devices)
        some = np.unique(np.linspace(0, number - 1, min(number, 200)).round().astype(int))
        return float(np.mean([rows_of(int(device)).x.nbytes for device in some]))

    def write(self, directory: Path) -> dict[str, Any]:
        """Write the run's files; return its outcome."""
        fleet, result = self.fleet, self.result
        about = {
            "format": 1,
            "virtual": self.live is None,
            "live": self.live is not None,
            "began": 0.0,
            "written": time.time(),
            "target": fleet.target,
            "seconds": fleet.seconds,
            "number_of_devices": fleet.devices,
            "profile": self.profile.model_dump(mode="json", exclude={"folder"}),
            "setting": {
                **{name: word for name, word in fleet.setting.packed().items() if name in SETTINGS},
                "profile": fleet.profile,
                "devices": fleet.devices,
                "days": fleet.days,
                "interval": fleet.interval,
                "speed_up": None if fleet.speed_up == 1 else fleet.speed_up,
                "drift": fleet.drift,
                "fresh": fleet.fresh,
                "micro": fleet.micro or None,
                "sites": fleet.sites or None,
                **{name: word for name, word in (self.live or {}).items() if name in _OF_LIVE},
            },
            "data": {
                "task": self.data.task,
                "kind": self.data.kind,
                "shape": list(self.data.shape),
                "classes": self.data.classes,
                "test_rows": len(self.data.test),
            },
            "model": {
                "name": self.model.name,
                "parameters": sum(int(array.size) for array in self.model.initial.values()),
            },
            "versions": record.versions(),
        }
        record.write(directory, about)
        with (directory / "metrics.jsonl").open("w", encoding="utf-8") as file:
            for line in self.lines():
                file.write(json.dumps(line) + "\n")
        columns = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "bytes_at"}
        arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
        arrays |= {f"model/{name}": array for name, array in result.parameters.items()}
        np.savez_compressed(directory / ARRAYS, allow_pickle=False, **arrays)
        outcome = self.outcome()
        (directory / "result.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
        return outcome

    def lines(self) -> list[dict[str, Any]]:
        """Each evaluation as an event."""
        result = self.result
        return [
            {
                "event": "evaluation",
                "time": float(result.times[place]),
                "version": int(result.versions[place]),
                "updates": int(result.updates[place]),
                "metrics": {name: float(values[place]) for name, values in result.metrics.items()},
                "bytes_up": int(result.bytes_at[place, 0]),
                "bytes_down": int(result.bytes_at[place, 1]),
            }
            for place in range(len(result.times))
        ]


def value_of(metrics: Mapping[str, float]) -> float:
    """The metric that a target can be set for; NaN if there is none."""
    return next((metrics[name] for name in METRICS if name in metrics), math.nan)


def sign_of(metrics: Mapping[str, float]) -> int:
    """1 if higher is better, −1 if lower."""
    return next((sign for name, sign in METRICS.items() if name in metrics), 1)


def held(curve: list[tuple[float, float]], target: float | None, sign: int) -> float | None:
    """When the mean of the last few values first reached the target."""
    if target is None:
        return None
    for end in range(HELD, len(curve) + 1):
        mean = sum(value for _, value in curve[end - HELD : end]) / HELD
        if sign * mean >= sign * target:
            return curve[end - 1][0]
    return None
