"""Rate limit for notices of dropped messages: a flood must not fill a log."""

from collections.abc import Callable

from midge.aggregator.ingress.rate_limits import TokenBucket

_DROPS, _DROPS_BURST = 1.0, 20.0
"""Notices of dropped messages: rate a second, and burst."""


class DropNotices:
    """Reports dropped messages, and the number of unreported ones."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._bucket = TokenBucket(_DROPS, _DROPS_BURST, _DROPS_BURST, 0.0)
        self._untold = 0

    def dropped(self, topic: str, why: str, now: float) -> None:
        """Record a dropped message."""
        if self._bucket.spend(now):
            self._untold += 1
            return
        more = {"untold": self._untold} if self._untold else {}
        self._untold = 0
        self._tell("dropped", topic=topic, why=why, **more)
