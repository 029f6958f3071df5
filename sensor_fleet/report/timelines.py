"""The life of each device as a sequence of states, from its events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from midge.sensor_fleet.report.run import DeviceEvent, Run

State = Literal["training", "sending", "waiting", "away", "gone"]
STATES: Final[tuple[State, ...]] = ("training", "sending", "waiting", "away", "gone")
ENDS: Final = {"killed": "killed", "vanished": "vanished", "left": "left"}
"""Events after which a device is gone, and their names in the report."""


@dataclass(frozen=True, slots=True)
class Span:
    """A state from `start` to `end`, in seconds since the run's start."""

    state: State
    start: float
    end: float


@dataclass(slots=True)
class Timeline:
    """One device's spans, ascending and contiguous from its first event, and when and how it ended."""

    device: str
    spans: list[Span] = field(default_factory=list)
    ends: list[tuple[float, str]] = field(default_factory=list)

    def share(self, state: State) -> float:
        """The share of a state in its whole life."""
        whole = sum(span.end - span.start for span in self.spans)
        return sum(span.end - span.start for span in self.spans if span.state == state) / whole if whole else 0.0


@dataclass(slots=True)
class _Watch:
    """The state of a device while its events are read."""

    life: Timeline
    since: float | None = None
    connected: bool = False
    training: bool = False
    gone: bool = False
    unsettled: int = 0

    @property
    def state(self) -> State:
        if self.gone:
            return "gone"
        if self.training:
            return "training"
        if not self.connected:
            return "away"
        return "sending" if self.unsettled else "waiting"

    def until(self, time: float, state: State | None = None) -> None:
        """Close the current span."""
        if self.since is not None and time > self.since:
            state = state or self.state
            spans = self.life.spans
            if spans and spans[-1].state == state:
                spans[-1] = Span(state, spans[-1].start, time)
            else:
                spans.append(Span(state, self.since, time))
        self.since = time

    def take(self, event: str, time: float) -> None:
        if event == "connected" and (self.gone or (self.connected and self.since is not None)):
            # It ended without notice and returned: in between it was away, nothing more is known.
            self.until(time, "gone" if self.gone else "away")
            self.training = self.gone = False
        else:
            self.until(time)
        match event:
            case "connected":
                self.connected = True
            case "disconnected":
                self.connected = False
            case "training":
                self.training, self.gone = True, False
            case "trained":
                self.training = False
                self.unsettled += 1
            case "unfit":
                self.training = False
            case "receipt":
                self.unsettled = max(0, self.unsettled - 1)
            case "killed" | "vanished" | "left":
                self.life.ends.append((time, ENDS[event]))
                self.gone, self.training, self.connected = True, False, False
            case _:
                pass


def timelines(run: Run) -> dict[str, Timeline]:
    """The timeline of each device with events, by name, until the run's end."""
    by_device: dict[str, list[DeviceEvent]] = {}
    for event in run.device_events:
        by_device.setdefault(event.device, []).append(event)
    lost = {device: run.since(time) for time, device in run.lost}  # the last entry counts
    end = max(run.since(max(run.times, default=run.began)), 0.0)
    return {name: _life(name, by_device[name], run, lost.get(name), end) for name in sorted(by_device)}


def _life(name: str, events: Sequence[DeviceEvent], run: Run, lost: float | None, end: float) -> Timeline:
    watch = _Watch(Timeline(name))
    for event in events:
        watch.take(event.event, run.since(event.time))
    if lost is not None and watch.since is not None and lost > watch.since and not watch.gone:
        watch.until(lost)
        watch.connected = watch.training = False
    watch.until(end)
    return watch.life
