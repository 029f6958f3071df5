"""The devices of a profile: each one's class, speed, link and availability.

Every value is drawn independently from (seed, device, purpose, number), not from a sequence, with times in seconds
since the fleet began: live fleets and simulations get the same values, in whatever order they ask.

Loss on a link is packet loss, which TCP hides from MQTT by retransmission. Its effects are bytes sent twice, and a
limit of TCP's throughput to (MSS / RTT)·√(3 / 2p) (Mathis, Semke, Mahdavi and Ott, "The macroscopic behavior of the TCP
congestion avoidance algorithm", 1997).
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Self

import numpy as np
import numpy.typing as npt

from midge.sensor_fleet.profiles.presence import Interval, absences, read_trace, uniform
from midge.sensor_fleet.profiles.profile import Churn, Diurnal, Hardware, Mains, Profile, Trace, Wakes
from midge.wire.plurals import counted

SEGMENT = 1460
"""Bytes of a TCP segment over Ethernet."""
COPIES = 4
"""Float32 vectors of the model's size that a training holds: the base, the model, gradients, and the delta."""
_SHORTEST_STAY = 0.2
"""Minimum share of the churn period for which a device that leaves is present."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """The speed of a device's link to the broker."""

    bandwidth: float
    """Bytes per second from the device; infinite if unlimited."""
    latency: float
    """Seconds, each way."""
    down: float
    """Bytes per second to the device."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A permanent departure."""

    at: float
    """Seconds since the fleet began."""
    goodbye: bool
    """False if it vanishes, so that its Last Will is published."""


class Population:
    """The devices of a profile.

    Args:
        profile: their classes.
        names: of the devices.
        seed: of all that is drawn.
        samples: rows in a usual training: its steps times its batch size.
        values: number of the model's values.
        frozen: bytes of its frozen tensors.
    """

    def __init__(
        self, profile: Profile, names: Sequence[str], seed: int, *, samples: int, values: int, frozen: int = 0
    ) -> None:
        self.profile, self.seed = profile, seed
        self.classes = tuple(one.name for one in profile.classes)
        edges = np.cumsum([one.share for one in profile.classes])
        drawn = np.array([uniform(seed, name, "class", 0) for name in names])
        self.class_of: npt.NDArray[np.int64] = np.minimum(
            np.searchsorted(edges, drawn, side="right"), len(self.classes) - 1
        ).astype(np.int64)
        self._places: dict[str, int] = dict(zip(names, self.class_of.tolist(), strict=True))
        self._samples = samples
        self._factor = 1.0
        self.values, self.frozen = values, frozen
        self.too_small = tuple(one.name for one in profile.classes if one.memory < self.memory_needed(one))
        """Classes whose memory is too small for the model; they never train."""
        if len(self.too_small) == len(self.classes):
            least = min(self.memory_needed(one) for one in profile.classes)
            raise ValueError(f"no class of {profile.name} has the {least:,} bytes that training this model needs.")
        for one in profile.classes:  # report an unreadable trace at once
            if isinstance(one.availability, Trace):
                read_trace(Path(profile.folder) / one.availability.file)

    def scaled(self, factor: float) -> Self:
        """The same devices in scaled time: their trainings, links, outages and pauses are faster by a factor.

        Midge's own time-outs, such as the pause before a reconnection, are not scaled. So a scaled fleet differs from
        an unscaled one; compare a live fleet with a virtual one that is scaled as well.
        """
        fast = copy.copy(self)
        fast._factor = self._factor * factor  # noqa: SLF001 - of our own class
        return fast

    def memory_needed(self, one: Hardware) -> int:
        """Bytes that training this model takes on a class."""
        return COPIES * 4 * self.values if one.board is None else one.board.ram(self.values, self.frozen)

    @property
    def left_out(self) -> tuple[str, ...]:
        """A sentence for each class whose memory is too small for the model: how many devices, and why."""
        found = []
        for place, one in enumerate(self.profile.classes):
            if one.name in self.too_small and (many := int((self.class_of == place).sum())):
                how = "four vectors of its size" if one.board is None else one.board.formula
                found.append(
                    f"{one.name} takes no part, {many:,} of {len(self.class_of):,} devices: the model of "
                    f"{counted(self.values, 'parameter')} needs {self.memory_needed(one):,} bytes of memory "
                    f"({how}), and there are {one.memory:,.0f}."
                )
        return tuple(found)

    @property
    def largest(self) -> int | None:
        """Smallest receive buffer of the classes that take part, in bytes; None if none sets a limit."""
        boards = [one.board for one in self.profile.classes if one.board is not None and one.name not in self.too_small]
        return min((board.largest for board in boards), default=None)

    def hardware(self, device: str) -> Hardware:
        """The class of a device."""
        return self.profile.classes[self._places[device]]

    def seconds(self, device: str) -> float:
        """Duration of a usual training, the same for every training of a device."""
        one = self.hardware(device)
        usual = one.seconds if one.samples_per_second is None else self._samples / one.samples_per_second
        assert usual is not None  # a profile gives one of both
        return usual * math.exp(one.spread * self._normal(device, "training")) / self._factor

    def link(self, device: str) -> LinkSpeed:
        """The speed of its link, constant over time."""
        link = self.hardware(device).link
        factor = math.exp(link.spread * self._normal(device, "bandwidth"))
        latency = link.latency * math.exp(link.spread * self._normal(device, "latency"))
        most = math.inf
        if link.loss and latency:
            most = SEGMENT / (2 * latency) * math.sqrt(1.5 / link.loss)
        up, down = (
            math.inf if rate is None else min(rate * factor, most) * (1 - link.loss) for rate in (link.up, link.down)
        )
        return LinkSpeed(up * self._factor, latency / self._factor, down * self._factor)

    def joins(self, device: str) -> float:
        """When it first connects; 0 if it is present from the start."""
        churn = self._churn(device)
        if uniform(self.seed, device, "late", 0) >= churn.late:
            return 0.0
        return churn.within * uniform(self.seed, device, "joins", 0) / self._factor

    def leaves(self, device: str) -> Departure | None:
        """When it leaves for good; None if it stays."""
        churn = self._churn(device)
        if uniform(self.seed, device, "leave", 0) >= churn.leave:
            return None
        there = churn.within * (_SHORTEST_STAY + (1 - _SHORTEST_STAY) * uniform(self.seed, device, "leaves", 0))
        goodbye = uniform(self.seed, device, "goodbye", 0) < churn.goodbye
        return Departure(self.joins(device) + there / self._factor, goodbye)

    def outages(self, device: str) -> Iterator[Interval]:
        """Intervals without a connection."""
        kind = self.hardware(device).availability
        return (
            iter(())
            if isinstance(kind, Mains)
            else self._scaled_intervals(absences(kind, self.seed, device, self.profile.folder))
        )

    def pauses(self, device: str) -> Iterator[Interval]:
        """Intervals in which it is connected but does not train."""
        one = self.hardware(device)
        if one.name in self.too_small:
            return iter(((0.0, math.inf),))
        kind = one.availability
        return self._scaled_intervals(absences(kind, self.seed, device)) if isinstance(kind, Mains) else iter(())

    def _scaled_intervals(self, intervals: Iterator[Interval]) -> Iterator[Interval]:
        return ((start / self._factor, end / self._factor) for start, end in intervals)

    @property
    def factor(self) -> float:
        """Seconds of the profile per second of this population."""
        return self._factor

    @property
    def twice(self) -> float:
        """The highest probability that a message is duplicated, over all classes."""
        return max(one.link.twice for one in self.profile.classes)

    def twice_sent(self, device: str, number: int) -> bool:
        """Whether its message of that number is duplicated."""
        return uniform(self.seed, device, "twice", number) < self.hardware(device).link.twice

    def says_goodbye(self, device: str) -> bool:
        """Whether its absences begin with a clean disconnect: the end of a day or sleep, but not a broken link."""
        return isinstance(self.hardware(device).availability, Diurnal | Wakes)

    def joules(
        self, steps: npt.NDArray[np.int64], moved: npt.NDArray[np.float64], trained: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Energy of the trainings and bytes of each device, of shape (devices,); lost packets count again.

        `trained` is seconds of training, which sets a microcontroller's energy.
        """
        a_step = np.array([one.joules_per_step for one in self.profile.classes])
        a_byte = np.array([one.joules_per_byte / (1 - one.link.loss) for one in self.profile.classes])
        boards = [one.board for one in self.profile.classes]
        a_second = np.array([0.0 if board is None else board.volts * board.training for board in boards])
        mine = self.class_of
        found: npt.NDArray[np.float64] = a_step[mine] * steps + a_byte[mine] * moved + a_second[mine] * trained
        return found

    def _churn(self, device: str) -> Churn:
        return self.hardware(device).churn

    def _normal(self, device: str, purpose: str) -> float:
        return NormalDist().inv_cdf(uniform(self.seed, device, purpose, 0))
