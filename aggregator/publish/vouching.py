"""Saying to boards that verify no signature which announcements are the aggregator's: one message to each."""

from collections.abc import Callable

from midge.aggregator.ingress.roster import Roster
from midge.aggregator.publish.announcement_signer import Issuer
from midge.aggregator.publish.publish_queue import Post
from midge.wire.topics import Channel, Topics


class Vouching:
    """Of one federation.

    Args:
        issuer: signs for each device with what it shares with us.
        roster: which devices want that.
        topics: the federation's.
        put: takes what is published.
    """

    def __init__(self, issuer: Issuer, roster: Roster, topics: Topics, put: Callable[[Post], None]) -> None:
        self._issuer, self._roster, self._topics, self._put = issuer, roster, topics, put
        self._vouched: dict[Channel, bytes] = {}
        roster.greeted = self._tell

    def look(self) -> None:
        """Vouch for what was announced since the last look."""
        if self._issuer.announced != self._vouched:
            self._vouched = dict(self._issuer.announced)
            for device in self._roster.verifies:
                self._tell(device)

    def _tell(self, device: str) -> None:
        for payload in self._issuer.vouches(device):
            self._put(Post(self._topics.receipt(device), payload, retain=False))
