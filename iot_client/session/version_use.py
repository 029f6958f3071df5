"""Whether new versions are of use to a device: if not and many pass, it unsubscribes from announcements."""

from midge.iot_client.session.events import Action, FollowVersions, IgnoreVersions, ReadAnnouncement
from midge.iot_client.session.timers import Timer
from midge.wire.messages import Announcement

PASSED = 2
"""Versions skipped between two trainings beyond which unsubscribing saves more than it costs: two packets, and two more
to subscribe again."""


class VersionUse:
    """When a device listens to announcements: not while it trains, nor while it may not train."""

    def __init__(self) -> None:
        self.many = False
        """Whether more than two versions passed from one training to the next."""
        self.again = Timer()
        """Runs while the device is unsubscribed because it may not train."""
        self.outdated = False
        """Whether it was unsubscribed so, and has read no announcement since."""
        self._before: Announcement | None = None

    def trains(self, announcement: Announcement) -> None:
        """Record that a training from this version begins."""
        before, self._before = self._before, announcement
        if before is None or before.lineage != announcement.lineage:
            self.many = False
        else:
            self.many = announcement.version - before.version > PASSED

    def ignore(self, until: float) -> list[Action]:
        """Unsubscribe, and subscribe again at the latest then; nothing is done if few versions pass."""
        if not self.many or self.outdated:
            return []
        self.again.due, self.outdated = until, True
        return [IgnoreVersions()]

    def follow(self) -> list[Action]:
        """Subscribe again, if it was unsubscribed."""
        if self.again.due is None:
            return []
        self.again.due = None
        return [FollowVersions()]

    def read(self) -> None:
        """Record that an announcement was read: the newest, unless it was under way when the device unsubscribed."""
        self.outdated = self.again.due is not None

    def reread(self) -> list[Action]:
        """Read the retained announcement again, because one may have been lost."""
        return [ReadAnnouncement()] if self.again.due is None else []

    def aggregator_restarted(self, now: float) -> None:
        """Listen: it may have another interval, or want statistics."""
        if self.again.due is not None:
            self.again.due = now

    def disconnected(self) -> None:
        """Listen from the next connection on: it subscribes to everything."""
        self.again.due, self.outdated = None, False
