"""Which announcements a simulated device reads: the newest is retained, others come while it is connected."""

from midge.sensor_fleet.simulation.air import Air
from midge.sensor_fleet.simulation.server import PublishedVersion


class AnnouncementReader:
    """Reads for one device.

    Args:
        air: what all devices share.
        device: its name.
    """

    __slots__ = ("_air", "_device", "_reads", "_seen", "latest")

    def __init__(self, air: Air, device: str) -> None:
        self._air, self._device = air, device
        self.latest: PublishedVersion | None = None
        """What was read last."""
        self._seen: PublishedVersion | None = None
        """The same, or None if what is retained is to be read again."""
        self._reads = 0
        """How often what is retained was asked for: an announcement that was lost once is not lost for good."""

    def connected(self) -> None:
        """What is retained comes with a new connection."""
        self._reads += 1

    def again(self) -> None:
        """Read what is retained, be it known or not."""
        self._seen = None
        self._reads += 1

    def read(self, until: float) -> PublishedVersion | None:
        """The newest of those that were published by a time and not lost; None if it is known."""
        for published in reversed(self._air.server.published):
            if published is self._seen:
                return None
            if published.at <= until:
                if not self._lost(published.announcement.version):
                    self._seen = self.latest = published
                    return published
                if self._seen is None:
                    return None  # only the newest is retained
        return None

    def _lost(self, version: int) -> bool:
        return self._air.noise.loss > 0 and self._air.lost(self._device, f"announcement {self._reads}", version)
