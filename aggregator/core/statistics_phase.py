"""The phase before training: statistics of the devices' data are gathered, examined, and frozen into the model."""

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.state import CoreState
from midge.aggregator.model.statistics import CAP
from midge.wire.messages import Moment, Statistics

_MOST = 256
"""Devices whose statistics are kept at most, unless more are asked for."""
_STILL = 60.0
"""Seconds that a channel which never changed is waited for."""
_FEWEST = 2
"""One device's statistics would be published as they are; so they wait for a second one."""


class StatisticsPhase:
    """Of one federation. What it holds itself are timers, which a restart starts over.

    Args:
        state: what is remembered.
        lineage: of the store.
        moments: the statistics that are asked for.
        devices: how many devices' statistics are pooled …
        deadline: … and after how many seconds fewer are.
    """

    def __init__(
        self, state: CoreState, lineage: bytes, moments: tuple[Moment, ...], devices: int, deadline: float
    ) -> None:
        self._state, self._lineage, self._devices, self._deadline = state, lineage, devices, deadline
        self._names = tuple((moment.name, moment.channels) for moment in moments)
        self._since: float | None = None
        self._gathering_since: float | None = None
        self._examining = False
        self.unfit: str | None = None
        """Why the statistics that are here cannot be pooled, in words."""

    def begin(self, now: float) -> None:
        """Go on after a restart."""
        if self._state.statistics:
            self._since = self._gathering_since = now

    def admits(self, device: str, sent: Statistics, digest: bytes) -> bool:
        """Whether a device's statistics are taken: they are asked for, new, and there is room."""
        state = self._state
        known = device in state.statistics
        crowded = not known and len(state.statistics) >= max(_MOST, self._devices)
        # The same once more is no news: a device repeats until training begins.
        same = known and state.digests.get(device) == digest
        asked = sent.lineage == self._lineage and sent.names == self._names
        return asked and not (state.frozen or same or crowded)

    def arrived(self, now: float) -> bool:
        """Statistics were taken; whether there are enough of them to be examined."""
        if self._since is None or len(self._state.statistics) == 1:  # those before may have been dropped
            self._since = now
        if self._gathering_since is None:
            self._gathering_since = now
        return len(self._state.statistics) >= self._devices and self.unfit is None

    @property
    def due(self) -> float | None:
        """When the statistics of fewer devices than are asked for will do; None if only another event brings that."""
        if self._state.frozen or self._since is None or not self._freezable:
            return None
        return self._since + self._deadline

    @property
    def _freezable(self) -> bool:
        return len(self._state.statistics) >= _FEWEST and not self._examining

    def examine(self) -> list[ev.Action]:
        """Have the statistics examined: whether they can be pooled is a question of their values."""
        if not self._freezable:
            return []
        self._examining = True
        return [ev.Examine(tuple(self._state.statistics.values()))]

    def examined(self, found: ev.Examined, now: float) -> rec.FreezeRecord | None:
        """Pool the statistics that were found fit; None: wait for more devices, or for newer ones of the same."""
        self._examining = False
        since, state = self._gathering_since, self._state
        still = found.soon if since is not None and now < since + _STILL else ""
        self.unfit = found.wait or still or None
        if self.unfit is not None:
            # What contradicts itself waits for an event; what only lacks rows is looked at again after the deadline.
            self._since = None if found.wait else now
            return None
        self._gathering_since = None
        return rec.FreezeRecord(state.next, found.kept, cap=CAP, keep=state.version > 0)
