"""How many devices train at a time: so that a fleet of ten thousand does not train for every step.

The announcement tells a share; a device takes part in a version where a hash of its name and the version falls below it
(`wire.participation`). The controller raises and lowers the share so that a rate of updates, a number of trainings at
once or a cohort for each version is met. A share that asks no device is doubled until one answers. It holds no slots:
a device that never answers costs nothing.
"""

from dataclasses import dataclass

from midge.wire.messages import Participation

PERIOD = 10.0
"""Seconds over which updates are counted before the share changes."""
_DEAD_BAND = 1.15
"""The share stays while it would change by less than this factor: each change is an announcement to everybody."""
_SMALLEST = 1e-6
_VERSIONS = 3
"""Versions that must have been released before a rate is judged: each asks others, and their answers come in bursts."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Who trains, and how often. Without arguments: everybody, from every version.

    Args:
        share: of the devices that train from a version; where a target is given, the share to begin with.
        updates_per_second: a target for the rate of updates of the whole federation.
        concurrency: a target for the number of devices that train at the same time.
        cohort: how many devices are asked for each version.
        interval: seconds at least between two trainings of one device.
        rest: seconds at most that a device pauses between two trainings while the model does not move. The pause grows
            from version to version, and ends with the first movement. 0 never rests.
        bytes_per_month: payload bytes of one device in a calendar month; None sets no limit.
        joules_per_month: energy of one device in a calendar month, as it reckons it; None sets no limit.
    """

    share: float = 1.0
    updates_per_second: float | None = None
    concurrency: float | None = None
    cohort: int | None = None
    interval: float = 0.0
    rest: float = 1800.0
    bytes_per_month: int | None = None
    joules_per_month: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be met.

        Raises:
            ValueError: naming the argument.
        """
        if not 0 < self.share <= 1:
            raise ValueError(f"pace: the share must be above 0 and at most 1, not {self.share}.")
        targets = [self.updates_per_second, self.concurrency, self.cohort]
        if sum(target is not None for target in targets) > 1:
            raise ValueError("pace: give one of updates_per_second, concurrency and cohort.")
        if any(target is not None and not target > 0 for target in targets):
            raise ValueError("pace: a target must be above 0.")
        if self.interval < 0 or self.rest < 0:
            raise ValueError("pace: the interval and the rest must not be negative.")
        for name in ("bytes_per_month", "joules_per_month"):
            if (limit := getattr(self, name)) is not None and limit <= 0:
                raise ValueError(f"pace: {name} must be above 0, or None for no limit.")

    @property
    def steered(self) -> bool:
        """Whether there is a target."""
        return (self.updates_per_second or self.concurrency or self.cohort) is not None


_SHORT, _DOUBLINGS = 1.0, 20
"""Seconds of the first pause at least, and how often it is doubled at most: by then it is longer than any rest."""
_ENOUGH = 10
"""Devices that have contributed, from which on names alone are not believed."""
_IMPLAUSIBLE = 20
"""Times as many that say that they are there, which then are names rather than devices."""
_NONE_NEW = 3
"""Updates of each that has contributed, on the mean, without one of a new device: then all that are there are known."""


class Steering:
    """The controller: counts what comes and says the share. It reads no clock."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.share = pace.share
        self.live = 0
        """How many devices are there that are reckoned with; 0 where nothing is known."""
        self.online = 0
        """How many are there, as their statuses tell: a cohort is drawn of all of them."""
        self._contributed = self._none_new = 0
        """How many have ever contributed, and how many updates have come since one of them was new."""
        self._since: float | None = None
        self._released_at: float | None = None
        self._looked = 0.0
        self._came = 0
        self._versions = 0
        self._seconds = 0.0
        """How long a training takes, as the median of the devices has it."""
        self._gap = 0.0
        """Seconds between two versions, a running mean."""
        self.quiet = 0
        """Versions in a row that have not moved the model beyond its noise (`aggregator.model.movement`)."""

    def reckon(self, contributed: int, *, online: int | None = None) -> None:
        """Reckon with the devices that are there; of names alone only with as many as ever contributed, and again.

        If anyone may publish, a name costs nothing, and each would make buffers larger and releases rarer. In a fleet
        that grows, an update of a new device comes soon: of those that are there each is as likely to be the next.
        """
        if online is not None:
            self.online = online
        if contributed != self._contributed:
            self._contributed, self._none_new = contributed, 0
        names = self.online > _IMPLAUSIBLE * contributed or self._none_new >= _NONE_NEW * contributed
        doubted = contributed >= _ENOUGH and names
        self.live = min(self.online, 2 * contributed) if doubted else self.online

    @property
    def rest(self) -> float:
        """Seconds that a device pauses between two trainings because the model does not move."""
        if self.quiet == 0:
            return 0.0
        return min(self.pace.rest, max(_SHORT, self._seconds) * 2.0 ** min(self.quiet - 1, _DOUBLINGS))

    def participation(self) -> Participation:
        """For the announcement."""
        return Participation(
            share=self.share,
            interval=self.pace.interval,
            rest=self.rest,
            bytes_per_month=self.pace.bytes_per_month or 0,
            joules_per_month=self.pace.joules_per_month or 0.0,
        )

    def came(self, seconds: float) -> None:
        """Count an update. `seconds` is how long a training takes, the median over devices."""
        self._came += 1
        self._none_new += 1
        self._seconds = seconds

    def begin(self, now: float) -> None:
        """Count from here on."""
        self._since = self._looked = now
        self._came = self._versions = 0

    def released(self, now: float) -> None:
        """A version was released: who takes part is drawn again."""
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
            if there := self.online or self.live:
                self.share = min(1.0, self.pace.cohort / there)

    @property
    def due(self) -> float | None:
        """When `tick` next has something to say."""
        return self._looked + PERIOD if self._since is not None and (self.pace.steered or self.share < 1) else None

    def tick(self, now: float, *, starved: bool = False) -> bool:
        """Whether the share has changed. `starved` says that what has come makes no release, nor will by waiting."""
        if self.due is None or now < self.due or self._since is None:
            return False
        self._looked = now
        elapsed = now - self._since
        patience = max(PERIOD, 3 * self._seconds)
        # A gap that grew because too few had been asked says nothing of how long those take that have not answered.
        if (starved and self._came and elapsed >= patience) or (
            self._came == 0 and elapsed >= max(patience, 3 * self._gap)
        ):
            return self._change(2 * self.share, now)
        if self._target is None or self._versions < _VERSIONS or elapsed < PERIOD:
            return False
        ratio = self._target * elapsed / max(self._came, 1)
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
        """Updates a second; a number at once becomes one by Little's law."""
        if self.pace.concurrency is not None:
            return self.pace.concurrency / max(self._seconds, 1e-3)
        return self.pace.updates_per_second
