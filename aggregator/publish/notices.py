"""Rate limits of events: a flood of messages must not fill a log."""

from collections.abc import Callable
from typing import Any

from midge.aggregator.token_bucket import TokenBucket

_DROPS, _DROPS_BURST = 1.0, 20.0
"""Notices of dropped messages: rate a second, and burst."""

_EVENTS, _EVENTS_BURST = 20.0, 2_000.0
"""Rate and burst of events of devices without any accepted update: a fleet's first start has some for each device."""
_OF_STRANGERS = frozenset({"device", "held", "repeat", "quarantine", "report"})


class DropNotices:
    """Reports dropped messages, and the number of unreported ones."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._bucket = TokenBucket.full(_DROPS, _DROPS_BURST, 0.0)
        self._suppressed = 0

    def dropped(self, topic: str, why: str, now: float) -> None:
        """Record a dropped message."""
        if self._bucket.spend(now):
            self._suppressed += 1
            return
        more = {"untold": self._suppressed} if self._suppressed else {}
        self._suppressed = 0
        self._tell("dropped", topic=topic, why=why, **more)


class StrangerEvents:
    """Passes on only some events of unknown devices, with the number of the suppressed ones."""

    def __init__(self, tell: Callable[..., None], clock: Callable[[], float]) -> None:
        self._tell, self._clock = tell, clock
        self.known: Callable[[str], bool] = lambda _device: True
        self._bucket = TokenBucket.full(_EVENTS, _EVENTS_BURST, clock())
        self._suppressed = 0

    def __call__(self, event: str, **fields: Any) -> None:
        if event in _OF_STRANGERS and not self.known(fields["device"]):
            if self._bucket.spend(self._clock()):
                self._suppressed += 1
                return
            if self._suppressed:
                self._tell("untold", events=self._suppressed)
                self._suppressed = 0
        self._tell(event, **fields)
