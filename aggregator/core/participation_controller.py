"""Control of participation: which share of the devices trains from a version.

The announcement has the share; a device trains from a version if a hash of its name and the version falls below it
(`wire.participation`). The controller adjusts the share to meet a rate of updates, a number of concurrent trainings, or
a cohort for each version. If a share draws no device, it is doubled until one answers. There are no slots: a device
that never answers costs nothing.
"""

from dataclasses import dataclass

from midge.wire.field_checks import Count, NotNegative, Positive, Share, check_fields
from midge.wire.messages import Participation

PERIOD = 10.0
"""Seconds over which updates are counted before the share changes."""
_DEAD_BAND = 1.15
"""Least factor by which the share changes: each change is an announcement to all devices."""
_SMALLEST = 1e-6
_VERSIONS = 3
"""Versions released before a rate is judged: each one draws other devices, and their updates arrive in bursts."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Which devices train, and how often. Without arguments: all of them, from every version.

    Args:
        share: of the devices that train from a version; the initial share if there is a target.
        updates_per_second: target rate of updates of the whole federation.
        concurrency: target number of devices that train at the same time.
        cohort: number of devices drawn for each version.
        interval: least seconds between two trainings of one device.
        rest: most seconds that a device pauses between two trainings while the model does not move. The pause grows
            from version to version, and ends with the first movement. 0 disables it.
        bytes_per_month: payload bytes of one device in a calendar month; None sets no limit.
        joules_per_month: energy of one device in a calendar month, by its own estimate; None sets no limit.

    Examples:
        >>> midge.balanced(pace=midge.Pace(updates_per_second=2.0)).pace.steered
        True
    """

    share: Share = 1.0
    updates_per_second: Positive | None = None
    concurrency: Positive | None = None
    cohort: Count | None = None
    interval: NotNegative = 0.0
    rest: NotNegative = 1800.0
    bytes_per_month: Count | None = None
    joules_per_month: Positive | None = None

    def __post_init__(self) -> None:
        """Validate the values.

        Raises:
            ValueError: one is out of range, or they exclude each other.
        """
        check_fields(self, "pace")
        targets = [self.updates_per_second, self.concurrency, self.cohort]
        if sum(target is not None for target in targets) > 1:
            raise ValueError("pace: give one of updates_per_second, concurrency and cohort.")

    @property
    def steered(self) -> bool:
        """Whether there is a target."""
        return (self.updates_per_second or self.concurrency or self.cohort) is not None


_SHORT, _DOUBLINGS = 1.0, 20
"""Least seconds of the first pause, and most doublings of it: by then it is longer than any `rest`."""
_ENOUGH = 10
"""Number of contributing devices from which the number of online ones is no longer believed unchecked."""
_IMPLAUSIBLE = 20
"""Online devices for each contributing one above which most of them are taken for made-up names."""
_NONE_NEW = 3
"""Mean updates of each contributing device without one of a new device after which no new one is expected."""


class ParticipationController:
    """Counts updates and versions, and adjusts the share. It reads no clock."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.share = pace.share
        self.live = 0
        """Number of online devices that is believed; 0 if unknown."""
        self.online = 0
        """Number of online devices by their statuses: a cohort is drawn from all of them."""
        self._idle = 0
        """Number of those that do not train, for a reason that is known."""
        self._contributed = self._none_new = 0
        """Number of devices that ever contributed, and of updates since the last new one."""
        self._since: float | None = None
        self._released_at: float | None = None
        self._checked_at = 0.0
        self._updates = 0
        self._versions = 0
        self._seconds = 0.0
        """Median seconds of a training."""
        self._gap = 0.0
        """Running mean of the seconds between two versions."""
        self.quiet = 0
        """Number of versions in a row that did not move the model beyond its noise (`aggregator.model.movement`)."""

    def count_devices(self, contributed: int, *, online: int | None = None, idle: int = 0) -> None:
        """Update `live`: the online devices; if their number is implausible, at most twice the contributing ones.

        If anyone may publish, names cost nothing, and each one would enlarge buffers and delay releases. In a fleet
        that really grows, an update of a new device arrives soon: each online device is equally likely to be next.
        """
        if online is not None:
            self.online, self._idle = online, idle
        if contributed != self._contributed:
            self._contributed, self._none_new = contributed, 0
        names = self.online > _IMPLAUSIBLE * contributed or self._none_new >= _NONE_NEW * contributed
        doubted = contributed >= _ENOUGH and names
        self.live = min(self.online, 2 * contributed) if doubted else self.online

    @property
    def training(self) -> int:
        """Number of live devices that train."""
        return min(self.live, max(self.online - self._idle, 0))

    @property
    def rest(self) -> float:
        """Seconds that a device pauses between two trainings, because the model does not move."""
        if self.quiet == 0:
            return 0.0
        return min(self.pace.rest, max(_SHORT, self._seconds) * 2.0 ** min(self.quiet - 1, _DOUBLINGS))

    def participation(self) -> Participation:
        """The participation to announce."""
        return Participation(
            share=self.share,
            interval=self.pace.interval,
            rest=self.rest,
            bytes_per_month=self.pace.bytes_per_month or 0,
            joules_per_month=self.pace.joules_per_month or 0.0,
        )

    def count_update(self, seconds: float) -> None:
        """Count an update. `seconds` is the median duration of a training over devices."""
        self._updates += 1
        self._none_new += 1
        self._seconds = seconds

    def begin(self, now: float) -> None:
        """Start a new count."""
        self._since = self._checked_at = now
        self._updates = self._versions = 0

    def released(self, now: float) -> None:
        """Record a release: participation is drawn again."""
        if self._since is None:
            self.begin(now)
        if self._released_at is not None:
            gap = now - self._released_at
            self._gap += (gap - self._gap) * (0.2 if self._gap else 1.0)
        self._released_at = now
        self._versions += 1
        if not self.pace.steered:
            self.share = self.pace.share
        if self.pace.cohort is not None:
            self.begin(now)
            if online := self.online or self.live:
                self.share = min(1.0, self.pace.cohort / online)

    @property
    def due(self) -> float | None:
        """When the share is next checked; None if there is nothing to adjust."""
        return self._checked_at + PERIOD if self._since is not None and (self.pace.steered or self.share < 1) else None

    def tick(self, now: float, *, starved: bool = False) -> bool:
        """Check the share; return whether it changed. `starved`: no release is possible without further updates."""
        if self.due is None or now < self.due or self._since is None:
            return False
        self._checked_at = now
        elapsed = now - self._since
        patience = max(PERIOD, 3 * self._seconds)
        # With updates but no release, the gap between versions is no measure: it grew because too few were drawn.
        if (starved and self._updates and elapsed >= patience) or (
            self._updates == 0 and elapsed >= max(patience, 3 * self._gap)
        ):
            return self._change(2 * self.share, now)
        if self._target is None or self._versions < _VERSIONS or elapsed < PERIOD:
            return False
        ratio = self._target * elapsed / max(self._updates, 1)
        return self._change(self.share * min(max(ratio, 0.5), 2.0), now)

    def _change(self, wanted: float, now: float) -> bool:
        before = self.share
        self.begin(now)
        wanted = min(max(wanted, _SMALLEST), 1.0)
        if 1 / _DEAD_BAND < wanted / before < _DEAD_BAND:
            return False
        self.share = wanted
        return True

    @property
    def _target(self) -> float | None:
        """The target in updates a second; a concurrency becomes one by Little's law."""
        if self.pace.concurrency is not None:
            return self.pace.concurrency / max(self._seconds, 1e-3)
        return self.pace.updates_per_second
