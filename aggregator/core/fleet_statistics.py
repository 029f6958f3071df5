"""What each device last reported, and robust scales over devices: one device has one vote, however often it sends.

A reference that moves only with accepted updates locks: once every device is refused, it can never follow. A reference
over messages belongs to whoever sends the most of them. So this one is a median over the devices heard recently, of the
latest value of each. Fewer than half of them cannot move it beyond what the others report.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median, median_low
from typing import Any

from midge.aggregator.core.records import UpdateRecord

INTERVALS = 3.0
"""Typical intervals between two updates of a device within which a device counts as heard recently."""
FEWEST = 3
"""Devices from which a median outvotes one liar."""
_MEMORY = 64.0
"""The reference falls to at most this part of what it was of late: a fleet at rest must hear its first news."""
_TURNS = 9
"""Turns of the fleet whose references are remembered, those above zero: their median is what it was of late."""
_SLOWEST = 32.0
"""Times the median staleness over devices that the slowest one counts for at most."""
_OWN = 9
"""Updates of one device that its own medians cover."""
_JOURNEYS = 5
"""Intervals of one device whose shortest tells its journey: in the others it waited for something else too."""
_LONGEST = 366 * 86_400.0
"""Seconds of one training beyond which a device's word counts as these."""
_GAP = 0.3
"""Smoothing of a device's interval between updates: a few updates settle it, one outage does not set it."""


@dataclass(slots=True)
class _Device:
    """The latest of one device. All but the times are durable."""

    norms: deque[float] = field(default_factory=lambda: deque(maxlen=_OWN))
    examples: int = 0
    steps: int = 0
    agreement: float = 0.0
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=_OWN))
    seconds: float = 0.0
    heard_at: float | None = None
    gap: float | None = None
    """Seconds between its updates, smoothed; None before the second."""
    idle: deque[float] = field(default_factory=lambda: deque(maxlen=_JOURNEYS))
    """Seconds of its last intervals in which it did not train."""
    longest: tuple[int, float] = 0, 0.0
    """Steps and seconds of its newest training of the most steps."""
    shortest: tuple[int, float] = 0, 0.0
    """The same of the fewest."""

    def trained(self, steps: int, seconds: float) -> None:
        """Note what a training took."""
        if steps and steps >= self.longest[0]:
            self.longest = steps, seconds
        if steps and steps <= (self.shortest[0] or steps):
            self.shortest = steps, seconds

    @property
    def step_seconds(self) -> float:
        """What one step takes: by the difference of two trainings, once their steps differed."""
        (most, long), (fewest, short) = self.longest, self.shortest
        return max(long - short, 0.0) / (most - fewest) if most > fewest else long / max(most, 1)

    @property
    def start_up(self) -> float:
        """What a training takes beside its steps."""
        return max(self.shortest[1] - self.shortest[0] * self.step_seconds, 0.0)


class FleetStatistics:
    """Follow the devices of one federation.

    What the journal can rebuild enters by `take`; times enter by `heard`, which a restart begins again.
    """

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._references: deque[tuple[int, float]] = deque(maxlen=_TURNS)
        """References above zero with the turns in which they were computed."""
        self.taken = 0
        """Updates taken in."""
        self.turn = 0
        """How often half of all devices have been heard since the last time: one that floods does not turn it."""
        self._heard: set[str] = set()
        """Devices heard in this turn."""
        self._computed: dict[str, tuple[int, float]] = {}
        """Medians by name, each with `taken` when it was computed: computing one takes a pass over all devices."""

    def __len__(self) -> int:
        return len(self._devices)

    def heard(self, device: str, seconds: float, now: float, *, age: float = math.inf, steps: int = 0) -> None:
        """Note when a device's update arrived, how old its base was, and what its training took by its own account."""
        known, seconds = self._devices.setdefault(device, _Device()), min(seconds, _LONGEST)
        known.trained(steps, seconds)
        since = age
        if known.heard_at is not None:
            gap = max(now - known.heard_at, 0.0)
            since = min(since, gap)
            # Updates that waited for the aggregator or a link come at once: a training is no shorter for that.
            gap = max(gap, seconds)
            known.gap = gap if known.gap is None else known.gap + _GAP * (gap - known.gap)
        if since < math.inf:
            known.idle.append(max(since - seconds, 0.0))
        known.heard_at, known.seconds = now, seconds

    def take(self, record: UpdateRecord) -> None:
        """Take in an accepted update."""
        known = self._devices.setdefault(record.device, _Device())
        known.norms.append(record.norm)
        known.examples, known.steps, known.agreement = record.examples, record.steps, record.agreement
        known.staleness.append(record.staleness)
        if record.reference > 0 and (not self._references or self._references[-1][0] != self.turn):
            self._references.append((self.turn, record.reference))  # replayed: it was computed before a restart
        self.taken += 1
        self._heard.add(record.device)
        if 2 * len(self._heard) > len(self._devices):
            self.turn += 1
            self._heard.clear()

    def forget(self, device: str) -> None:
        """Remove what is known of a device."""
        self._devices.pop(device, None)
        self._computed.clear()

    def interval(self, devices: Iterable[str]) -> float | None:
        """The median seconds between two updates of these devices; None if most of them were not heard twice."""
        known = [self._devices[device].gap for device in devices if device in self._devices]
        gaps = [gap for gap in known if gap is not None]
        return median(gaps) if gaps and 2 * len(gaps) >= len(known) else None

    # ------------------------------------------------------------------ robust scales

    def recent(self, now: float) -> list[str]:
        """Devices heard within the last three typical intervals, at least the three that were heard last.

        A device that was heard before a restart counts as heard until the typical interval is known again.
        """
        gaps = [known.gap for known in self._devices.values() if known.gap is not None]
        # Until half of the devices have been heard twice, the interval is not known, and everything counts as recent.
        if 2 * len(gaps) < len(self._devices) or len(self._devices) <= FEWEST:
            return list(self._devices)
        since = now - INTERVALS * median(gaps)
        found = [
            name for name, known in self._devices.items() if known.heard_at is not None and known.heard_at >= since
        ]
        if len(found) < FEWEST:
            order = sorted(self._devices, key=lambda name: self._devices[name].heard_at or 0.0)
            found = order[-FEWEST:]
        return found

    def norm(self, now: float) -> float:
        """The typical L2 norm of an update: the lower median over devices heard recently; 0 if nothing was heard.

        Of two devices it is the smaller norm. It does not fall below 1/64 of what it was of late.
        """
        if self._due("norm"):
            norms = [known.norms[-1] for name in self.recent(now) if (known := self._devices[name]).norms]
            middle = median_low(norms) if norms else 0.0
            # If most devices have nothing to say, the others must still be heard: zeros say nothing about the scale.
            some = middle or median_low([norm for norm in norms if norm > 0] or [0.0])
            if middle or (some and not self._references):
                if self._references and self._references[-1][0] == self.turn:
                    self._references.pop()
                self._references.append((self.turn, some))
            lately = median_low([norm for _, norm in self._references] or [0.0])
            self._computed["norm"] = self.taken, max(middle, lately / _MEMORY)
        return self._computed["norm"][1]

    def typical(self, device: str) -> float:
        """The median L2 norm of a device's own last updates; 0 before its first."""
        known = self._devices.get(device)
        return median(known.norms) if known is not None and known.norms else 0.0

    def norms(self, device: str) -> tuple[float, ...]:
        """The L2 norms of a device's own last updates, the newest last."""
        known = self._devices.get(device)
        return () if known is None else tuple(known.norms)

    def staleness(self, device: str) -> float | None:
        """The median staleness of a device's own updates, in steps; None before its first."""
        known = self._devices.get(device)
        return median(known.staleness) if known is not None and known.staleness else None

    def longest_staleness(self) -> int:
        """The staleness, in steps, of the updates of the slowest device: in as many, every device has a part.

        At most 32 times the median over devices: what one says of its base must not stretch it without a bound.
        """
        if self._due("longest"):
            usual = sorted(median(known.staleness) for known in self._devices.values() if known.staleness)
            self._computed["longest"] = self.taken, min(usual[-1], _SLOWEST * max(median(usual), 1.0)) if usual else 0.0
        return round(self._computed["longest"][1])

    def agreement(self) -> float:
        """How far the deltas of devices usually are along or against the direction of most: the median |cosine|."""
        if self._due("agreement"):
            sizes = [abs(known.agreement) for known in self._devices.values() if known.agreement]
            self._computed["agreement"] = self.taken, float(median_low(sizes)) if sizes else 0.0
        return self._computed["agreement"][1]

    def examples(self) -> float:
        """The median number of rows that devices report, of those that report any; 0 if none does."""
        return self._middle("examples")

    def steps(self) -> float:
        """The median number of local steps that devices report, of those that report any; 0 if none does."""
        return self._middle("steps")

    def seconds(self) -> float:
        """The median time of a training as devices report it, of those that report any; 0 if none does."""
        return self._middle("seconds")

    def step_seconds(self) -> float:
        """The seconds of one local step, the median over devices; 0 if none tells, or if steps cost nothing."""
        if self._due("step"):
            costs = [each.step_seconds for each in self._devices.values() if each.longest[0]]
            self._computed["step"] = self.taken, median(costs) if costs else 0.0
        return self._computed["step"][1]

    def journey(self) -> float | None:
        """The seconds that a training costs a device beside its steps, the median over devices.

        Of each device, the shortest of the last times in which it did not train, before an update and since its base
        was released or its last update came; and what its trainings cost besides. None if nothing was heard.
        """
        if self._due("journey"):
            known = [min(each.idle) + each.start_up for each in self._devices.values() if each.idle]
            self._computed["journey"] = self.taken, median(known) if known else math.inf
        found = self._computed["journey"][1]
        return None if found == math.inf else found

    def _middle(self, name: str) -> float:
        if self._due(name):
            reported = [value for known in self._devices.values() if (value := getattr(known, name)) > 0]
            self._computed[name] = self.taken, float(median_low(reported)) if reported else 0.0
        return self._computed[name][1]

    def _due(self, name: str) -> bool:
        """Whether a sixteenth of the devices has reported since a median was computed."""
        return name not in self._computed or self.taken - self._computed[name][0] > len(self._devices) // 16

    # ---------------------------------------------------------------------- checkpoints

    def dump(self) -> list[Any]:
        """Return what `load` takes."""
        return [
            [name, list(known.norms), known.examples, known.steps, known.agreement, list(known.staleness)]
            for name, known in self._devices.items()
        ]

    def load(self, state: Iterable[Any]) -> None:
        """Take up what `dump` returned."""
        self._devices = {
            name: _Device(deque(norms, _OWN), examples, steps, agreement, deque(staleness, _OWN))
            for name, norms, examples, steps, agreement, staleness in state
        }
        self._computed.clear()
