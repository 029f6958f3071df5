"""What a live fleet is set to: what the devices and the aggregator must agree on, in words of the form name=value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from aggregator.strategy import Strategy
from sensor_fleet.data import FleetData
from sensor_fleet.models import FleetModel
from sensor_fleet.profiles.hastened import hastened
from sensor_fleet.profiles.profile import Profile
from sensor_fleet.setting import Setting
from sensor_fleet.virtual import VirtualFleet
from wire.topics import check_name

VARIABLE: Final = "MIDGE_FLEET"
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
_OF_FLEET: Final[Mapping[str, type]] = {"profile": str, "devices": int, "interval": float, "drift": float, "fresh": int}
_OWN: Final[Mapping[str, type]] = {"speed_up": float, "federation": str, "store": str}


@dataclass(frozen=True, slots=True)
class Live:
    """A fleet of a profile in scaled time."""

    fleet: VirtualFleet
    speed_up: float = 600.0
    """Seconds of the profile in one of ours."""
    federation: str = "fleet"
    store: str = "fleet/store"
    """Of an aggregator that somebody starts by hand."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming what to change.
        """
        if not 0 < self.speed_up <= 1e6:
            raise ValueError(f"a speed-up of {self.speed_up:g} cannot be: 600 makes a day of 2.4 minutes.")
        check_name(self.federation, "federation")

    @property
    def seconds(self) -> float:
        """How long it runs, by our clock."""
        return self.fleet.seconds / self.speed_up

    def loaded(self) -> tuple[Profile, FleetData, FleetModel, Strategy]:
        """All that a run needs; the strategy in scaled time.

        Raises:
            ValueError: a profile, data, model or strategy that cannot be; the message says what to change.
        """
        profile, data, model, strategy = self.fleet.loaded()
        return profile, data, model, hastened(strategy, self.speed_up)

    def words(self) -> str:
        """What is not as usual, for `parse`."""
        usual = Live(VirtualFleet(Setting()))
        pairs = [(name, getattr(self.fleet.setting, name), getattr(usual.fleet.setting, name)) for name in _OF_SETTING]
        pairs += [(name, getattr(self.fleet, name), getattr(usual.fleet, name)) for name in _OF_FLEET]
        pairs += [(name, getattr(self, name), getattr(usual, name)) for name in _OWN]
        return " ".join(f"{name}={value}" for name, value, before in pairs if value != before)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `words` wrote.

        Raises:
            ValueError: a word is none, or there is no such name.
        """
        kinds = {**_OF_SETTING, **_OF_FLEET, **_OWN}
        given: dict[str, Any] = {}
        for word in text.split():
            name, _, value = word.partition("=")
            try:
                given[name] = kinds[name](value)
            except (KeyError, ValueError) as error:
                names = ", ".join(kinds)
                raise ValueError(f"{word!r} in {VARIABLE} is not of the form name=value; names are {names}.") from error
        setting = Setting(**{name: value for name, value in given.items() if name in _OF_SETTING})
        fleet = VirtualFleet(setting, **{name: value for name, value in given.items() if name in _OF_FLEET})
        return cls(fleet, **{name: value for name, value in given.items() if name in _OWN})
