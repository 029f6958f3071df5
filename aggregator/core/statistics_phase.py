"""The phase before training: the devices' statistics are gathered, examined, and frozen into the model."""

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.state import CoreState
from midge.aggregator.model.statistics import CAP
from midge.wire.messages import Moment, Statistics

_MOST = 256
"""Most devices whose statistics are kept, unless more are requested."""
_STILL = 60.0
"""Seconds to wait for more rows of a channel that has not changed yet."""
_FEWEST = 2
"""Least number of devices: pooling one device's statistics would publish them."""


class StatisticsPhase:
    """The statistics phase of one federation. Its own attributes are timers, which restart with the process.

    Args:
        state: the durable state.
        lineage: of the store.
        moments: the requested statistics.
        devices: number of devices whose statistics are pooled.
        deadline: seconds after which the statistics of fewer devices are pooled.
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
        """Why the gathered statistics cannot be pooled; None if they can, or were not examined."""

    def begin(self, now: float) -> None:
        """Restart the timers."""
        if self._state.statistics:
            self._since = self._gathering_since = now

    def admits(self, device: str, sent: Statistics, digest: bytes) -> bool:
        """Whether a device's statistics are recorded: they were requested, are new, and there is room."""
        state = self._state
        known = device in state.statistics
        crowded = not known and len(state.statistics) >= max(_MOST, self._devices)
        # Not the same again: a device retransmits its statistics until training begins.
        same = known and state.digests.get(device) == digest
        asked = sent.lineage == self._lineage and sent.names == self._names
        return asked and not (state.frozen or same or crowded)

    def arrived(self, now: float) -> bool:
        """Record that statistics were journaled; return whether there are enough to examine."""
        # `since` may be that of statistics which a revocation has dropped: then these are alone.
        if self._since is None or len(self._state.statistics) == 1:
            self._since = now
        if self._gathering_since is None:
            self._gathering_since = now
        return len(self._state.statistics) >= self._devices and self.unfit is None

    @property
    def due(self) -> float | None:
        """When the statistics of fewer devices than requested are pooled; None if that takes another event."""
        if self._state.frozen or self._since is None or not self._freezable:
            return None
        return self._since + self._deadline

    @property
    def _freezable(self) -> bool:
        return len(self._state.statistics) >= _FEWEST and not self._examining

    def examine(self) -> list[ev.Action]:
        """Request an examination: whether statistics can be pooled depends on their values, which the shell holds."""
        if not self._freezable:
            return []
        self._examining = True
        return [ev.Examine(tuple(self._state.statistics.values()))]

    def examined(self, found: ev.Examined, now: float) -> rec.FreezeRecord | None:
        """The record that pools the statistics found fit; None to wait for more devices, or for newer statistics."""
        self._examining = False
        since, state = self._gathering_since, self._state
        still = found.soon if since is not None and now < since + _STILL else ""
        self.unfit = found.wait or still or None
        if self.unfit is not None:
            # A contradiction waits for new statistics; if only rows are missing, the deadline starts again.
            self._since = None if found.wait else now
            return None
        self._gathering_since = None
        return rec.FreezeRecord(state.next, found.kept, cap=CAP, keep=state.version > 0)
