"""The world that a simulated fleet lives in: how fast devices are, how their links fail, who comes and who goes.

A world is one plain value and no process: it answers questions about a device, in seconds since the fleet began, and
reads no clock. Live fleets and simulations on a virtual clock ask the same questions and get the same answers, in
whichever order they ask: every number is drawn by itself from (seed, device, purpose, number), none from a stream.
"""

import hashlib
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol, Self

_SHARES = ("late", "leave", "goodbye", "twice")
_BITS = 53
"""Of chance in a number: as many as a float holds."""
_EARLIEST = 0.2
"""The part of the turnover that every device which leaves is there for."""


@dataclass(frozen=True, slots=True)
class Link:
    """A device's way to the broker."""

    bandwidth: float
    """Bytes per second, each way; infinite where there is no limit."""
    latency: float
    """Seconds, each way."""
    down: float | None = None
    """Bytes per second towards the device, where they are others."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A device that leaves for good."""

    at: float
    """Seconds since the fleet began."""
    goodbye: bool
    """False where it vanishes, so that its Last Will has to tell."""


class Surroundings(Protocol):
    """What a simulation asks of a world."""

    @property
    def seed(self) -> int: ...
    @property
    def twice(self) -> float: ...
    def seconds(self, device: str) -> float: ...
    def joins(self, device: str) -> float: ...
    def leaves(self, device: str) -> Departure | None: ...
    def link(self, device: str) -> Link: ...
    def outages(self, device: str) -> Iterator[tuple[float, float]]: ...
    def pauses(self, device: str) -> Iterator[tuple[float, float]]: ...
    def twice_sent(self, device: str, number: int) -> bool: ...
    def says_goodbye(self, device: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class World:
    """One seeded value. Seconds are counted from the start of the fleet; 0 turns off what can be turned off."""

    seed: int = 0
    median: float = 0.5
    """Seconds that one training takes on the device in the middle."""
    spread: float = 1.15
    """σ of its logarithm: 1.15 spreads nineteen of twenty devices over two orders of magnitude; 0 makes all alike."""
    online: float = 15.0
    """Seconds that a link holds in the mean, before it breaks; 0: it never breaks."""
    offline: float = 2.0
    """Seconds that a broken link stays broken in the mean."""
    late: float = 0.15
    """The share of the devices that join late."""
    leave: float = 0.15
    """The share of the devices that leave for good."""
    goodbye: float = 0.5
    """The share of those which say goodbye; the others vanish."""
    turnover: float = 20.0
    """Seconds within which devices join late and leave."""
    twice: float = 0.05
    """The chance that a message of a device reaches the broker twice."""
    bandwidth: float = 200_000.0
    """Bytes per second of the link in the middle, each way; 0: without limit."""
    latency: float = 0.04
    """Seconds that a message takes on the link in the middle, each way."""
    link_spread: float = 0.7
    """σ of the logarithms of bandwidth and latency."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a value that is no number, negative, infinite, or a share above 1.
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
        """The world that a TOML file describes: what it does not name stays as in `base`.

        Raises:
            ValueError: there is no such file, it is no TOML, or it names what a world does not have.
        """
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The world {path} cannot be read ({error.strerror}): name a TOML file.") from error
        except ValueError as error:
            raise ValueError(f"The world {path} is no TOML file: {error}.") from error
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"The world {path} names {name!r}, which is none of {', '.join(known)}.")
        try:
            return replace(base, **values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def calm(self) -> Self:
        """The same devices at the same speeds, with links that never fail and nobody who comes or goes."""
        return replace(self, online=0.0, late=0.0, leave=0.0, twice=0.0, bandwidth=0.0, latency=0.0)

    # ------------------------------------------------------------------- devices

    def seconds(self, device: str) -> float:
        """How long one training takes on this device, at least. A device keeps its speed."""
        return self.median * math.exp(self.spread * self._normal(device, "training"))

    def joins(self, device: str) -> float:
        """When it first connects; 0 for those that are there from the start."""
        if self._uniform(device, "late") >= self.late:
            return 0.0
        return self.turnover * self._uniform(device, "joins")

    def leaves(self, device: str) -> Departure | None:
        """When it leaves for good; None for those that stay."""
        if self._uniform(device, "leave") >= self.leave:
            return None
        there = self.turnover * (_EARLIEST + (1 - _EARLIEST) * self._uniform(device, "leaves"))
        return Departure(self.joins(device) + there, self._uniform(device, "goodbye") < self.goodbye)

    # --------------------------------------------------------------------- links

    def link(self, device: str) -> Link:
        """How fast its link is. A device keeps its link."""
        bandwidth = self.bandwidth * math.exp(self.link_spread * self._normal(device, "bandwidth"))
        latency = self.latency * math.exp(self.link_spread * self._normal(device, "latency"))
        return Link(bandwidth or math.inf, latency)

    def outages(self, device: str) -> Iterator[tuple[float, float]]:
        """When its link is broken: from and until, ascending, without end. Both lengths are exponential."""
        now, number = 0.0, 0
        while self.online and self.offline:
            broken = now + self.online * self._exponential(device, "online", number)
            now = broken + self.offline * self._exponential(device, "offline", number)
            number += 1
            yield broken, now

    def pauses(self, device: str) -> Iterator[tuple[float, float]]:
        """When it is there and does not train: from and until, ascending. Never, in this world."""
        del device
        return iter(())

    def twice_sent(self, device: str, number: int) -> bool:
        """Whether its message of that number reaches the broker twice."""
        return self._uniform(device, "twice", number) < self.twice

    def says_goodbye(self, device: str) -> bool:
        """Whether it says so when an outage begins. In this world links break."""
        del device
        return False

    # -------------------------------------------------------------------- chance

    def _uniform(self, device: str, purpose: str, number: int = 0) -> float:
        """In (0, 1)."""
        return chance(self.seed, device, purpose, number)

    def _normal(self, device: str, purpose: str) -> float:
        return NormalDist().inv_cdf(self._uniform(device, purpose))

    def _exponential(self, device: str, purpose: str, number: int) -> float:
        return -math.log(self._uniform(device, purpose, number))


@lru_cache(maxsize=1 << 16)
def chance(seed: int, device: str, purpose: str, number: int) -> float:
    """A number in (0, 1) that belongs to exactly these four: the hash of their names."""
    digest = hashlib.blake2b(f"{seed}/{device}/{purpose}/{number}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> (64 - _BITS)) + 0.5) / float(1 << _BITS)
