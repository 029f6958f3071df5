"""Most bytes that wait for the broker's acknowledgement: an urgent message must not be many seconds behind them.

The window opens by what is acknowledged in time, as in TCP's slow start (RFC 5681, section 3.1), and halves if an
acknowledgement is late: by delay, as in TCP Vegas (Brakmo, Peterson, IEEE JSAC 13 (1995) 1465).
"""

from dataclasses import dataclass

LEAST_BYTES = 2**15
"""Bytes at first, and at least; one message is always sent, however large it is."""
MOST_BYTES = 2**19
"""Bytes at most: enough for 10 MB/s at 50 ms."""
_EARLY, _LATE = 0.5, 1.0
"""Seconds of delay, beyond the shortest seen, up to which the window opens, and above which it halves."""


@dataclass(slots=True)
class ByteWindow:
    """The window of one connection."""

    size: int = LEAST_BYTES
    """Bytes that may be unacknowledged."""
    _shortest: float = float("inf")
    """Shortest time from publishing to acknowledgement: the link's own delay."""
    _halved: float = float("-inf")
    """When the window was last halved; what was sent before says nothing about the new size."""

    def acknowledged(self, size: int, sent: float, now: float) -> None:
        """Take in that the broker acknowledged a message.

        Args:
            size: of the message, in bytes.
            sent: when it was handed to the connection, in seconds.
            now: seconds of the same clock.
        """
        self._shortest = min(self._shortest, now - sent)
        delay = now - sent - self._shortest
        if delay <= _EARLY:
            self.size = min(MOST_BYTES, self.size + size)
        elif delay > _LATE and sent >= self._halved:
            self.size, self._halved = max(LEAST_BYTES, self.size // 2), now
