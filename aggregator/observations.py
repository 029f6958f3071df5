"""Observations of the devices in one process: results, activity, and what operators were notified of. Not durable."""

import logging
from collections.abc import Callable

from midge.aggregator.core.put_back import PutBack
from midge.aggregator.core.update_admission import Bounds
from midge.aggregator.metrics.device_activity import ALWAYS, DeviceActivity
from midge.aggregator.metrics.device_metrics import Reports
from midge.aggregator.publish.notices import DropNotices
from midge.aggregator.publish.step_notices import StepNotices

log = logging.getLogger("aggregator")


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
        self.off: tuple[tuple[str, str], ...] = ()
        """Devices whose statistics are off, as last reported."""

    def settled(self, device: str, verdict: str, why: str, now: float, base: int = 0) -> None:
        """Record a verdict; a device that is refused every time is reported once."""
        if self.activity.settled(device, verdict, why, now, base=base):
            refused = ALWAYS
            log.warning("The last %d updates of %s were all refused, this one as %s: %s", refused, device, verdict, why)
            self._tell("refused_always", device=device, verdict=verdict, why=why, refused=refused)

    def forget(self, device: str) -> None:
        """Forget everything about a device."""
        self.reports.forget(device)
        self.activity.forget(device)
