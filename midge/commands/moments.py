"""A snapshot of a demo as text values, for the live view and the plain lines."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from midge.commands.words import sentence
from midge.wire.plurals import counted

if TYPE_CHECKING:
    from midge.sensor_fleet.demo import Demo
    from midge.sensor_fleet.progress import Progress

LINES: Final = 200
"""Events that are kept for display."""
ROUTINE: Final = 0.4
"""Least seconds between two routine events that are shown, so that rare ones stay readable."""
_ROUTINE = ("accepted", "ready")
"""Dozens a second, or all at once when an aggregator comes back."""
_RARE = {"killed", "restarted", "start", "freeze", "joined", "left", "vanished", "alarm", "stalled", "held", "full"}
LINGER: Final = 12.0
"""Seconds that a rare event stays visible while others scroll by."""
_DEVICES = {"renewed", "refused", "unfit", "fetch_failed", "joined", "left", "vanished"}
"""Events of devices that are shown; the aggregator reports the others."""
_QUIET = {"release", "evaluation", "connected", "training", "trained", "receipt"}
"""Events that the figures already show."""


@dataclass(frozen=True, slots=True)
class Line:
    """One displayed event."""

    at: float
    """Seconds since 1970."""
    text: str
    kind: str
    """A verdict, a state, or the event's own name: determines the colour."""


class Happenings:
    """The last displayed events; only a sample of routine ones."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=LINES)
        self.page: tuple[tuple[str, str], ...] = ()
        """Where the demo's live page is, as figures."""
        self._routine_at = 0.0

    def take(self, event: Mapping[str, Any]) -> None:
        """Process an event of the aggregator, or of a kill or restart."""
        name, kind = event["event"], str(event.get("verdict") or event.get("state") or event["event"])
        text = sentence(event)
        if not text or name in _QUIET:
            return
        if kind in _ROUTINE:
            if event["time"] - self._routine_at < ROUTINE:
                return
            self._routine_at = event["time"]
        kind = "duplicate" if name == "repeat" else kind
        text = f"The aggregator: not connected. {event['why']}" if name == "disconnected" else text
        self.lines.append(Line(event["time"], text, kind))

    def take_device(self, event: Mapping[str, Any]) -> None:
        """Process an event of a device."""
        if event["event"] in _DEVICES and (text := sentence(event)):
            named = text if text.startswith(event["device"]) else f"{event['device']}: {text}"
            self.lines.append(Line(event["time"], named, event["event"]))


def latest(lines: Sequence[Line], room: int, now: float) -> list[Line]:
    """The last lines that fit, in order of time; up to half of the room is for recent rare ones."""
    rare = [line for line in lines if line.kind in _RARE and now - line.at < LINGER][-(room // 2) :] if room > 1 else []
    left = room - len(rare)
    others = [line for line in lines if line not in rare][-left:] if left else []
    return sorted([*rare, *others], key=lambda line: line.at)


@dataclass(frozen=True, slots=True)
class DemoMoment:
    """Everything that the live view shows."""

    title: str
    elapsed: float
    left: float
    metric: str
    value: float | None
    target: float | None
    curve: tuple[tuple[float, float], ...]
    figures: tuple[tuple[str, str], ...]
    """Names and values; further lines of the same figure have no name."""
    killed: frozenset[str]
    """Killed ones of "aggregator", "broker" and "device", which can be restarted."""
    broker_is_ours: bool
    lines: tuple[Line, ...]
    began: float = 0.0

    @classmethod
    def of(cls, demo: "Demo", happenings: Happenings) -> "DemoMoment":
        """A snapshot of the demo now."""
        setting, progress, fleet = demo.setting, demo.progress, demo.fleet
        dead = {
            "aggregator": fleet is not None and not demo.aggregator_running,
            "broker": not demo.broker_running,
            "device": fleet is not None and bool(fleet.killed),
        }
        devices = "" if fleet is None else f" · {counted(len(fleet.devices), 'device')}"
        return cls(
            title=f"{setting.data}{devices} · {setting.strategy}{f' · {setting.codec}' if setting.codec else ''}",
            elapsed=demo.elapsed,
            left=demo.left,
            metric=progress.metric,
            value=progress.value,
            target=demo.target,
            curve=tuple(progress.curve),
            figures=(*_figures(demo), *happenings.page),
            killed=frozenset(name for name, is_dead in dead.items() if is_dead),
            broker_is_ours=demo.broker_is_ours,
            lines=tuple(happenings.lines),
            began=progress.began,
        )


def _figures(demo: "Demo") -> list[tuple[str, str]]:
    from midge.sensor_fleet.live.device import Presence  # noqa: PLC0415 - an extra

    progress, fleet, tau = demo.progress, demo.fleet, demo.progress.quantiles()
    updates = progress.updates
    refused = progress.settled - updates["accepted"] - updates["stale"]
    figures = [
        ("version", f"{progress.version}, step {progress.step}"),
        (
            progress.metric,
            shown(progress) + ("" if demo.target is None else f" of {_as_metric(progress, demo.target)}"),
        ),
        ("updates", f"{updates['accepted']} accepted, {refused} refused"),
        ("", f"{updates['duplicate']} duplicate, {updates['stale']} stale"),
        ("steps late", f"{tau['p50']} / {tau['p90']} / {tau['max']} (half, 90 %, all)" if tau else "-"),
    ]
    if fleet is None:
        return figures
    states, (up, down) = fleet.states, fleet.payloads
    here = [f"{states[state]} {state}" for state in Presence if states[state]]
    announced = fleet.announced
    model = "-" if announced is None else f"{announced.digest.hex()[:8]} of version {announced.version}"
    return [
        *figures,
        ("up", _against(up, demo.float32_up)),
        ("down", _against(down, demo.float32_down)),
        ("devices", ", ".join(here[:2])),
        *[("", ", ".join(here[place : place + 2])) for place in range(2, len(here), 2)],
        ("outboxes", f"{counted(fleet.holding, 'update')} held"),
        ("receipted", _receipted(fleet.receipted, progress.settled)),
        ("model", model),
    ]


def _receipted(receipted: int, settled: int) -> str:
    """Receipts follow settlements; the difference is in transit, or resent."""
    if receipted >= settled:
        return f"{receipted} = {receipted} settled"
    return f"{receipted} of {settled}, {settled - receipted} on their way"


def _against(sent: float, float32: float) -> str:
    """Bytes, and what they would be as float32."""
    return f"{in_bytes(sent)}, as float32 {in_bytes(float32)}"


def _as_metric(progress: "Progress", value: float) -> str:
    return f"{100 * value:g} %" if progress.metric == "accuracy" else f"{value:.3g}"


def shown(progress: "Progress") -> str:
    """The metric as text."""
    if progress.value is None:
        return "-"
    return f"{progress.value:.1%}".replace("%", " %") if progress.metric == "accuracy" else f"{progress.value:.3g}"


def in_bytes(number: float) -> str:
    """Bytes as text."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"
