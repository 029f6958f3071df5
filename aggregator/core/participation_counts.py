"""How often each device was heard, so that fast ones do not drown slow ones.

With r_i = clip((Σ c_j + n) / (n·(c_i + 1)), 1/c, c), where c_i counts a device's accepted updates and forgets with a
half-life, a device that is heard rarely counts more and one that is heard often less; over time each counts alike,
within the bounds. It is importance weighting by the participation rate that FedStale (arXiv:2405.04171) and others
assume known, estimated as it goes.

The lower bound is for devices that are fast. One that floods has no bound: all its updates together count as those of a
device that is heard ten times as often as the one in the middle.
"""

from collections.abc import Iterable
from statistics import median
from typing import Any

HALF_LIFE = 20
"""Updates of each device, on average, after which what was counted is half forgotten."""
OFTEN = 10.0
"""Times the rate of updates of the device in the middle beyond which a device floods: the fastest of twenty devices
with log-normal speeds (σ = 1.2) reaches ten."""


class Participations:
    """Counts of accepted updates by device: all of them, and those of late."""

    def __init__(self) -> None:
        self._devices: dict[str, list[float]] = {}
        """Of each device: all updates, the decayed count, and the number of updates in all when that was true."""
        self._all = 0
        self._recent = 0.0
        self._middle: tuple[int, float] | None = None
        """The median count, and the number of updates when it was computed."""

    def __len__(self) -> int:
        return len(self._devices)

    def take(self, device: str) -> None:
        """An update of this device was accepted."""
        decay = self._decay(1)
        self._all += 1
        self._recent = self._recent * decay + 1
        known = self._devices.setdefault(device, [0, 0.0, self._all])
        known[1] = known[1] * self._decay(self._all - known[2]) + 1
        known[0] += 1
        known[2] = self._all

    def given(self, device: str) -> int:
        """How many updates of this device were ever accepted."""
        return int(self._devices[device][0]) if device in self._devices else 0

    def correction(self, device: str, bound: float) -> float:
        """r_i, within 1/bound and bound; less for a device that floods."""
        count = self._count(device)
        devices = max(1, len(self._devices))
        ratio = (self._recent + devices) / (devices * (count + 1))
        return min(max(ratio, 1 / bound), bound) * self._excess(count)

    def excess(self, device: str) -> float:
        """What an update of a device that floods counts for, as a part of one; 1 for all other devices."""
        return self._excess(self._count(device))

    def _excess(self, count: float) -> float:
        """The same by the decayed count: how often a device is heard beside that in the middle, both raised by one."""
        if self._middle is None or self._all - self._middle[0] > len(self._devices) // 16:
            self._middle = self._all, median(self._count(each) for each in self._devices) if self._devices else 0.0
        return min(1.0, OFTEN / ((count + 1) / (self._middle[1] + 1)))

    def _count(self, device: str) -> float:
        """The decayed count of a device's updates, as of now."""
        if device not in self._devices:
            return 0.0
        _, recent, at = self._devices[device]
        return float(recent * self._decay(self._all - at))

    def forget(self, device: str) -> None:
        """Remove what is known of a device."""
        self._devices.pop(device, None)

    def most(self) -> int:
        """The most updates that one device has given."""
        return int(max((known[0] for known in self._devices.values()), default=0))

    def _decay(self, updates: float) -> float:
        return float(0.5 ** (updates / (HALF_LIFE * max(1, len(self._devices)))))

    def dump(self) -> list[Any]:
        return [self._all, self._recent, [[device, *known] for device, known in self._devices.items()]]

    def load(self, state: Iterable[Any]) -> None:
        self._all, self._recent, devices = state
        self._devices = {device: list(known) for device, *known in devices}
        self._middle = None
