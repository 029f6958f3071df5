"""Observations of the devices in one process: results, activity, and what operators were notified of. Not durable."""

import logging
from collections import deque
from collections.abc import Callable

from midge.aggregator.core.put_back import PutBack
from midge.aggregator.core.update_admission import Bounds
from midge.aggregator.metrics.device_activity import ALWAYS, DeviceActivity
from midge.aggregator.metrics.device_metrics import Reports
from midge.aggregator.publish.notices import DropNotices
from midge.aggregator.publish.step_notices import StepNotices
from midge.wire.messages import Report

log = logging.getLogger("aggregator")

_MEASURED = 100_000
"""Most results of devices that are kept for the registry, which takes them once a second."""


class Observations:
    """What one process has observed. It outlives a processor, which is rebuilt after a full disk.

    Args:
        tell: takes events.
        devices: most devices that are followed.
    """

    def __init__(self, tell: Callable[..., None], devices: int = Bounds().devices) -> None:
        self._tell = tell
        self.reports = Reports()
        """The devices' results on their own data."""
        self.activity = DeviceActivity(devices)
        self.drops = DropNotices(tell)
        self.notices = StepNotices(tell)
        self.put_back = PutBack()
        self.followed: frozenset[int] | None = None
        """Versions that a name stands for; None before the registry was first asked."""
        self.measured: deque[tuple[str, Report]] = deque(maxlen=_MEASURED)
        """Results of devices on these versions that the registry has not taken yet."""
        self.off: tuple[tuple[tuple[str, str], ...], ...] = ((), ())
        """Devices whose statistics are left out, and those whose statistics are limited, as last reported."""

    def settled(self, device: str, verdict: str, why: str, now: float, base: int = 0) -> None:
        """Record a verdict; a device that is refused every time is reported once."""
        if self.activity.settled(device, verdict, why, now, base=base):
            refused = ALWAYS
            log.warning("The last %d updates of %s were all refused, this one as %s: %s", refused, device, verdict, why)
            self._tell("refused_always", device=device, verdict=verdict, why=why, refused=refused)

    def heard(self, device: str, report: Report) -> None:
        """Record a device's result on its own data."""
        self.reports.take(device, report)
        # A site's mean is no device's comparison of two versions.
        if not report.devices and (self.followed is None or report.version in self.followed):
            self.measured.append((device, report))

    def forget(self, device: str) -> None:
        """Forget everything about a device."""
        self.reports.forget(device)
        self.activity.forget(device)
