"""Watchdog: whether the federation learns, and why not, as one state with a reason, and alarms.

Silence is judged by the fleet's own pace. Three usual intervals without an accepted update are a stall if online
devices have something to train on; so a fleet that trains once a day is not stalled at noon.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from midge.aggregator.core.obstacle import Obstacle
from midge.aggregator.metrics.device_activity import WINDOW, DeviceActivity
from midge.wire.clocks import spell
from midge.wire.messages import HealthState
from midge.wire.plurals import counted

INTERVALS = 3.0
"""Usual intervals between two updates of a device without an accepted one."""
SOONEST = 30.0
"""Seconds before anything is called a stall: a fleet that starts or reconnects is often done by then."""
STATISTICS = 60.0
"""Seconds in which online devices should send their statistics; more if the owner's deadline is later."""
TRAININGS = 10.0
"""Multiple of a usual training in which online devices should send a first update: the slowest of twenty devices with
log-normal speeds (σ = 1.2) takes ten times as long."""
FIRST = 3600.0
"""Seconds in which online devices should send a first update, while nothing is known of how long they train."""
ALONE = 5.0
"""Seconds until the absence of devices is reported: by then the broker has sent all retained statuses."""
BROKERLESS = "No connection to the broker"
"""The finding, and the alarm, of an aggregator without a connection: nothing arrives, whatever the devices do."""
_NAMED = 5
"""Devices that an alarm names."""
_ALARMS = 16
_KEEPING, _FEWEST_KEEPING = 0.25, 3
"""Share and number of devices that refuse a model from which on the model is at fault: one device may be special."""


@dataclass(frozen=True, slots=True)
class FleetSituation:
    """The watchdog's input, beside updates."""

    full: str | None = None
    paused: str | None = None
    frozen: bool = True
    """Whether the model trains: statistics are not awaited."""
    obstacle: Obstacle | None = None
    able: int = 0
    """Number of online devices without a reason of their own not to train."""
    waiting: str = ""
    """Reason of one of the others."""
    there: int = 0
    interval: float | None = None
    """Usual seconds between two updates of an online device; None if unknown."""
    training: float | None = None
    """Seconds from a version to the update of a usual device; None if unknown."""
    version: int = 0
    """The newest version."""
    scheduled: tuple[float, str] | None = None
    """When a version or a step is due that takes no further update, and why not before."""
    idle: Sequence[str] = ()
    """Devices that could train and have given nothing since the last release, if the obstacle is about them."""
    rest: float = 0.0
    """Seconds that devices are asked to pause between two trainings, because the model does not move."""
    unlike: Mapping[str, str] | None = None
    """Devices whose updates are refused because of their inputs, each with why."""
    own: Sequence[str] = ()
    """Alarms about the aggregator's machine, as text: a clock that is wrong, credentials that expire soon."""
    present: int = 0
    """Number of devices that are online or asleep."""
    asleep: int = 0
    """Number of those that are asleep."""
    keeping: int = 0
    """Number of those that keep the model that they use, because a newer one is worse on their own rows."""
    left_out: Sequence[str] = ()
    """Devices that get no model, because they accept no part of it."""


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """The watchdog's result."""

    state: HealthState
    why: str = ""
    alarms: tuple[str, ...] = ()
    since: float = 0.0
    """When the state began, by the monotonic clock."""
    obstacle: str = field(default="", compare=False)
    """The kind of obstacle in `why`, or `no device`; empty if it is about something else."""
    cause: str = field(default="", compare=False)
    """What tells this reason from another one in the same state. Unlike `why` it stays while only numbers change."""

    @classmethod
    def of(cls, state: HealthState, obstacle: Obstacle, more: str = "") -> "HealthFinding":
        """A state because of an obstacle; `more` is added to its reason."""
        return cls(state, obstacle.why + more, obstacle=obstacle.kind, cause=obstacle.cause)


class Watchdog:
    """The watchdog of one federation, from `began` on (seconds of the monotonic clock).

    Args:
        activity: of its devices.
        began: when the process began.
        interval: usual seconds between two updates of a device before that; 0 if unknown.
        training: those from a version to an update.
    """

    def __init__(self, activity: DeviceActivity, began: float, interval: float = 0.0, training: float = 0.0) -> None:
        self._activity, self._began = activity, began
        self.interval, self.training = interval, training
        """The newest known ones; after a restart they stand in until the fleet's pace has been measured again."""
        self._obstacle_since: float | None = None
        self._holds: int | None = None
        self._version: int | None = None
        self._released = -math.inf
        """When the newest version was first seen."""
        self._able_since: float | None = None
        """Since when there have always been online devices with something to train on."""
        self.finding = HealthFinding(HealthState.WAITING, "it begins", since=began)

    def look(self, now: float, situation: FleetSituation) -> HealthFinding:
        """Judge the situation; the finding keeps its `since` while the state stays."""
        if situation.interval is None and situation.training is None:
            situation = replace(situation, interval=self.interval or None, training=self.training or None)
        self.interval = situation.interval or self.interval
        self.training = situation.training or self.training
        holds = None if situation.obstacle is None else situation.obstacle.holds
        if situation.obstacle is None or situation.obstacle.kind == "statistics":
            self._obstacle_since = None
        elif self._obstacle_since is None or holds != self._holds:
            self._obstacle_since = now
        self._holds = holds
        if self._version not in (None, situation.version):
            self._released = now
        self._version = situation.version
        if situation.able == 0 or situation.full is not None or situation.paused is not None:
            self._able_since = None
        elif self._able_since is None:
            self._able_since = now
        found = self._judged(now, situation)
        before = self.finding
        since = before.since if before.state is found.state else now
        self.finding = replace(found, alarms=tuple(self._alarms(now, situation))[:_ALARMS], since=since)
        return self.finding

    def disconnected(self, now: float) -> HealthFinding:
        """The connection is lost: silence means nothing until some devices have been online for a while."""
        self._able_since = self._obstacle_since = None
        since = self.finding.since if self.finding.state is HealthState.WAITING else now
        self.finding = HealthFinding(HealthState.WAITING, f"{BROKERLESS}.", (BROKERLESS,), since=since)
        return self.finding

    def connected(self, now: float) -> None:
        """There is a connection: it begins again, and nothing is judged before the next look."""
        self._began = now
        if BROKERLESS in self.finding.alarms:
            self.finding = replace(self.finding, why="it begins", alarms=())

    def _judged(self, now: float, so: FleetSituation) -> HealthFinding:
        if so.full is not None:
            return HealthFinding(HealthState.FULL, so.full, cause=so.full)
        if so.paused is not None:
            return HealthFinding(HealthState.PAUSED, so.paused, cause=so.paused)
        able = 0.0 if self._able_since is None else now - self._able_since
        if not so.frozen:
            due = None if so.obstacle is None else so.obstacle.due
            late = so.able > 0 and able > STATISTICS and not (due is not None and now < due)
            state = HealthState.STALLED if late else HealthState.WAITING
            if so.obstacle is None:
                return HealthFinding(state, "No device has sent statistics of its data yet.")
            return HealthFinding.of(state, so.obstacle)
        if so.obstacle is not None and so.obstacle.kind == "held":
            # With enough devices online, the next update may remove it: it has the fleet's usual time.
            lacking = so.there < so.obstacle.needs
            if self._obstacle_lasts(now, SOONEST if lacking else _patience(so)):
                return _held(so, so.obstacle)
            if lacking:
                return HealthFinding.of(HealthState.WAITING, so.obstacle)
        return self._silence(now, able, so)

    def _obstacle_lasts(self, now: float, patience: float = SOONEST) -> bool:
        return self._obstacle_since is not None and now - self._obstacle_since >= patience

    def _silence(self, now: float, able: float, so: FleetSituation) -> HealthFinding:
        """Whether updates arrive and are accepted."""
        accepted = self._activity.accepted
        # Not before the devices had the time: an aggregator or a fleet that was away starts again.
        silent = able if accepted is None else min(able, now - max(accepted, self._released))
        if so.able == 0:
            if so.there:
                return HealthFinding(HealthState.WAITING, f"{_devices(so.there)} there; training waits: {so.waiting}")
            late = now - self._began >= ALONE
            why = (
                f"No device is awake; {counted(so.asleep, 'device')} sleeping." if so.asleep else "No device is there."
            )
            return HealthFinding(HealthState.WAITING, why, obstacle="no device" if late else "")
        if silent <= SOONEST:
            if accepted is None:
                return HealthFinding(HealthState.WAITING, "No update has been accepted since the aggregator started.")
            return _learning(so)
        refused = self._activity.refused_since
        if 2 * refused > so.able:
            return HealthFinding(
                HealthState.STALLED,
                f"No update was accepted for {spell(silent)}: those of {counted(refused, 'device')} were refused, "
                f"{self._counts(now, silent)}.",
                cause="refused",
            )
        if so.scheduled is not None and now < so.scheduled[0]:
            state = HealthState.WAITING if accepted is None else HealthState.LEARNING
            return HealthFinding(state, so.scheduled[1].format(spell(so.scheduled[0] - now)))
        if silent <= _patience(so):
            if accepted is None:
                return HealthFinding(
                    HealthState.WAITING, f"No update has been accepted yet; {_devices(so.able)} there."
                )
            return _learning(so)
        if so.obstacle is not None and so.obstacle.kind == "held":
            return _held(so, so.obstacle)
        usual = "" if so.interval is None else f" (one of them sends one every {spell(so.interval)} usually)"
        return HealthFinding(
            HealthState.STALLED,
            f"No update was accepted for {spell(silent)} although {_devices(so.able)} there{usual}: "
            f"{self._counts(now, silent)}.",
            cause="silent",
        )

    def _counts(self, now: float, silent: float) -> str:
        """What came instead of accepted updates."""
        counts = sorted(self._activity.refusals(now).items(), key=lambda item: -item[1])
        return ", ".join(f"{number} {verdict}" for verdict, number in counts) or (
            f"none came in the last {spell(min(silent, WINDOW))}"
        )

    def _alarms(self, now: float, so: FleetSituation) -> Sequence[str]:
        alarms = list(so.own)
        if so.obstacle is not None and so.obstacle.kind == "slow" and self._obstacle_lasts(now):
            alarms.append(so.obstacle.why)
        by_verdict: dict[str, list[str]] = {}
        for device, known in self._activity.refused_always.items():
            by_verdict.setdefault(known.verdict, []).append(device)
        for verdict, devices in sorted(by_verdict.items()):
            known = self._activity.refused_always[devices[0]]
            alarms.append(
                f"Refused every time as {verdict}: {_names(devices)}"
                + (f" ({known.why})" if len(devices) == 1 and known.why else "")
            )
        if so.left_out:
            few = "takes" if len(so.left_out) == 1 else "take"
            alarms.append(
                f"No model for {_names(so.left_out)}: {few} less than the smallest part (see largest, smallest_chunk)"
            )
        if so.keeping >= _FEWEST_KEEPING and so.keeping >= _KEEPING * so.present:
            alarms.append("Many devices keep the model that they use: the newest is worse on their own rows")
        if so.unlike:
            why = next(iter(so.unlike.values()))
            alarms.append(
                f"Nothing is taken from {_names(list(so.unlike))}" + (f": {why}" if len(so.unlike) == 1 else "")
            )
        return alarms


def _patience(so: FleetSituation) -> float:
    """Seconds of silence that are normal."""
    if so.interval is not None:
        return max(SOONEST, INTERVALS * stretched(so.interval, so.rest))
    # A device that was not heard twice may be a slow one.
    return FIRST if so.training is None else max(SOONEST, min(TRAININGS * stretched(so.training, so.rest), FIRST))


def stretched(interval: float, rest: float) -> float:
    """The usual interval between two updates while devices are asked to rest: the measured one lags behind."""
    return max(interval, 2 * rest)


def _held(so: FleetSituation, obstacle: Obstacle) -> HealthFinding:
    idle = f" Online devices that have given nothing since: {_names(so.idle)}." if so.idle else ""
    return HealthFinding.of(HealthState.HELD, obstacle, idle)


def _learning(so: FleetSituation) -> HealthFinding:
    rests = so.rest >= SOONEST
    why = f"The model does not move any more: devices without new rows pause for {spell(so.rest)}." if rests else ""
    return HealthFinding(HealthState.LEARNING, why)


def _names(devices: Sequence[str]) -> str:
    more = len(devices) - _NAMED
    return ", ".join(devices[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _devices(number: int) -> str:
    return f"{counted(number, 'device')} {'is' if number == 1 else 'are'}"
