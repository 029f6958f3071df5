"""A fleet that a profile describes, as a world: which class a device is of, how fast, how linked, and when there.

It is asked as `sensor_fleet.world.World` is, and answers from (seed, device) alone.

Loss on a link is loss of packets, which MQTT does not see: TCP sends them again. What remains of it is bytes that are
sent twice, and that TCP goes at most at (MSS / RTT)·√(3 / 2p) (Mathis, Semke, Mahdavi and Ott, "The macroscopic
behavior of the TCP congestion avoidance algorithm", 1997).
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from sensor_fleet.profiles.presence import away, read_trace
from sensor_fleet.profiles.profile import Churn, Diurnal, Hardware, Mains, Profile, Trace
from sensor_fleet.world import Departure, Link, chance

SEGMENT = 1460
"""Bytes of a TCP segment over Ethernet."""
COPIES = 4
"""Float32 vectors of the model's size that a training holds: the base, the model, gradients, and the delta."""
_EARLIEST = 0.2
"""The part of the churn's time that every device which leaves is there for."""


class Population:
    """Devices of a profile.

    Args:
        profile: what they are.
        names: of the devices.
        seed: of all chance.
        samples: rows that a usual training takes: its steps times its batch.
        values: of the model.
    """

    twice = 0.0

    def __init__(self, profile: Profile, names: Sequence[str], seed: int, *, samples: int, values: int) -> None:
        self.profile, self.seed = profile, seed
        self.classes = tuple(one.name for one in profile.classes)
        edges = np.cumsum([one.share for one in profile.classes])
        drawn = np.array([chance(seed, name, "class", 0) for name in names])
        self.class_of: npt.NDArray[np.int64] = np.minimum(
            np.searchsorted(edges, drawn, side="right"), len(self.classes) - 1
        ).astype(np.int64)
        self._places: dict[str, int] = dict(zip(names, self.class_of.tolist(), strict=True))
        self._samples = samples
        self.too_small = tuple(one.name for one in profile.classes if one.memory < COPIES * 4 * values)
        """Classes in whose memory the model does not fit: they never train."""
        if len(self.too_small) == len(self.classes):
            least = COPIES * 4 * values
            raise ValueError(f"no class of {profile.name} has the {least:,} bytes that training this model takes.")
        for one in profile.classes:  # a trace that cannot be read is told at once
            if isinstance(one.availability, Trace):
                read_trace(Path(profile.folder) / one.availability.file)

    def hardware(self, device: str) -> Hardware:
        """The class of a device."""
        return self.profile.classes[self._places[device]]

    def seconds(self, device: str) -> float:
        """How long a usual training takes. A device keeps its speed."""
        one = self.hardware(device)
        return self._samples / one.samples_per_second * math.exp(one.spread * self._normal(device, "training"))

    def link(self, device: str) -> Link:
        """How fast its link is. A device keeps its link."""
        link = self.hardware(device).link
        factor = math.exp(link.spread * self._normal(device, "bandwidth"))
        latency = link.latency * math.exp(link.spread * self._normal(device, "latency"))
        most = math.inf
        if link.loss and latency:
            most = SEGMENT / (2 * latency) * math.sqrt(1.5 / link.loss)
        goodput = 1 - link.loss
        return Link(min(link.up * factor, most) * goodput, latency, min(link.down * factor, most) * goodput)

    def joins(self, device: str) -> float:
        """When it first connects; 0 for those that are there from the start."""
        churn = self._churn(device)
        if chance(self.seed, device, "late", 0) >= churn.late:
            return 0.0
        return churn.within * chance(self.seed, device, "joins", 0)

    def leaves(self, device: str) -> Departure | None:
        """When it leaves for good; None for those that stay."""
        churn = self._churn(device)
        if chance(self.seed, device, "leave", 0) >= churn.leave:
            return None
        there = churn.within * (_EARLIEST + (1 - _EARLIEST) * chance(self.seed, device, "leaves", 0))
        return Departure(self.joins(device) + there, chance(self.seed, device, "goodbye", 0) < churn.goodbye)

    def outages(self, device: str) -> Iterator[tuple[float, float]]:
        """When it has no connection."""
        kind = self.hardware(device).availability
        return iter(()) if isinstance(kind, Mains) else away(kind, self.seed, device, self.profile.folder)

    def pauses(self, device: str) -> Iterator[tuple[float, float]]:
        """When it is connected and does not train."""
        one = self.hardware(device)
        if one.name in self.too_small:
            return iter(((0.0, math.inf),))
        return away(one.availability, self.seed, device) if isinstance(one.availability, Mains) else iter(())

    def twice_sent(self, device: str, number: int) -> bool:
        """Whether a message reaches the broker twice: never."""
        del device, number
        return False

    def says_goodbye(self, device: str) -> bool:
        """Whether it says so when it goes for a while: where a day ends, and not where a link breaks."""
        return isinstance(self.hardware(device).availability, Diurnal)

    def joules(self, steps: npt.NDArray[np.int64], moved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What steps and bytes of each device took, of shape (devices,): packets that were lost count again."""
        a_step = np.array([one.joules_per_step for one in self.profile.classes])
        a_byte = np.array([one.joules_per_byte / (1 - one.link.loss) for one in self.profile.classes])
        found: npt.NDArray[np.float64] = a_step[self.class_of] * steps + a_byte[self.class_of] * moved
        return found

    def _churn(self, device: str) -> Churn:
        return self.hardware(device).churn

    def _normal(self, device: str, purpose: str) -> float:
        return NormalDist().inv_cdf(chance(self.seed, device, purpose, 0))
