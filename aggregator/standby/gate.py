"""What an aggregator publishes, held until the standby has what it says: with `--sync`."""

from collections import deque
from collections.abc import Callable

from midge.aggregator.publish.publish_queue import Post


class PublicationGate:
    """Passes messages on in their order, each once the transactions before it are confirmed.

    Args:
        put: takes a message to publish.
    """

    def __init__(self, put: Callable[[Post], None]) -> None:
        self._put = put
        self._held: deque[tuple[int, Post]] = deque()
        self.closed = False
        """Whether messages wait for confirmations."""
        self.committed, self.confirmed = 1, 0
        """The newest transaction, and the newest one that the standby has. The first stands for all that was in the
        store at the start: no standby is known to have that."""

    def put(self, post: Post) -> None:
        """Publish a message, now or when it may be. It is of the newest transaction, or of one before."""
        if self.closed and (self._held or self.confirmed < self.committed):
            self._held.append((self.committed, post))
        else:
            self._put(post)

    def look(self) -> None:
        """Pass on what may be."""
        while self._held and (not self.closed or self._held[0][0] <= self.confirmed):
            self._put(self._held.popleft()[1])

    def clear(self) -> None:
        """Drop what waits: after a reconnect everything is published again."""
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)
