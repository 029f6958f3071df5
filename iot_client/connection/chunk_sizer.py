"""How large a chunk this link bears: one must never take long beside the keep-alive.

While a chunk is on its way nothing else is, no sign of life either; one that takes longer than the keep-alive ends the
connection, and the next connection begins it again, for ever. So a chunk is to take a quarter of the keep-alive at the
most. The rate is taken from the time between a chunk's publishing, or the acknowledgement of the one before it, and
its own acknowledgement.
"""

SMALLEST = 4096
_SHARE = 0.25


class Uplink:
    """What is known of one device's way up. `now` is seconds of any clock that never goes back."""

    def __init__(self, keepalive: float) -> None:
        self._patience = _SHARE * keepalive
        self._rate: float | None = None
        """Bytes a second."""
        self._under_way: dict[int, tuple[float, int]] = {}
        self._last = 0.0
        self._ceiling: int | None = None
        """Bytes of a chunk after connections that ended before any was acknowledged."""
        self._came_through = True

    @property
    def chunk(self) -> int | None:
        """Bytes of a chunk at the most; None where nothing is known."""
        known = [] if self._rate is None else [int(self._rate * self._patience)]
        known += [] if self._ceiling is None else [self._ceiling]
        return max(SMALLEST, min(known)) if known else None

    def published(self, key: int, size: int, now: float) -> None:
        """A chunk was handed to the connection."""
        if not self._under_way:
            self._came_through = False
        self._under_way[key] = (now, size)

    def acknowledged(self, key: int, now: float) -> None:
        """The broker has it."""
        began, size = self._under_way.pop(key, (now, 0))
        seconds = now - max(began, self._last)
        self._last, self._came_through, self._ceiling = now, True, None
        if seconds > 0 and size:
            rate = size / seconds
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def lost(self) -> None:
        """The connection ended: where no chunk came through it, the next ones are half as large."""
        if self._under_way and not self._came_through:
            largest = max(size for _, size in self._under_way.values())
            self._ceiling = max(SMALLEST, min(largest, self._ceiling or largest) // 2)
        self._under_way.clear()
