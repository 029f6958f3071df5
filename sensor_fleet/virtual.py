"""Fleets of a profile: their settings, their run on the virtual clock, and the files of a run, virtual or live."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet import record
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.lazy_rows import numbered, shared
from midge.sensor_fleet.models import FleetModel, model_for
from midge.sensor_fleet.profiles import profile as profiles
from midge.sensor_fleet.profiles.profile import Profile
from midge.sensor_fleet.progress import HELD, METRICS
from midge.sensor_fleet.sensors import KINDS, Drift, Stream
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.simulation.cluster import OnRay
from midge.sensor_fleet.simulation.fleet_progress import FleetProgress
from midge.sensor_fleet.simulation.result import Simulated, by_class, histogram
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.clocks import DAY
from midge.wire.topics import check_name

OWN: Final = 40
"""Maximum devices of each class on whose own rows the final model is evaluated."""
EVALUATIONS: Final = 150
ARRAYS: Final = "arrays.npz"
LIVE_SPEED_UP: Final = 600.0
"""Default of a live fleet: a day in 2.4 minutes."""
VARIABLE: Final = "MIDGE_FLEET"
"""The environment variable with the words of `ProfileFleet.words`."""
_OF_SETTING: Final[Mapping[str, type]] = {
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
_OWN: Final[Mapping[str, type]] = {
    "profile": str,
    "devices": int,
    "interval": float,
    "drift": float,
    "fresh": int,
    "micro": int,
    "speed_up": float,
    "federation": str,
    "store": str,
}


@dataclass(frozen=True, slots=True)
class ProfileFleet:
    """A fleet of a profile, virtual or live."""

    setting: Setting
    profile: str = "factory"
    devices: int = 1000
    days: float = 7.0
    workers: int = 1
    ray: str | None = None
    """Run the workers on a Ray cluster: its address, or `local`."""
    target: float | None = None
    stop_at_target: bool = False
    """Whether to end once the target is held."""
    speed_up: float = 1.0
    """Seconds of the profile per second of the clock: live fleets run in scaled time, and virtual ones can."""
    interval: float | None = None
    """Minimum seconds between two trainings of a device, instead of the profile's."""
    drift: float | None = None
    """Days after which the concept of a sensor stream changes; None: never."""
    fresh: int | None = None
    """Rows of a stream that must be new before its device trains again; None: the sensor's default."""
    micro: int = 0
    """Approximate number of microcontrollers among the devices, besides the profile's classes."""
    federation: str = "fleet"
    """Of a live fleet."""
    store: str = "fleet/store"
    """Of an aggregator that is started by hand."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: naming what to change.
        """
        if not 0 < self.speed_up <= 1e6:
            raise ValueError(f"a speed-up of {self.speed_up:g} is out of range: 600 runs a day in 2.4 minutes.")
        check_name(self.federation, "federation")

    @property
    def seconds(self) -> float:
        """Duration, by the profile's clock."""
        return self.days * DAY

    def words(self) -> str:
        """The settings that a live fleet shares with its aggregator, without defaults: name=value pairs for `parse`."""
        usual = type(self)(Setting(), speed_up=LIVE_SPEED_UP)
        pairs = [(name, getattr(self.setting, name), getattr(usual.setting, name)) for name in _OF_SETTING]
        pairs += [(name, getattr(self, name), getattr(usual, name)) for name in _OWN]
        return " ".join(f"{name}={value}" for name, value, before in pairs if value != before)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of `words`.

        Raises:
            ValueError: a pair is malformed, or a name is unknown.
        """
        kinds = {**_OF_SETTING, **_OWN}
        given: dict[str, Any] = {"speed_up": LIVE_SPEED_UP}
        for word in text.split():
            name, _, value = word.partition("=")
            try:
                given[name] = kinds[name](value)
            except (KeyError, ValueError) as error:
                names = ", ".join(kinds)
                raise ValueError(f"{word!r} in {VARIABLE} is not of the form name=value; names are {names}.") from error
        setting = Setting(**{name: value for name, value in given.items() if name in _OF_SETTING})
        return cls(setting, **{name: value for name, value in given.items() if name in _OWN})

    def loaded(self) -> tuple[Profile, FleetData, FleetModel, Strategy]:
        """Load profile, data, model and strategy.

        Raises:
            ValueError: one of them is invalid; the message says what to change.
        """
        if self.devices < 2:
            raise ValueError(f"a fleet of {self.devices} never releases a model: give at least 2 devices.")
        setting = self.setting
        if not 0 <= self.micro <= self.devices:
            raise ValueError(f"{self.micro} microcontrollers do not fit among {self.devices} devices.")
        profile = profiles.load(self.profile).with_micro(self.micro / self.devices)
        data = self._data()
        model = model_for(data, setting.model, torch=setting.engine == "torch", seed=setting.seed)
        if data.task == "classification" and self.target is not None and self.target > 1:
            raise ValueError(f"An accuracy of {self.target:g} cannot be reached: give a share of at most 1.")
        return profile, data, model, self._strategy(profile)

    def _data(self) -> FleetData:
        """The data: a sensor stream, or a fixed set dealt to the devices."""
        setting, own = self.setting, {} if self.fresh is None else {"fresh": self.fresh}
        if (sensors := KINDS.get(setting.data)) is not None:
            drift = None if self.drift is None else Drift(self.drift * DAY)
            return sensors(self.devices, seed=setting.seed, drift=drift, **own)
        if self.drift is not None or self.fresh is not None:
            raise ValueError(f"drift and fresh apply to streaming data: use {' or '.join(KINDS)}, not {setting.data}.")
        data = load(setting.data, devices=None, seed=setting.seed)
        return data if self.devices == len(data.devices) else shared(data, self.devices, setting.seed)

    def _strategy(self, profile: Profile) -> Strategy:
        """The chosen strategy at the profile's pace."""
        usual = profile.strategy()
        pace = usual.pace if self.interval is None else replace(usual.pace, interval=self.interval)
        if self.setting.strategy == "balanced" and self.setting.buffer_size is None:
            return replace(usual, pace=pace, plan=self.setting.plan())
        chosen = self.setting.make_strategy(self.devices)
        kept = chosen.pace if chosen.pace.steered else pace
        return replace(chosen, pace=kept, release_interval=usual.release_interval)

    def run(self, watch: Callable[[FleetProgress], None] | None = None) -> "FleetRun":
        """Simulate the fleet.

        Raises:
            ValueError: the fleet cannot be simulated.
        """
        profile, data, model, strategy = self.loaded()
        recent: list[tuple[float, float]] = []

        def stop(now: float, metrics: Mapping[str, float]) -> bool:
            recent.append((now, value_of(metrics)))
            return self.stop_at_target and held(recent, self.target, sign_of(metrics)) is not None

        found = simulate(
            model,
            data=data,
            strategy=strategy,
            seed=self.setting.seed,
            seconds=self.seconds,
            profile=profile,
            workers=self.workers,
            carry=None if self.ray is None else partial(OnRay, count=self.workers, address=self.ray),
            every=self.seconds / EVALUATIONS,
            stop=stop,
            watch=watch,
            speed_up=self.speed_up,
        )
        standing = data.at(float(found.times[-1])) if isinstance(data, Stream) else data
        return FleetRun(self, profile, standing, model, found)


@dataclass(frozen=True, slots=True, eq=False)
class FleetRun:
    """The results of a fleet's run."""

    fleet: ProfileFleet
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
        scores_of = {}
        for place, name in enumerate(self.result.classes):
            mine = np.flatnonzero(self.result.class_of == place)
            if not len(mine):
                continue
            chosen = mine[np.unique(np.linspace(0, len(mine) - 1, min(len(mine), OWN)).round().astype(int))]
            scores = [value_of(self.model.evaluate(parameters, rows_of(int(device)))) for device in chosen]
            scores_of[name] = {
                "mean": float(np.mean(scores)),
                "low": float(np.quantile(scores, 0.1)),
                "high": float(np.quantile(scores, 0.9)),
                "devices": len(scores),
            }
        return scores_of

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
                **{name: word for name, word in fleet.setting.packed().items() if name in _OF_SETTING},
                "profile": fleet.profile,
                "devices": fleet.devices,
                "days": fleet.days,
                "interval": fleet.interval,
                "speed_up": None if fleet.speed_up == 1 else fleet.speed_up,
                "drift": fleet.drift,
                "fresh": fleet.fresh,
                "micro": fleet.micro or None,
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


_OF_LIVE = ("speed_up", "federation")


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
