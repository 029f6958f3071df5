"""Chunk size for this link: sending a chunk must be fast compared with the keepalive.

While a chunk is being sent nothing else is, not even a ping; one that takes longer than the keepalive ends the
connection, and the next connection starts it again, without end. So a chunk should take at most a quarter of the
keepalive. The rate is measured from the publishing of a chunk, or the acknowledgement of the one before it, to its own
acknowledgement.
"""

SMALLEST = 4096
_SHARE = 0.25


class ChunkSizer:
    """Estimated uplink throughput of one device. `now` is seconds of a monotonic clock."""

    def __init__(self, keepalive: float) -> None:
        self._patience = _SHARE * keepalive
        self._rate: float | None = None
        """Bytes per second."""
        self._under_way: dict[int, tuple[float, int]] = {}
        self._last = 0.0
        self._ceiling: int | None = None
        """Bytes of a chunk after connections that ended before any was acknowledged."""
        self._came_through = True

    @property
    def chunk(self) -> int | None:
        """Maximum bytes of a chunk; None if unknown."""
        known = [] if self._rate is None else [int(self._rate * self._patience)]
        known += [] if self._ceiling is None else [self._ceiling]
        return max(SMALLEST, min(known)) if known else None

    def published(self, key: int, size: int, now: float) -> None:
        """Record that a chunk was passed to the connection."""
        if not self._under_way:
            self._came_through = False
        self._under_way[key] = (now, size)

    def acknowledged(self, key: int, now: float) -> None:
        """Record that the broker has acknowledged it."""
        began, size = self._under_way.pop(key, (now, 0))
        seconds = now - max(began, self._last)
        self._last, self._came_through, self._ceiling = now, True, None
        if seconds > 0 and size:
            rate = size / seconds
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def lost(self) -> None:
        """The connection ended: if no chunk was acknowledged on it, halve the next ones."""
        if self._under_way and not self._came_through:
            largest = max(size for _, size in self._under_way.values())
            self._ceiling = max(SMALLEST, min(largest, self._ceiling or largest) // 2)
        self._under_way.clear()
