"""Release pacing: spaces releases so that the traffic of each one stays within the federation's byte rate.

A release costs one announcement for every connected device, and a step frame and an update for every device that
fetches it. The number of fetches is not known beforehand, so it is estimated from the updates of earlier releases. A
device that skipped versions fetches a merged step, which is no larger than its steps. Each message costs more than its
bytes (`wire.sharing`).
"""

import math

from midge.aggregator.core.participation_controller import ParticipationController
from midge.wire.sharing import cost, spread

AT_ONCE = 3
"""Number of messages that an announcement counts as: a broker with one thread sends it to all devices in one go, 20 µs
for each, while other messages wait. This should take less than a hundredth of the time."""
CREDIT = 1.0
"""Seconds of the rate that may be spent at once after idle time, so that a few quick releases do not wait."""

_MEMORY = 600.0
"""Time constant, in seconds, with which disconnected devices are forgotten."""
_GROWN = 1.5
"""Growth of the fleet since the last announcement that calls for another one."""


class ReleasePacer:
    """The pacing of one federation. Not durable: it restarts with the process."""

    def __init__(self, rate: float, steering: ParticipationController) -> None:
        self._rate, self._steering = rate, steering
        self.costs = (0, 0)
        """Bytes of the last announcement and of the last step."""
        self._announced = 0
        """Number of devices in the last announcement."""
        self._fetches, self._updates, self._update_size = 0.0, 0, 0.0
        self._earned_from = float("-inf")
        """The time from which the rate pays for the last release."""
        self._recent, self._followed_at = 0.0, 0.0
        """Decaying number of recently connected devices, and when it was updated."""

    @property
    def devices(self) -> int:
        """Number of devices that share the rate: connected now or recently; at first, those given to `begin`.

        After an outage of the broker the whole fleet reconnects, and the first devices must not take themselves for
        all: they would fetch at once.
        """
        return max(self._steering.live, round(self._recent))

    def begin(self, devices: int, now: float) -> None:
        """Start with the number of devices that took part before the restart."""
        self._recent, self._followed_at = float(devices), now

    def follow(self, now: float) -> None:
        """Update the decaying number of devices."""
        gone = max(0.0, self._recent - self._steering.live)
        self._recent = self._steering.live + gone * math.exp(-(now - self._followed_at) / _MEMORY)
        self._followed_at = now

    def count_update(self, size: int) -> None:
        """Count an accepted update of `size` bytes."""
        self._updates += 1
        self._update_size += (size - self._update_size) * (0.05 if self._update_size else 1.0)

    def announced(self) -> None:
        """Record an announcement with the current number of devices."""
        self._announced = self.devices

    def released(self, now: float) -> None:
        """Record the release of a version and its announcement."""
        self.announced()
        self._earned_from = max(self.paid, now - CREDIT)
        self._fetches = fetched(self._fetches, self._updates)
        self._updates = 0

    @property
    def paid(self) -> float:
        """When the last release is paid for, so that the next may follow."""
        announcement, step = self.costs
        return self._earned_from + interval(
            announcement=announcement,
            step=step,
            update=self._update_size,
            devices=max(self._steering.live, 1),
            fetches=self._fetches,
            rate=self._rate,
        )

    @property
    def grown(self) -> bool:
        """Whether the fleet has grown so far beyond the announced number that devices would fetch at other times."""
        step, devices = self.costs[1], self.devices
        if devices <= _GROWN * self._announced:
            return False
        announced = spread(self._rate, self._announced, step, 2)
        return max(announced, spread(self._rate, devices, step, 2)) > 0


def interval(*, announcement: int, step: int, update: float, devices: int, fetches: float, rate: float) -> float:
    """Seconds of the byte rate that a release costs; 0 without a rate or an announcement.

    Args:
        announcement: bytes of one announcement; 0 if nothing was published.
        step: bytes of the frame from the last version to this one.
        update: mean bytes of the update that follows a fetch.
        devices: number of connected devices, each of which receives the announcement.
        fetches: mean number of fetches of a release; at most `devices` are counted.
        rate: bytes a second of all devices together; 0 sets no limit.
    """
    if rate <= 0 or devices <= 0 or announcement <= 0:
        return 0.0
    exchange = cost(step, 2) + cost(0, 2) + update
    return (cost(announcement, AT_ONCE) * devices + exchange * min(max(fetches, 0.0), devices)) / rate


def fetched(before: float, trained: int) -> float:
    """The running mean of fetches of a release, after one that `trained` updates followed."""
    mean = 0.8 * before + 0.2 * trained
    return mean if math.isfinite(mean) else 0.0
