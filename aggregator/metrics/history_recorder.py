"""Records what the journal does not have into the store's history: health, devices, bytes, and scores."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

from midge.aggregator.metrics.counters import Meters
from midge.aggregator.metrics.device_metrics import Spread
from midge.aggregator.store.history import METRICS, FederatedScore, ScoreRange
from midge.aggregator.store.store import Store
from midge.wire.messages import Verdict

_LOOK = 1.0
"""Seconds between two looks at the counters."""
_LONGEST = 10.0
"""Seconds after the last look from which on nothing was served: the aggregator waits for at most five."""
_SOONEST, _LATEST, _SHARE = 60.0, 600.0, 10.0
"""Seconds between two writes: a tenth of the process's age within these bounds, so that a short run is seen soon …"""
_RESTING = 3600.0
"""… and this many if no update or score has come since."""
_LONGEST_NAME = 64
_FINAL = frozenset(verdict.value for verdict in Verdict if verdict.final)
"""Verdicts that the journal has."""


class HistoryRecorder:
    """The recorder of one process.

    Args:
        store: has the history; it is open.
        meters: the process's counters.
        wall: seconds since 1970, never going back.
        now: seconds of a monotonic clock.
    """

    def __init__(self, store: Store, meters: Meters, wall: Callable[[], float], now: float) -> None:
        self._history, self._write, self._meters, self._wall = store.history, store.write_history, meters, wall
        self._began = self._looked = self._written = now
        self._bytes = meters.bytes_in, meters.bytes_out
        self._verdicts: Counter[str] = Counter()
        self._lsn = 0
        self._changed = False

    def look(self, now: float, *, lsn: int, state: str, devices: int) -> None:
        """Record what was observed since the last look, and write it if that is due.

        Args:
            now: seconds of the monotonic clock.
            lsn: the newest record.
            state: of health.
            devices: connected now.

        Raises:
            StoreFull: there is no room.
        """
        if now < self._looked + _LOOK:
            return
        period = self._history.follow(self._wall())
        if (since := now - self._looked) <= _LONGEST:
            period.states[state] = period.states.get(state, 0.0) + since
        self._looked = now
        period.devices = max(period.devices, devices)
        moved = self._meters.bytes_in, self._meters.bytes_out
        period.bytes_in += moved[0] - self._bytes[0]
        period.bytes_out += moved[1] - self._bytes[1]
        self._bytes = moved
        for verdict, number in self._meters.verdicts.items():
            if verdict not in _FINAL and number != self._verdicts[verdict]:
                period.verdicts[verdict] += number - self._verdicts[verdict]
                self._verdicts[verdict] = number
        if lsn != self._lsn:
            self._lsn, self._changed = lsn, True
        wait = min(_LATEST, max(_SOONEST, (now - self._began) / _SHARE)) if self._changed else _RESTING
        if now >= self._written + wait:
            self._written, self._changed = now, False
            self._write()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Record results of the aggregator's own evaluation."""
        period = self._history.follow(self._wall())
        for name, value in metrics.items():
            if math.isfinite(value) and len(name) <= _LONGEST_NAME:
                period.score(name, ScoreRange(1, value, value, value))
        self._changed = True

    def combined(self, metrics: Mapping[str, Spread], devices: int) -> None:
        """Record the combined results of devices on their own data."""
        period = self._history.follow(self._wall())
        for name, spread in list(metrics.items())[:METRICS]:
            period.federated[name] = FederatedScore(spread.mean, spread.low, spread.high, devices)
        self._changed = True
