"""The announcements that a simulated device reads: the retained one, and those published while it is connected."""

from midge.sensor_fleet.simulation.environment import Environment
from midge.sensor_fleet.simulation.publisher import PublishedVersion
from midge.wire.messages import Announcement


class AnnouncementReader:
    """Reads announcements for one device.

    Args:
        environment: state shared by all devices.
        device: its name.
    """

    __slots__ = ("_device", "_environment", "_reads", "_seen", "base", "latest")

    def __init__(self, environment: Environment, device: str) -> None:
        self._environment, self._device = environment, device
        self.latest: PublishedVersion | None = None
        """The last one read."""
        self.base: PublishedVersion | None = None
        """The version that is trained from, or fetched for training."""
        self._seen: PublishedVersion | None = None
        """The same, or None to read the retained one again."""
        self._reads = 0
        """Number of times the retained message was requested: each of them may be lost."""

    def connected(self) -> None:
        """Count the retained message that comes with a new connection."""
        self._reads += 1

    def again(self) -> None:
        """Read the retained announcement again, even if it is known."""
        self._seen = None
        self._reads += 1

    def read(self, until: float) -> PublishedVersion | None:
        """The newest announcement published until then and not lost; None if it is known already."""
        for published in reversed(self._environment.server.publisher.published):
            if published is self._seen:
                return None
            if published.at <= until:
                if not self._lost(published.announcement.version):
                    self._seen = self.latest = published
                    return published
                if self._seen is None:
                    return None  # only the newest is retained
        return None

    def hold(self, announcement: Announcement) -> None:
        """Keep the version that is now fetched or trained from, which is the last one read or the one held."""
        for published in (self.latest, self.base):
            if published is not None and published.announcement is announcement:
                self.base = published
                return
        raise AssertionError(f"version {announcement.version} was not announced to {self._device}")

    def _lost(self, version: int) -> bool:
        return self._environment.lost(self._device, f"announcement {self._reads}", version)
