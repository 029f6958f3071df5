"""Tell of what anybody can cause only as often as somebody can read it: a flood must not fill a log."""

import time
from collections.abc import Callable
from typing import Any

from midge.aggregator.ingress.rate_limits import Bucket

_DROPS, _DROPS_BURST = 1.0, 20.0
"""Dropped messages that are told of, a second and at once."""
_STRANGERS, _STRANGERS_BURST = 20.0, 2_000.0
"""Events of devices of which nothing was ever accepted: a fleet's first start has some for each device."""
_OF_STRANGERS = frozenset({"device", "held", "repeat", "quarantine", "report"})


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


class StrangerEvents:
    """Passes events on, of devices that are not known only some, with the number of the others."""

    def __init__(self, tell: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self.known: Callable[[str], bool] = lambda _device: True
        self._bucket = Bucket(_STRANGERS, _STRANGERS_BURST, _STRANGERS_BURST, clock())
        self._untold = 0

    def __call__(self, event: str, **fields: Any) -> None:
        if event in _OF_STRANGERS and not self.known(fields["device"]):
            if self._bucket.spend(self._clock()):
                self._untold += 1
                return
            if self._untold:
                self._tell("untold", events=self._untold)
                self._untold = 0
        self._tell(event, **fields)
