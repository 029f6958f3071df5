"""Reports whether the federation learns: events and log lines on changes, an overview on request."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from midge.aggregator.federation import FederationRuntime
from midge.aggregator.metrics.watchdog import HealthFinding, stretched
from midge.aggregator.publish.publish_queue import Post
from midge.wire import overview
from midge.wire.messages import Health, HealthState, Hello
from midge.wire.overview import DeviceRow, Overview

log = logging.getLogger("aggregator")

_LOOK = 1.0
"""Seconds between two checks of the watchdog."""
_ANSWER = 1.0
"""Least seconds between two overviews: one answers all requests."""
_STATUSLESS = 60.0
"""Seconds for which a device without a status, but with accepted updates, has a row."""
_SHARE = 50.0
"""Checks and overviews take at most one part in this many of the time, because both visit all devices."""


class HealthReporter:
    """The health of one aggregator.

    Args:
        federation: the runtime, which is rebuilt in place after a full disk.
        tell: takes events.
        changed: called if the retained status must change.
    """

    def __init__(self, federation: FederationRuntime, tell: Callable[..., None], changed: Callable[[], None]) -> None:
        self._federation, self._tell, self._changed = federation, tell, changed
        self._look_at = self._answer_at = float("-inf")
        self._asked = False

    # -------------------------------------------------------------------- the watchdog

    def look(self, now: float) -> None:
        """Run the watchdog if it is due, and report changes."""
        if now < self._look_at:
            return
        began = time.perf_counter()
        watchdog = self._federation.watchdog
        before, found = watchdog.finding, watchdog.look(now, self._federation.situation(now))
        self._look_at = now + max(_LOOK, _SHARE * (time.perf_counter() - began))
        moved = (found.state, found.obstacle, found.cause) != (before.state, before.obstacle, before.cause)
        if found.state is not before.state or (moved and (found.cause or found.obstacle)):
            self._tell_state(before, found)
        for alarm in found.alarms:
            if alarm not in before.alarms:
                log.warning("%s", alarm)
                self._tell("alarm", why=alarm)
        if moved or found.alarms != before.alarms:
            self._changed()

    def _tell_state(self, before: HealthFinding, found: HealthFinding) -> None:
        if found.state.alarming:
            log.warning("%s: %s", found.state.value, found.why)
        elif before.state.alarming:
            log.warning("The federation is %s again: it was %s.", found.state.value, before.state.value)
        elif found.obstacle and self._federation.config.on_event is None:  # nothing else would report it
            log.warning("%s: %s", found.state.value, found.why)
        self._tell("health", state=found.state.value, why=found.why, before=before.state.value)

    def health(self, now: float) -> Health:
        """The newest finding, as a message."""
        found, activity = self._federation.watchdog.finding, self._federation.activity
        return Health(
            state=found.state,
            since=_wall(found.since, now),
            accepted=0.0 if activity.accepted is None else _wall(activity.accepted, now),
            why=found.why[:400],
            verdicts=dict(activity.verdicts(now)),
            devices=dict(activity.devices(now)),
            alarms=tuple(alarm[:400] for alarm in found.alarms),
        )

    def disconnected(self, now: float) -> None:
        """Report that there is no connection: the metrics must not go on with what was found before."""
        watchdog = self._federation.watchdog
        before, found = watchdog.finding, watchdog.disconnected(now)
        if found.why != before.why:
            self._tell("health", state=found.state.value, why=found.why, before=before.state.value)
            self._tell("alarm", why=found.alarms[0])

    # -------------------------------------------------------------------- the overview

    def ask(self, payload: bytes) -> Iterator[Post]:
        """Process a request: an overview is sent when it is due; messages of revoked devices are removed at once."""
        self._asked = True
        for name in overview.decode_ask(payload).gone:
            if name in self._federation.devices:
                yield Post(self._federation.config.topics.status(name), b"")

    def answers(self, about: Callable[[], Overview], now: float) -> list[Post]:
        """The pages of an overview if one was requested and is due; they are not retained.

        `about` makes the header; it is called only if there is an answer, because it visits all devices.
        """
        if not self._asked or now < self._answer_at:
            return []
        began = time.perf_counter()
        self._asked = False
        names = sorted(self._names(now), key=self._fine)
        pages = overview.encode_pages(about(), (self._row(name, now) for name in names), len(names))
        posts = [Post(self._federation.config.topics.overview, page, retain=False) for page in pages]
        self._answer_at = now + max(_ANSWER, _SHARE * (time.perf_counter() - began))
        return posts

    @property
    def due(self) -> float | None:
        """When an answer is due; None if none was requested."""
        return self._answer_at if self._asked else None

    def rows(self, names: Iterable[str], now: float) -> list[DeviceRow]:
        """The rows of these devices."""
        return [self._row(name, now) for name in names]

    def _fine(self, name: str) -> bool:
        """Whether the device needs no attention: others come first, in case not all fit."""
        federation = self._federation
        known = federation.activity[name]
        attention = name in federation.core.unlike or name in federation.waits or _trouble(federation.devices.get(name))
        return not (attention or (known is not None and known.refused))

    def _names(self, now: float) -> Iterator[str]:
        federation = self._federation
        yield from federation.devices
        # One without a status has left, was revoked, or is unknown; or it never sends one.
        for name in list(federation.activity.names()):
            known = federation.activity[name]
            recent = known is not None and known.updates > 0 and now - known.heard < _STATUSLESS
            # A withdrawn one is followed only while it is connected.
            if (recent or federation.names.withdrawn(name)) and name not in federation.devices:
                yield name

    def _row(self, name: str, now: float) -> DeviceRow:
        federation = self._federation
        hello, known, core = federation.devices.get(name), federation.activity[name], federation.core
        report = federation.reports.newest(name)
        version = max(
            hello.version if hello is not None and hello.lineage == core.lineage else 0,
            0 if known is None else known.version,
            0 if report is None else report.version,
        )
        return DeviceRow(
            name=name,
            state=self._state(name, now),
            heard=None if known is None else now - known.heard,
            accepted=None if known is None or known.accepted is None else now - known.accepted,
            updates=0 if known is None else known.updates,
            refused=0 if known is None else known.refused,
            verdict="" if known is None else known.verdict,
            why=(
                core.unlike.get(name)
                or federation.waits.get(name)
                or ("" if known is None or not known.refused else known.why)
                or _trouble(hello)
            )[:400],
            version=version,
            behind=max(0, core.version - version),
            holds=0 if hello is None else max(0, hello.next - max(hello.first, core.hi(name, hello.outbox) + 1)),
            wakes=self._wakes(name, now),
            metrics={} if report is None else dict(report.metrics),
            metrics_version=0 if report is None else report.version,
            reported=0 if report is None else report.devices,
            keeps=0 if hello is None else hello.keeps,
            epsilon=core.spent_of(name),
        )

    def _wakes(self, name: str, now: float) -> float:
        """When a sleeping device wakes, by our clock if it is known how far the two are apart; 0 if it told none."""
        hello, known = self._federation.devices.get(name), self._federation.activity[name]
        if hello is None or not hello.wakes:
            return 0.0
        its = hello.capabilities.get("clock")
        if known is None or not isinstance(its, float) or self._federation.presence.unconfirmed(name):
            return hello.wakes  # its status was retained: it is not known when it was sent
        return _wall(known.heard, now) + hello.wakes - its

    def _state(self, name: str, now: float) -> str:
        """The device's last state, or what the aggregator knows better."""
        federation = self._federation
        if federation.names.withdrawn(name):
            return "withdrawn"
        hello = federation.devices.get(name)
        if hello is None:
            return "unknown"
        if hello.state.live and federation.presence.unconfirmed(name):
            return "unconfirmed"
        gap = federation.core.interval([name])
        if gap is None or not hello.state.live or name in federation.waits or self._owes_nothing(name):
            return hello.state.value
        usual = stretched(gap, federation.core.steering.rest)
        return "silent" if federation.presence.silent(name, usual, now) else hello.state.value

    def _owes_nothing(self, name: str) -> bool:
        """Whether nothing comes because of the aggregator: it is paused, or holds a release that the device gave to."""
        state, known = self._federation.watchdog.finding.state, self._federation.activity[name]
        if state is HealthState.HELD:
            return known is not None and known.version >= self._federation.core.version
        return state in (HealthState.PAUSED, HealthState.FULL)


def _trouble(hello: Hello | None) -> str:
    """Why a device could not train, or not be evaluated on its own data, as it reports; empty if it could."""
    said = {} if hello is None else hello.capabilities
    if why := said.get("training_why", ""):
        return f"its training gave nothing: {why}"
    return f"its evaluate() failed: {why}" if (why := said.get("evaluation_why", "")) else ""


def _wall(moment: float, now: float) -> float:
    """Seconds since 1970 of a time of the monotonic clock."""
    return max(0.0, time.time() - (now - moment))
