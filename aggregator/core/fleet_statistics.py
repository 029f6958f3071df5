"""The latest values of each device, and robust statistics over devices: one vote for each, however often it sends.

A statistic over messages would be determined by the device that sends most. So these are medians over the recently
heard devices, of the latest value of each: fewer than half of them cannot move it beyond what the others report.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, median_low
from typing import Any

from midge.aggregator.core.records import UpdateRecord

INTERVALS = 3.0
"""Number of typical intervals between updates within which a device counts as recently heard."""
FEWEST = 3
"""Least number of devices whose median a single liar cannot set."""
_KNOWN = 0.4
"""Share of the known devices that must be recent for their norms to count as known: one liar in five devices may be
most of a smaller share."""
_MEMORY = 64.0
"""The reference norm falls at most to this fraction of its recent median: updates near zero from a fleet at rest must
not make the first real change look like an outlier."""
_TURNS = 9
"""Number of turns of the fleet whose median norms, if above zero, make the recent median."""
_SLOWEST = 32.0
"""Multiple of the median staleness over devices that counts at most for the slowest one."""
_OWN = 9
"""Updates of one device that its own medians cover."""
_ROUND_TRIPS = 5
"""Intervals of one device whose shortest measures its round trip: the others include waiting for other reasons."""
_LONGEST = 366 * 86_400.0
"""Most seconds of one training that are believed."""
_UNUSED = 0.0
"""Where a checkpoint of an earlier Midge has the cosine of a device's last delta."""
_GAP = 0.3
"""Smoothing factor of a device's interval between updates: settles within a few updates, and outlasts one outage."""


@dataclass(slots=True)
class _Device:
    """The latest values of one device. All but the times are durable."""

    norms: deque[float] = field(default_factory=lambda: deque(maxlen=_OWN))
    examples: int = 0
    steps: int = 0
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=_OWN))
    base: int | None = None
    """The newest step that it trained from; None if unknown."""
    came: int = 0
    """Number of steps when its last update came."""
    seconds: float = 0.0
    heard_at: float | None = None
    active_at: float | None = None
    """When it was heard, in seconds in which the fleet was active."""
    gap: float | None = None
    """Seconds between its updates, smoothed; None before the second."""
    arrivals: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_ROUND_TRIPS))
    """For each of its last updates: the seconds since the release of its base or its previous update, and those of its
    training as reported."""
    longest: tuple[int, float] = 0, 0.0
    """Steps and seconds of the newest training with the most steps."""
    shortest: tuple[int, float] = 0, 0.0
    """Steps and seconds of the newest training with the fewest steps."""

    def delayed(self, staleness: int, step: int) -> None:
        """Record the staleness of an update that came after this number of steps, unless it waited for its link.

        It waited if a newer one came before it, or if it came soon after one whose base is much older. That is not
        usual for the device, however many updates waited with it.
        """
        base = step - staleness
        waited = self.base is not None and (base <= self.base or 2 * (step - self.came) < base - self.base)
        self.base, self.came = base if self.base is None else max(self.base, base), step
        if not waited:
            self.staleness.append(staleness)

    def trained(self, steps: int, seconds: float) -> None:
        """Record the duration of a training."""
        if steps and steps >= self.longest[0]:
            self.longest = steps, seconds
        if steps and steps <= (self.shortest[0] or steps):
            self.shortest = steps, seconds

    @property
    def step_seconds(self) -> float:
        """Seconds of one step: the slope between two trainings, if their numbers of steps differ."""
        (most, long), (fewest, short) = self.longest, self.shortest
        return max(long - short, 0.0) / (most - fewest) if most > fewest else long / max(most, 1)

    @property
    def idle(self) -> float:
        """Seconds without training in the shortest of its last intervals."""
        return min(max(since - seconds, 0.0) for since, seconds in self.arrivals)

    @property
    def start_up(self) -> float:
        """Seconds of a training beside its steps."""
        return max(self.shortest[1] - self.shortest[0] * self.step_seconds, 0.0)


class FleetStatistics:
    """Statistics of the devices of one federation.

    `take` records what the journal can rebuild; `heard` records times, which are lost with the process.
    """

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._references: deque[tuple[int, float]] = deque(maxlen=_TURNS)
        """The number of devices with a norm at the end of each turn, and the median over them, if that was above zero.
        It follows from the journal alone: a restart must not change the least reference."""
        self.taken = 0
        """Number of accepted updates."""
        self.turn = 0
        """Counts how often more than half of all devices were heard: a device that floods cannot advance it."""
        self._heard: set[str] = set()
        """Devices heard in this turn."""
        self._computed: dict[str, tuple[int, float]] = {}
        """Cached medians by name, each with `taken` at that time: computing one visits all devices."""
        self._active, self._last = 0.0, -math.inf
        """Seconds in which the fleet was active, and when the last device was heard."""
        self._interval = math.inf
        """The typical interval between updates of a device; infinite if unknown."""
        self.norms_known = False
        """Whether the reference norm is that of enough of the known devices."""

    @property
    def names(self) -> list[str]:
        """The devices that are known."""
        return list(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    def heard(self, device: str, seconds: float, now: float, *, age: float = math.inf, steps: int = 0) -> None:
        """Record an arrival: the age of the update's base, and the steps and seconds of training as reported."""
        known, seconds = self._devices.setdefault(device, _Device()), min(seconds, _LONGEST)
        known.trained(steps, seconds)
        self._active, self._last = self._active_at(now), now
        since = age
        if known.heard_at is not None:
            gap = max(now - known.heard_at, 0.0)
            since = min(since, gap)
            # Updates that waited for the aggregator or a link arrive together; the interval is at least a training.
            gap = max(gap, seconds)
            known.gap = gap if known.gap is None else known.gap + _GAP * (gap - known.gap)
        if since < math.inf:
            known.arrivals.append((since, seconds))
        known.heard_at, known.active_at, known.seconds = now, self._active, seconds

    def _active_at(self, now: float) -> float:
        """The seconds in which the fleet was active until now.

        A silence of all devices, such as a pause or an outage of the aggregator, counts as one typical interval:
        otherwise the first devices after it would be the only recent ones, and most of them may lie.
        """
        return self._active + min(max(now - self._last, 0.0), self._interval) if self._last > -math.inf else 0.0

    def take(self, record: UpdateRecord, step: int) -> None:
        """Record an accepted update, which came after this number of steps."""
        known = self._devices.setdefault(record.device, _Device())
        known.norms.append(record.norm)
        known.examples, known.steps = record.examples, record.steps
        known.delayed(record.staleness, step)
        self.taken += 1
        self._heard.add(record.device)
        if 2 * len(self._heard) > len(self._devices):
            self.turn += 1
            self._heard.clear()
            norms = [known.norms[-1] for known in self._devices.values() if known.norms]
            if middle := median_low(norms):
                self._references.append((len(norms), middle))

    def forget(self, device: str) -> None:
        """Remove everything about a device."""
        self._devices.pop(device, None)
        self._heard.discard(device)
        self._computed.clear()

    def interval(self, devices: Iterable[str]) -> float | None:
        """The median interval between updates of these devices, in seconds; None if most were not heard twice."""
        known = [self._devices[device].gap for device in devices if device in self._devices]
        gaps = [gap for gap in known if gap is not None]
        return median(gaps) if gaps and 2 * len(gaps) >= len(known) else None

    # -------------------------------------------------------------- medians over devices

    def recent(self, now: float) -> list[str]:
        """Devices heard within the last three typical intervals of an active fleet, and at least the last three.

        After a restart all known devices count, until the typical interval has been measured again.
        """
        gaps = [known.gap for known in self._devices.values() if known.gap is not None]
        # The interval is unknown until half of the devices have been heard twice.
        if 2 * len(gaps) < len(self._devices) or len(self._devices) <= FEWEST:
            return list(self._devices)
        self._interval = median(gaps)
        since = self._active_at(now) - INTERVALS * self._interval
        active = {name: known.active_at for name, known in self._devices.items() if known.active_at is not None}
        found = [name for name, at in active.items() if at >= since]
        if len(found) < FEWEST:
            found = sorted(self._devices, key=lambda name: active.get(name, 0.0))[-FEWEST:]
        return found

    def norm(self, now: float) -> float:
        """The reference norm, the typical L2 norm of an update: the lower median over recent devices; 0 without any.

        With two devices it is the smaller norm. It does not fall below 1/64 of its recent median.
        """
        if self._due("norm"):
            norms = [known.norms[-1] for name in self.recent(now) if (known := self._devices[name]).norms]
            self.norms_known = len(norms) >= _KNOWN * len(self._devices)
            middle = median_low(norms) if norms else 0.0
            self._computed["norm"] = self.taken, max(middle, self._usual(norms) / _MEMORY)
        return self._computed["norm"][1]

    @property
    def newest_norm(self) -> float:
        """The reference norm as it was last computed; 0 before that."""
        return self._computed.get("norm", (0, 0.0))[1]

    def _usual(self, norms: Sequence[float]) -> float:
        """The median norm over the last turns, or that of these norms, each without zeros, which have no scale."""
        # The first devices may be attackers: a median over one, or over fewer than half as many devices as now, is not
        # that of this fleet.
        found = [norm for devices, norm in self._references if devices > 1 and 2 * devices >= len(self._devices)]
        return median_low(found or [norm for norm in norms if norm > 0] or [0.0])

    def excess(self, device: str, now: float) -> float:
        """The median L2 norm of a device's own last updates, in multiples of the reference norm; 0 if unknown."""
        known, reference = self._devices.get(device), self.norm(now)
        return median(known.norms) / reference if known is not None and known.norms and reference > 0 else 0.0

    def norms(self, device: str) -> tuple[float, ...]:
        """The L2 norms of a device's own last updates, the newest last."""
        known = self._devices.get(device)
        return () if known is None else tuple(known.norms)

    def staleness(self, device: str) -> float | None:
        """The median staleness of a device's own updates, in steps; None before its first."""
        known = self._devices.get(device)
        return median(known.staleness) if known is not None and known.staleness else None

    def longest_staleness(self) -> int:
        """The median staleness of the slowest device, in steps: within that many, every device contributes.

        At most 32 times the median over devices, because a device could choose old bases.
        """
        if self._due("longest"):
            usual = sorted(median(known.staleness) for known in self._devices.values() if known.staleness)
            self._computed["longest"] = self.taken, min(usual[-1], _SLOWEST * max(median(usual), 1.0)) if usual else 0.0
        return round(self._computed["longest"][1])

    def examples(self) -> float:
        """The median number of rows over devices that report one; 0 if none does."""
        return self._middle("examples")

    def steps(self) -> float:
        """The median number of local steps over devices that report one; 0 if none does."""
        return self._middle("steps")

    def seconds(self) -> float:
        """The median seconds of a training over devices that report them; 0 if none does."""
        return self._middle("seconds")

    def step_seconds(self) -> float:
        """The median seconds of one local step over devices; 0 if none reports steps, or if they take no time."""
        if self._due("step"):
            costs = [each.step_seconds for each in self._devices.values() if each.longest[0]]
            self._computed["step"] = self.taken, median(costs) if costs else 0.0
        return self._computed["step"][1]

    def round_trip(self) -> float | None:
        """The median round trip over devices: the seconds that a training costs beside its steps; None if unknown.

        For each device: the shortest recent time without training, before an update and after the release of its base
        or its previous update; plus the start-up time of its trainings.
        """
        if self._due("round_trip"):
            known = [each.idle + each.start_up for each in self._devices.values() if each.arrivals]
            self._computed["round_trip"] = self.taken, median(known) if known else math.inf
        found = self._computed["round_trip"][1]
        return None if found == math.inf else found

    def usual_training(self) -> float | None:
        """Seconds from a version to the update of a usual device: its training and a round trip; None if unknown."""
        return None if not (seconds := self.seconds()) else seconds + (self.round_trip() or 0.0)

    def slow_answer(self) -> float | None:
        """Seconds from a version to the update of a slow device; None if unknown.

        The upper quartile over devices of the shortest recent time of each. It is measured here: the clock of a device
        may be wrong, and an attacker could claim any time.
        """
        if self._due("slow_answer"):
            taken = sorted(min(each.arrivals)[0] for each in self._devices.values() if each.arrivals)
            self._computed["slow_answer"] = self.taken, taken[3 * (len(taken) - 1) // 4] if taken else math.inf
        found = self._computed["slow_answer"][1]
        return None if found == math.inf else found

    def _middle(self, name: str) -> float:
        if self._due(name):
            reported = [value for known in self._devices.values() if (value := getattr(known, name)) > 0]
            self._computed[name] = self.taken, float(median_low(reported)) if reported else 0.0
        return self._computed[name][1]

    def _due(self, name: str) -> bool:
        """Whether a median must be computed: after as many updates as a sixteenth of the devices."""
        return name not in self._computed or self.taken - self._computed[name][0] > len(self._devices) // 16

    # ---------------------------------------------------------------------- checkpoints

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        return [
            [
                *(name, list(known.norms), known.examples, known.steps, _UNUSED),
                *(list(known.staleness), known.base, known.came),
            ]
            for name, known in self._devices.items()
        ]

    def dump_turn(self) -> list[Any]:
        """Plain values for `load`: the medians of the last turns, and the devices heard in this one."""
        return [list(map(list, self._references)), sorted(self._heard)]

    def load(self, state: Iterable[Any], turn: Sequence[Any] = ((), ())) -> None:
        """Restore from the results of `dump` and `dump_turn`."""
        self._devices = {
            name: _Device(deque(norms, _OWN), examples, steps, deque(staleness, _OWN), *bases)
            for name, norms, examples, steps, _, staleness, *bases in state
        }
        self._references, self._heard = deque(map(tuple, turn[0]), _TURNS), set(turn[1])
        self._computed.clear()
