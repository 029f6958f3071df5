"""Tell of dropped messages only as often as a person can read it: a flood must not fill a log."""

from collections.abc import Callable

from midge.aggregator.ingress.rate_limits import Bucket

_DROPS, _DROPS_BURST = 1.0, 20.0
"""Dropped messages that are told of, a second and at once."""


class DropNotices:
    """Tells of messages that were dropped, and how many were not told of."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._bucket = Bucket(_DROPS, _DROPS_BURST, _DROPS_BURST, 0.0)
        self._untold = 0

    def dropped(self, topic: str, why: str, now: float) -> None:
        """A message on a topic was dropped."""
        if self._bucket.spend(now):
            self._untold += 1
            return
        more = {"untold": self._untold} if self._untold else {}
        self._untold = 0
        self._tell("dropped", topic=topic, why=why, **more)
