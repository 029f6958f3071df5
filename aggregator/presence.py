"""Which devices are there: a retained status outlives its device, so something must have come from it as well."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from midge.aggregator.metrics.device_activity import DeviceActivity
from midge.aggregator.metrics.watchdog import INTERVALS
from midge.wire.messages import Hello

CONFIRMED = 60.0
"""Least seconds without a message after which a device counts as silent, or is not counted as there, and at least three
of its usual intervals: connected ones send their status again when the aggregator or the broker has started."""


class DevicePresence:
    """The presence of one federation's devices.

    Args:
        devices: the newest status of each.
        activity: when each was last heard.
    """

    def __init__(self, devices: Mapping[str, Hello], activity: DeviceActivity) -> None:
        self._devices, self._activity = devices, activity
        self._since = -math.inf
        """When the connection began."""

    def connected(self, now: float) -> None:
        """Begin again: what was heard on an earlier connection says nothing."""
        self._since = now

    def unconfirmed(self, device: str) -> bool:
        """Whether nothing has come from a device on this connection: its status is what the broker kept, or we did."""
        known = self._activity[device]
        return self._since > -math.inf and (known is None or known.heard < self._since)

    def silent(self, device: str, usual: float, now: float) -> bool:
        """Whether nothing has come from a device for a minute and three of its usual intervals, in seconds."""
        known = self._activity[device]
        return known is not None and now - known.heard > max(CONFIRMED, INTERVALS * usual)

    def absent(self, now: float, interval: Callable[[Iterable[str]], float | None]) -> Collection[str]:
        """Devices that are not there, although their status says so.

        Args:
            now: seconds of the monotonic clock.
            interval: the usual seconds between two updates of devices; None if unknown.
        """
        since, usual = now - self._since, interval(self._devices) or 0.0
        if not CONFIRMED < since < math.inf:
            return ()
        return {
            name
            for name, hello in self._devices.items()
            if hello.state.live and self.unconfirmed(name) and since > INTERVALS * (interval([name]) or usual)
        }
