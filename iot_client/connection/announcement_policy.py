"""Whether to hear of new versions while training: each announcement costs bytes, and only the last one will count."""

from midge.wire.messages import Announcement

PASSED = 2
"""Versions that passed from one training to the next, beyond which turning away saves more than it costs."""


class Attention:
    """Counts versions from training to training. Two MQTT packets turn away, and two turn back."""

    def __init__(self) -> None:
        self._before: Announcement | None = None

    def turns_away(self, announcement: Announcement) -> bool:
        """Whether a device that begins to train from this version need not hear of others until it is done."""
        before, self._before = self._before, announcement
        if before is None or before.lineage != announcement.lineage:
            return False
        return announcement.version - before.version > PASSED
