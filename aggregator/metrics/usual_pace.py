"""The fleet's usual pace, kept for the watchdog of the next start: statistics of the devices' times are not durable."""

import math

from midge.aggregator.store.store import Store

_WRITE = 600.0
"""Least seconds between two writes of a known pace."""
_INTERVAL, _TRAINING = "usual_interval", "usual_training"


class UsualPace:
    """The usual interval and training of a store's fleet, in seconds; 0 if unknown.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.interval = float(store.constant(_INTERVAL, lambda: 0.0))
        self.training = float(store.constant(_TRAINING, lambda: 0.0))
        self._written = -math.inf

    def write(self, interval: float, training: float, now: float) -> None:
        """Store them if they have become known, or have doubled or halved.

        Raises:
            StoreFull: there is no room for it.
        """
        moved = _moved(self.interval, interval), _moved(self.training, training)
        first = (moved[0] and not self.interval) or (moved[1] and not self.training)
        if any(moved) and (first or now - self._written >= _WRITE):
            self._written = now
            self.interval, self.training = interval, training
            self._store.set_constant(_INTERVAL, interval)
            self._store.set_constant(_TRAINING, training)


def _moved(before: float, now: float) -> bool:
    return now > 0 and not before / 2 < now < 2 * before
