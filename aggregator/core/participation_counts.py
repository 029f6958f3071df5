"""Participation counts, and the weight correction from them: fast devices must not dominate slow ones.

The weight of an update is multiplied by r_i = clip((Σ c_j + n) / (n·(c_i + 1)), 1/c, c), where c_i is the number of its
device's accepted updates, decayed with a half-life. So rare devices count more and frequent ones less, and over time
all devices count equally, within the bounds. This is importance weighting by the participation rate, which FedStale
(arXiv:2405.04171) and others assume to be known, and which is estimated here.

The lower bound is for fast devices. A device that floods has none: all its updates together count as those of a device
with ten times the median count.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any

HALF_LIFE = 20
"""Half-life of the counts, in mean updates of each device."""
OFTEN = 10.0
"""Multiple of the median count above which a device floods: the fastest of twenty devices with log-normal speeds
(σ = 1.2) reaches ten."""


class ParticipationCounter:
    """Accepted updates of each device: their number, and the decayed count."""

    def __init__(self) -> None:
        self._devices: dict[str, list[float]] = {}
        """By device: its number of updates, its decayed count, and the total number of updates at that count."""
        self._all = 0
        self._recent = 0.0
        self._middle: tuple[int, float] | None = None
        """The total number of updates when the median count was computed, and this median."""

    def __len__(self) -> int:
        return len(self._devices)

    def take(self, device: str) -> None:
        """Record an accepted update."""
        decay = self._decay(1)
        self._all += 1
        self._recent = self._recent * decay + 1
        known = self._devices.setdefault(device, [0, 0.0, self._all])
        known[1] = known[1] * self._decay(self._all - known[2]) + 1
        known[0] += 1
        known[2] = self._all

    def given(self, device: str) -> int:
        """Number of this device's updates that were ever accepted."""
        return int(self._devices[device][0]) if device in self._devices else 0

    def numbers(self) -> list[tuple[str, int]]:
        """Each device with the number of its updates that were ever accepted."""
        return [(device, int(known[0])) for device, known in self._devices.items()]

    def correction(self, device: str, bound: float) -> float:
        """r_i, from 1/bound to bound; less for a device that floods."""
        count = self._count(device)
        devices = max(1, len(self._devices))
        ratio = (self._recent + devices) / (devices * (count + 1))
        return min(max(ratio, 1 / bound), bound) * self._excess(count)

    def excess(self, device: str) -> float:
        """The factor below 1 for updates of a device that floods; 1 for all others."""
        return self._excess(self._count(device))

    def _excess(self, count: float) -> float:
        """The same from a device's decayed count, compared with the median count, both plus one."""
        if self._middle is None or self._all - self._middle[0] > len(self._devices) // 16:
            self._middle = self._all, median(self._count(each) for each in self._devices) if self._devices else 0.0
        return min(1.0, OFTEN / ((count + 1) / (self._middle[1] + 1)))

    def _count(self, device: str) -> float:
        """The current decayed count of a device."""
        if device not in self._devices:
            return 0.0
        _, recent, at = self._devices[device]
        return float(recent * self._decay(self._all - at))

    def forget(self, device: str) -> None:
        """Remove the counts of a device."""
        self._devices.pop(device, None)

    def _decay(self, updates: float) -> float:
        return float(0.5 ** (updates / (HALF_LIFE * max(1, len(self._devices)))))

    def dump(self) -> list[Any]:
        return [self._all, self._recent, [[device, *known] for device, known in self._devices.items()]]

    def load(self, state: Iterable[Any]) -> None:
        self._all, self._recent, devices = state
        self._devices = {device: list(known) for device, *known in devices}
        self._middle = None
