"""Releases so spaced that what devices fetch and send stays within a rate of bytes, and how many devices share it.

A release costs its announcement once for every device that is connected, and its frames and an update once for every
device that fetches them: at most all. Which of them will is not known beforehand, so the last interval is what the next
is taken from: a device that fetches pays a step, or a merged step that costs no more than its steps. Messages count
beside their bytes (`wire.sharing`).
"""

import math

from midge.aggregator.core.participation_controller import Steering
from midge.wire.sharing import cost, spread

AT_ONCE = 3
"""Messages that an announcement counts as: a broker with one thread hands it to all its devices in one go, 20 µs for
each, and others' messages wait for the whole of it. That has to be less than a hundredth of the time."""
CREDIT = 1.0
"""Seconds of the rate that may be spent at once after a rest, so that a few quick releases do not wait."""

_MEMORY = 600.0
"""Seconds over which a fleet that is gone is still reckoned with, as its e-th part."""
_GROWN = 1.5
"""Times the devices that were announced."""


class Thrift:
    """Of one federation. Nothing of it is durable: a restart starts over."""

    def __init__(self, rate: float, steering: Steering) -> None:
        self._rate, self._steering = rate, steering
        self.costs = (0, 0)
        """Bytes of the last announcement and of the last step."""
        self._told = 0
        """How many devices share the rate, as was last announced."""
        self._fetches, self._came, self._update_size = 0.0, 0, 0.0
        self._earned_from = float("-inf")
        """From when on the rate pays for the last release."""
        self._were_there, self._followed_at = 0.0, 0.0
        """How many devices were there of late, and when that was reckoned."""

    @property
    def devices(self) -> int:
        """How many take part: those that are there, or were a while ago; after a start, those that `begin` was told.

        A fleet that has lost its broker comes back as a whole, and the first of it must not be told that they are few.
        """
        return max(self._steering.live, round(self._were_there))

    def begin(self, devices: int, now: float) -> None:
        """Begin with the number of devices that had taken part before."""
        self._were_there, self._followed_at = float(devices), now

    def follow(self, now: float) -> None:
        """Reckon with who is there by now."""
        gone = max(0.0, self._were_there - self._steering.live)
        self._were_there = self._steering.live + gone * math.exp(-(now - self._followed_at) / _MEMORY)
        self._followed_at = now

    def came(self, size: int) -> None:
        """Count an accepted update of `size` bytes."""
        self._came += 1
        self._update_size += (size - self._update_size) * (0.05 if self._update_size else 1.0)

    def announced(self) -> None:
        """An announcement tells how many devices share the rate."""
        self._told = self.devices

    def released(self, now: float) -> None:
        """A version was released, and is announced."""
        self.announced()
        self._earned_from = max(self.paid, now - CREDIT)
        self._fetches = fetched(self._fetches, self._came)
        self._came = 0

    @property
    def paid(self) -> float:
        """When the rate has paid for the last release."""
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
        """Whether more have come than were announced, and it makes a difference to when they fetch."""
        step, devices = self.costs[1], self.devices
        if devices <= _GROWN * self._told:
            return False
        told = spread(self._rate, self._told, step, 2)
        return max(told, spread(self._rate, devices, step, 2)) > 0


def interval(*, announcement: int, step: int, update: float, devices: int, fetches: float, rate: float) -> float:
    """Seconds that a release costs of the rate.

    Args:
        announcement: bytes of one announcement; 0 where nothing was published, and then the interval is 0.
        step: bytes of the frame that leads over the last version.
        update: bytes of the update that a device sends for each fetch, on the mean.
        devices: how many are connected, and so are sent every announcement.
        fetches: how many fetch after each release, on the mean; never more than `devices`.
        rate: bytes a second, for all devices together. 0 sets no limit, and then the interval is 0.
    """
    if rate <= 0 or devices <= 0 or announcement <= 0:
        return 0.0
    exchange = cost(step, 2) + cost(0, 2) + update
    return (cost(announcement, AT_ONCE) * devices + exchange * min(max(fetches, 0.0), devices)) / rate


def fetched(before: float, trained: int) -> float:
    """The mean number of fetches of a release, after one from which `trained` updates have come."""
    mean = 0.8 * before + 0.2 * trained
    return mean if math.isfinite(mean) else 0.0
