"""The typed contents of a run."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from midge.sensor_fleet.progress import HELD, METRICS


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation of the model on the test rows."""

    time: float
    version: int
    value: float
    up: float | None
    """Bytes that all devices had sent by then; None if not recorded."""
    down: float | None


@dataclass(frozen=True, slots=True)
class UpdateVerdict:
    """The aggregator's verdict on an update."""

    time: float
    device: str
    verdict: str
    staleness: int
    weight: float
    size: int


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """An event that a device reported."""

    time: float
    device: str
    event: str
    seconds: float | None
    """Of a training."""


@dataclass(frozen=True, slots=True)
class Traits:
    """A device's properties, known in advance."""

    rows: int
    bytes: int
    """Of its inputs, as stored."""
    seconds: float
    """Minimum duration of a training."""
    engine: str


@dataclass(frozen=True, slots=True)
class DeviceScores:
    """A metric of several devices."""

    values: Mapping[str, float]
    mean: float | None
    deviation: float | None
    of: int
    """Number of devices; `values` may hold fewer."""
    steps: int | None = None
    test_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Central:
    """The model trained on all rows pooled."""

    value: float | None
    steps: int
    rows: int
    of_rows: int
    unfinished: float | None = None
    """Seconds of training without convergence; None if it converged, or if not recorded."""


@dataclass
class Run:
    """All that is recorded of a run. Times are seconds since 1970; `since` counts from the run's start."""

    directory: Path
    about: Mapping[str, Any]
    result: Mapping[str, Any] | None
    baselines: Mapping[str, Any]
    evaluations: list[Evaluation] = field(default_factory=list)
    updates: list[UpdateVerdict] = field(default_factory=list)
    device_events: list[DeviceEvent] = field(default_factory=list)
    lost: list[tuple[float, str]] = field(default_factory=list)
    """When a Last Will told the aggregator that a device was lost."""
    killed: list[tuple[float, float | None, str]] = field(default_factory=list)
    """Outages of the server side: from, until (None: never restarted), and of what."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of other events of the aggregator, by kind: repeat, held, dropped, release …"""
    times: list[float] = field(default_factory=list)
    unreadable: int = 0
    """Number of lines that were skipped."""
    metric: str = "accuracy"

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return self.result is not None

    @cached_property
    def began(self) -> float:
        return finite_number(self.about.get("began")) or min(self.times, default=0.0)

    @cached_property
    def seconds(self) -> float:
        """Duration; of a killed run, until its last event."""
        seconds = finite_number((self.result or {}).get("seconds"))
        return max(0.0, max(self.times, default=self.began) - self.began) if seconds is None else seconds

    def since(self, time: float) -> float:
        return max(0.0, time - self.began)

    @property
    def value(self) -> float | None:
        """The mean of the last evaluations, as the run itself computes it."""
        recorded = finite_number((self.result or {}).get(self.metric))
        last = [evaluation.value for evaluation in self.evaluations[-HELD:]]
        if recorded is not None:
            return recorded
        return statistics.fmean(last) if last and all(map(math.isfinite, last)) else None

    def value_at(self, seconds: float) -> float | None:
        """The mean of the last evaluations up to a time of the run."""
        return _mean_of_last(one for one in self.evaluations if self.since(one.time) <= seconds)

    def moved(self, evaluation: Evaluation) -> float | None:
        """Mean bytes that a device had sent and received at an evaluation; None if not recorded."""
        if evaluation.up is None or evaluation.down is None or not self.size:
            return None
        return (evaluation.up + evaluation.down) / self.size

    def value_within(self, moved: float) -> float | None:
        """The mean of the last evaluations before a device had sent and received more bytes than that."""
        within = ((one, self.moved(one)) for one in self.evaluations)
        return _mean_of_last(one for one, number in within if number is not None and number <= moved)

    @property
    def target(self) -> float | None:
        return finite_number(self.about.get("target"))

    @property
    def seconds_to_target(self) -> float | None:
        return finite_number((self.result or {}).get("seconds_to_target"))

    @property
    def better(self) -> int:
        """1 if higher is better, −1 if lower."""
        return METRICS[self.metric]

    @cached_property
    def devices(self) -> dict[str, Traits]:
        return {name: traits for name, traits in self._traits() if traits is not None}

    def _traits(self) -> Iterator[tuple[str, Traits | None]]:
        for name, plain in mapping(self.about.get("devices")).items():
            try:
                yield (
                    name,
                    Traits(int(plain["rows"]), int(plain["bytes"]), float(plain["seconds"]), str(plain["engine"])),
                )
            except (KeyError, TypeError, ValueError):
                yield name, None

    @cached_property
    def names(self) -> list[str]:
        """All devices, sorted."""
        return sorted(
            {*self.devices, *(event.device for event in self.device_events), *(one.device for one in self.updates)}
        )

    @property
    def accepted(self) -> list[UpdateVerdict]:
        return [update for update in self.updates if update.verdict == "accepted"]

    @property
    def live(self) -> bool:
        """Whether it is a live fleet of a profile."""
        return self.about.get("live") is True

    @property
    def of_profile(self) -> bool:
        """Whether it is a profile's fleet, virtual or live, which does not record single updates and devices."""
        return self.live or self.about.get("virtual") is True

    @cached_property
    def size(self) -> int:
        """Number of devices."""
        number = finite_number(self.about.get("number_of_devices"))
        return len(self.names) if number is None else int(number)

    @cached_property
    def taus(self) -> Counter[int]:
        """Histogram of the staleness of accepted updates, in steps."""
        if not self.of_profile:
            return Counter(update.staleness for update in self.accepted)
        found: Counter[int] = Counter()
        for pairs in mapping((self.result or {}).get("staleness")).values():
            for steps, number in pairs:
                found[int(steps)] += int(number)
        return found

    @property
    def accepted_count(self) -> int:
        """Number of accepted updates."""
        return self.taus.total()

    @property
    def rejected_count(self) -> int:
        """Number of updates that were not accepted."""
        if self.of_profile:
            return sum(int(number) for number in mapping((self.result or {}).get("refused")).values())
        return len(self.updates) - len(self.accepted)

    @cached_property
    def traffic(self) -> tuple[float | None, float | None]:
        """Payload bytes that all devices sent and received; None if not known."""
        result = self.result or {}
        up, down = finite_number(result.get("bytes_up")), finite_number(result.get("bytes_down"))
        if up is not None:
            return up, down
        if self.evaluations and self.evaluations[-1].up is not None:
            return self.evaluations[-1].up, self.evaluations[-1].down
        return (float(sum(update.size for update in self.updates)), None) if self.updates else (None, None)

    @cached_property
    def central(self) -> Central | None:
        plain = mapping(self.baselines.get("central"))
        try:
            return Central(
                finite_number(plain["value"]),
                int(plain["steps"]),
                int(plain["rows"]),
                int(plain["of_rows"]),
                finite_number(plain.get("seconds")) if plain.get("converged") is False else None,
            )
        except (KeyError, TypeError, ValueError):
            return None

    @cached_property
    def alone(self) -> DeviceScores | None:
        return _read_scores(self.baselines.get("alone"))

    @cached_property
    def own(self) -> DeviceScores | None:
        """The fleet's model on each device's own rows."""
        return _read_scores(self.baselines.get("own"))

    @cached_property
    def training_seconds(self) -> dict[str, float]:
        """Median duration of a training on each device: measured, otherwise as configured."""
        measured: dict[str, list[float]] = {}
        for event in self.device_events:
            if event.event == "trained" and event.seconds is not None and event.seconds > 0:
                measured.setdefault(event.device, []).append(event.seconds)
        set_to = {name: traits.seconds for name, traits in self.devices.items() if traits.seconds > 0}
        return set_to | {name: statistics.median(seconds) for name, seconds in measured.items()}


def _mean_of_last(evaluations: Iterable[Evaluation]) -> float | None:
    last = [one.value for one in evaluations][-HELD:]
    return statistics.fmean(last) if last and all(map(math.isfinite, last)) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def finite_number(value: Any) -> float | None:
    """The value if it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _read_scores(value: Any) -> DeviceScores | None:
    plain = mapping(value)
    values = {
        name: number for name, raw in mapping(plain.get("values")).items() if (number := finite_number(raw)) is not None
    }
    if not values:
        return None
    steps, rows, of = (finite_number(plain.get(name)) for name in ("steps", "test_rows", "of"))
    return DeviceScores(
        values,
        finite_number(plain.get("mean")),
        finite_number(plain.get("deviation")),
        len(values) if of is None else int(of),
        None if steps is None else int(steps),
        None if rows is None else int(rows),
    )
