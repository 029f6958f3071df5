"""The world of a demo: a dozen numbers, set by options and files, from which a profile is made."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.profile import Always, Breaking, Profile, load

_SHARES = ("late", "leave", "goodbye", "twice")


@dataclass(frozen=True, slots=True)
class World:
    """A seeded value; the defaults are those of the profile `demo`. 0 turns an optional effect off."""

    seed: int = 0
    median: float = 0.5
    """Seconds of one training on the median device."""
    spread: float = 1.15
    """σ of its logarithm: 1.15 spreads 95 % of the devices over two orders of magnitude; 0 makes all alike."""
    online: float = 15.0
    """Mean seconds between failures of a link; 0: it never fails."""
    offline: float = 2.0
    """Mean seconds that a link stays broken."""
    late: float = 0.15
    """Share of the devices that join late."""
    leave: float = 0.15
    """Share of the devices that leave for good."""
    goodbye: float = 0.5
    """Share of these that disconnect cleanly; the others vanish."""
    turnover: float = 20.0
    """Seconds within which devices join and leave."""
    twice: float = 0.05
    """Probability that a message is duplicated."""
    bandwidth: float = 200_000.0
    """Bytes per second of the median link, each way; 0: unlimited."""
    latency: float = 0.04
    """Latency of the median link in seconds, each way."""
    link_spread: float = 0.7
    """σ of the logarithms of bandwidth and latency."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a value is not a number, negative, infinite, or a share above 1.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name == "seed"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{field.name} of the world must be {kind}, not {value!r}.")  # noqa: TRY004
            if not whole and not 0 <= value < math.inf:
                raise ValueError(f"{field.name} of the world must be a finite number of at least 0, not {value}.")
            if field.name in _SHARES and value > 1:
                raise ValueError(f"{field.name} of the world is a share and must be at most 1, not {value}.")

    @classmethod
    def read(cls, path: Path, base: Self) -> Self:
        """Read the world of a TOML file; what it does not set stays as in `base`.

        Raises:
            ValueError: the file cannot be read, is no TOML, or has an unknown name.
        """
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The world {path} cannot be read ({error.strerror}): name a TOML file.") from error
        except ValueError as error:
            raise ValueError(f"The world {path} is not valid TOML: {error}.") from error
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"The world {path} has an unknown name {name!r}; names are {', '.join(known)}.")
        try:
            return replace(base, **values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def calm(self) -> Self:
        """The same devices and speeds, with links that never fail and no device that joins late or leaves."""
        return replace(self, online=0.0, late=0.0, leave=0.0, twice=0.0, bandwidth=0.0, latency=0.0)

    def profile(self) -> Profile:
        """The profile `demo` with these numbers."""
        demo = load("demo")
        (device,) = demo.classes
        rate = self.bandwidth or None
        breaks = self.online and self.offline
        link = {"up": rate, "down": rate, "latency": self.latency, "spread": self.link_spread, "twice": self.twice}
        churn = {"late": self.late, "leave": self.leave, "goodbye": self.goodbye, "within": self.turnover}
        parts = {
            "seconds": self.median,
            "spread": self.spread,
            "link": device.link.model_copy(update=link),
            "churn": device.churn.model_copy(update=churn),
            "availability": (
                Breaking(kind="breaking", online=self.online, offline=self.offline) if breaks else Always()
            ),
        }
        return demo.model_copy(update={"classes": (device.model_copy(update=parts),)})

    def population(self, names: Sequence[str]) -> Population:
        """The devices of this world."""
        return Population(self.profile(), names, self.seed, samples=1, values=0)
