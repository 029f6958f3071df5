"""Fleets of a profile, virtual or live: their settings, and a run on the virtual clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Self

from midge.aggregator.core.strategy import Strategy
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.fleet_run import SETTINGS, FleetRun, held, sign_of, value_of
from midge.sensor_fleet.lazily import shared
from midge.sensor_fleet.models import FleetModel, model_for
from midge.sensor_fleet.profiles import profile as profiles
from midge.sensor_fleet.profiles.profile import Profile
from midge.sensor_fleet.sensors import KINDS, Drift, Stream
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.simulation.cluster import OnRay
from midge.sensor_fleet.simulation.fleet_progress import FleetProgress
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.clocks import DAY
from midge.wire.topics import check_name

EVALUATIONS: Final = 150
LIVE_SPEED_UP: Final = 600.0
"""Default of a live fleet: a day in 2.4 minutes."""
VARIABLE: Final = "MIDGE_FLEET"
"""The environment variable with the words of `ProfileFleet.words`."""
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
    sites: int = 0
    """Number of gateways between the devices and the aggregator, of a virtual fleet; 0: none."""
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
        pairs = [(name, getattr(self.setting, name), getattr(usual.setting, name)) for name in SETTINGS]
        pairs += [(name, getattr(self, name), getattr(usual, name)) for name in _OWN]
        return " ".join(f"{name}={value}" for name, value, before in pairs if value != before)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of `words`.

        Raises:
            ValueError: a pair is malformed, or a name is unknown.
        """
        kinds = {**SETTINGS, **_OWN}
        given: dict[str, Any] = {"speed_up": LIVE_SPEED_UP}
        for word in text.split():
            name, _, value = word.partition("=")
            try:
                given[name] = kinds[name](value)
            except (KeyError, ValueError) as error:
                names = ", ".join(kinds)
                raise ValueError(f"{word!r} in {VARIABLE} is not of the form name=value; names are {names}.") from error
        setting = Setting(**{name: value for name, value in given.items() if name in SETTINGS})
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

    def run(self, watch: Callable[[FleetProgress], None] | None = None) -> FleetRun:
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
            sites=self.sites,
        )
        standing = data.at(float(found.times[-1])) if isinstance(data, Stream) else data
        return FleetRun(self, profile, standing, model, found)
