"""Whether to unsubscribe from announcements during training: each costs bytes, and only the last one will count."""

from midge.wire.messages import Announcement

PASSED = 2
"""Versions skipped between two trainings beyond which unsubscribing saves more than it costs."""


class AnnouncementPolicy:
    """Counts the versions skipped during a training. Unsubscribing and subscribing again take two packets each."""

    def __init__(self) -> None:
        self._before: Announcement | None = None

    def unsubscribe_while_training(self, announcement: Announcement) -> bool:
        """Whether a device that begins to train from this version should unsubscribe until it is done."""
        before, self._before = self._before, announcement
        if before is None or before.lineage != announcement.lineage:
            return False
        return announcement.version - before.version > PASSED
