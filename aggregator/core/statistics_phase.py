"""The phase before training: the devices' statistics are gathered, examined, and frozen into the model."""

from collections.abc import Sequence

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.obstacle import Obstacle
from midge.aggregator.core.state import CoreState
from midge.aggregator.core.update_admission import MOST, Conditions
from midge.aggregator.model.statistics import CAP
from midge.wire.clocks import spell
from midge.wire.messages import Moment

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
        conditions: which devices have the model's inputs.
        lineage: of the store.
        moments: the requested statistics.
        devices: number of devices whose statistics are pooled.
        deadline: seconds after which the statistics of fewer devices are pooled.
    """

    def __init__(
        self,
        state: CoreState,
        conditions: Conditions,
        lineage: bytes,
        moments: Sequence[Moment],
        *,
        devices: int,
        deadline: float,
    ) -> None:
        self._state, self._conditions, self._lineage = state, conditions, lineage
        self._devices, self._deadline = devices, deadline
        self._names = tuple((moment.name, moment.channels) for moment in moments)
        self._since: float | None = None
        self._gathering_since: float | None = None
        self._examining = False
        self._examined: frozenset[str] = frozenset()
        self.unfit: str | None = None
        """Why the gathered statistics cannot be pooled; None if they can, or were not examined."""

    def begin(self, now: float) -> None:
        """Restart the timers."""
        if self._state.statistics:
            self._since = self._gathering_since = now

    def record(self, event: ev.StatisticsArrived) -> rec.StatisticsRecord | None:
        """The record of a device's statistics; None if they were not requested, are not new, or have no room."""
        state, conditions, sent, device = self._state, self._conditions, event.statistics, event.device
        known = device in state.statistics
        crowded = not known and len(state.statistics) >= max(_MOST, self._devices)
        # Not the same again: a device retransmits its statistics until training begins.
        same = known and state.digests.get(device) == event.digest
        # While the names of the inputs are unknown, either of two devices that differ may be right.
        other = bool(conditions.features) and device in conditions.unlike
        refused = state.frozen or same or crowded or other or conditions.full is not None
        if refused or sent.lineage != self._lineage or sent.names != self._names:
            return None
        return rec.StatisticsRecord(state.next, device, sent.names, min(sent.missing, MOST), event.digest)

    @property
    def refused(self) -> tuple[int, ...]:
        """Statistics, by lsn, of other inputs than the model's: they came before its names were known."""
        if not self._conditions.features or self._conditions.full is not None:
            return ()
        return tuple(lsn for device, lsn in self._state.statistics.items() if device in self._conditions.unlike)

    @property
    def _comparable(self) -> dict[str, int]:
        """Statistics of the same inputs: by device, the lsn."""
        held = self._conditions.unlike.keys() | self._conditions.contested.keys()
        return {device: lsn for device, lsn in self._state.statistics.items() if device not in held}

    def arrived(self, now: float) -> list[ev.Action]:
        """Follow statistics that were journaled; have all examined if there are enough."""
        # `since` may be that of statistics which a revocation has dropped: then these are alone.
        if self._since is None or len(self._state.statistics) == 1:
            self._since = now
        if self._gathering_since is None:
            self._gathering_since = now
        return self.examine() if len(self._comparable) >= self._devices and self.unfit is None else []

    @property
    def due(self) -> float | None:
        """When the statistics of fewer devices than requested are pooled; None if that takes another event."""
        if self._state.frozen or not self._freezable:
            return None
        if self.unfit is not None and not self._examined <= self._comparable.keys():
            return float("-inf")  # the reason may have gone with a device
        return None if self._since is None else self._since + self._deadline

    @property
    def _freezable(self) -> bool:
        return len(self._comparable) >= _FEWEST and not self._examining

    def examine(self) -> list[ev.Action]:
        """Request an examination: whether statistics can be pooled depends on their values, which the shell holds."""
        if not self._freezable:
            return []
        self._examining, self._examined = True, frozenset(self._comparable)
        return [ev.Examine(tuple(self._comparable.values()))]

    def examined(self, found: ev.Examined, now: float) -> rec.FreezeRecord | None:
        """The record that pools the statistics found fit; None to wait for more devices, or for newer statistics."""
        self._examining = False
        since, state = self._gathering_since, self._state
        still = found.soon if since is not None and now < since + _STILL else ""
        self.unfit = found.wait or still or None
        if not self._examined <= self._comparable.keys():
            self.unfit = "a device that has sent some is refused"  # meanwhile; the others' are examined again
        elif self.unfit is not None:
            # A contradiction waits for new statistics; if only rows are missing, the deadline starts again.
            self._since = None if found.wait else now
        if self.unfit is not None:
            return None
        self._gathering_since = None
        return rec.FreezeRecord(state.next, found.kept, cap=CAP, near=found.near, keep=state.version > 0)

    @property
    def obstacle(self) -> Obstacle | None:
        """What the statistics wait for; None if there are none."""
        due = None if self._since is None else self._since + self._deadline
        conditions, here, lacking = self._conditions, len(self._comparable), self._devices - len(self._comparable)
        held = conditions.contested or conditions.unlike
        if self.unfit is not None:
            why = f"The statistics cannot be pooled yet: {self.unfit}."
        elif here < _FEWEST and held:
            device, difference = next(iter(held.items()))
            why = (
                f"The statistics of {device} {'wait' if conditions.contested else 'are refused'}: {difference}. "
                f"Those of {'no' if here == 0 else 'only one'} other device can be pooled, and training needs two."
            )
        elif here == 0:
            return None
        elif here < _FEWEST:
            why = (
                "Only one device has sent its statistics, and training needs those of a second one: start another "
                "device."
            )
        elif lacking > 0:
            why = (
                f"{here} devices have sent statistics, of {self._devices} that are requested: they are pooled as soon "
                f"as {lacking} more {'has' if lacking == 1 else 'have'} sent theirs, or within {spell(self._deadline)}."
            )
        else:
            why = f"{here} devices have sent statistics, which are being examined."
        return Obstacle("statistics", why, due=due)
