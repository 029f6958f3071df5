"""Confirmation of announcements for boards that cannot verify signatures: one message to each."""

from collections.abc import Callable

from midge.aggregator.ingress.roster import Roster
from midge.aggregator.publish.announcement_signer import AnnouncementSigner
from midge.aggregator.publish.publish_queue import Post
from midge.wire.topics import Channel, Topics


class AnnouncementVouching:
    """The confirmations of one federation.

    Args:
        issuer: signs for each device with its shared secret.
        roster: the devices that request it.
        topics: the federation's.
        put: takes messages to publish.
    """

    def __init__(self, issuer: AnnouncementSigner, roster: Roster, topics: Topics, put: Callable[[Post], None]) -> None:
        self._issuer, self._roster, self._topics, self._put = issuer, roster, topics, put
        self._vouched: dict[Channel, bytes] = {}
        roster.greeted = self._tell

    def look(self) -> None:
        """Confirm announcements that are new since the last call."""
        if self._issuer.announced != self._vouched:
            self._vouched = dict(self._issuer.announced)
            for device in self._roster.verifies:
                self._tell(device)

    def _tell(self, device: str) -> None:
        for payload in self._issuer.vouches(device):
            self._put(Post(self._topics.receipt(device), payload, retain=False))
