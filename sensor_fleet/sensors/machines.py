"""Vibration sensors on rotating machines, whose bearings are healthy at first and partly wear out."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.bearing import BEARINGS, FAULTS, Fault, Machine, Signals, acceleration
from midge.sensor_fleet.sensors.counter_rng import Floats, Places, draw, key, normal, uniform
from midge.sensor_fleet.sensors.data_faults import Drift, Flaws
from midge.sensor_fleet.sensors.flow import Inputs, Targets
from midge.sensor_fleet.sensors.spectra import FEATURES
from midge.sensor_fleet.sensors.spectra import features as features_of
from midge.sensor_fleet.sensors.stream import Stream, streamed
from midge.wire.clocks import DAY

VISIBLE: Final = 0.25
"""Severity from which an inspection detects the fault, and labels show it."""
FAULTY: Final = 0.4
"""Share of the machines that develop a fault."""
SHARES: Final = (0.5, 0.3, 0.2)
"""Shares of outer race, inner race and ball among the faults."""
ONSET: Final = (-4 * DAY, 6 * DAY)
"""Range of the onsets of faults, in seconds from the start."""
GROWTH: Final = 3 * DAY
"""Seconds from onset to severity 1, where it stays."""
BENCH: Final = 30
"""Number of test machines, which are not in the fleet."""
EACH: Final = 4
"""Windows of each class for each of them."""
_SPEED, _STIFFNESS = 0.8, 0.85
"""Factors of speed and resonance after maintenance: a new drive, a remounted sensor."""


@dataclass(frozen=True, slots=True)
class BearingLife:
    """The wear of a machine's bearing."""

    fault: Fault | None
    onset: float

    def severity(self, times: Floats) -> Floats:
        """Severity from 0 to 1 at each time, of shape (n,)."""
        if self.fault is None:
            return np.zeros(len(times))
        found: Floats = np.clip((times - self.onset) / GROWTH, 0.0, 1.0)
        return found


class Machines:
    """All machines, by number; test machines have negative numbers. Devices compute `spectra.features`."""

    features = FEATURES
    label = "condition"
    names = ("healthy", *FAULTS)
    at_once = 8  # more do not fit into a processor's cache

    def __init__(self, seed: int, interval: float, history: float, faulty: float, drift: Drift | None) -> None:
        self._seed, self._interval, self._history = seed, interval, history
        self._faulty, self._drift = faulty, drift
        self._windows: dict[tuple[int, bool], Inputs] = {}
        self._bench: tuple[tuple[bool, ...], Rows] | None = None

    def machine(self, number: int, *, changed: bool = False) -> Machine:
        """A machine's parameters, before or after maintenance."""
        of = self._seed, number
        wide = [NormalDist().inv_cdf(draw(*of, word) or 0.5) for word in ("gain", "imbalance", "mounting")]
        speed, resonance = 22 + 10 * draw(*of, "speed"), 2200 + 2300 * draw(*of, "resonance")
        gain = math.exp(0.4 * wide[0])
        if changed:
            speed, resonance, gain = speed * _SPEED, resonance * _STIFFNESS, gain * math.exp(0.3 * wide[2])
        return Machine(
            BEARINGS[int(draw(*of, "bearing") * len(BEARINGS))],
            speed,
            resonance,
            0.02 + 0.03 * draw(*of, "damping"),
            gain,
            math.exp(0.3 * wide[1]),
        )

    def life(self, number: int) -> BearingLife:
        """The wear of a machine's bearing."""
        of = self._seed, number
        if draw(*of, "faulty") >= self._faulty:
            return BearingLife(None, 0.0)
        kind = int(np.searchsorted(np.cumsum(SHARES), draw(*of, "fault"), side="right"))
        first, last = ONSET
        return BearingLife(FAULTS[min(kind, len(SHARES) - 1)], first + (last - first) * draw(*of, "onset"))

    def signal(
        self, number: int, slots: Places, *, changed: bool = False, fault: Fault | None, severity: Floats
    ) -> Signals:
        """The sensor's signal in consecutive slots, of shape (n, SAMPLES), in m/s²."""
        of = self._seed, number
        machine = self.machine(number, changed=changed)
        speeds = machine.speed * (1 + 0.01 * normal(key(*of, "turning"), slots))
        loads = np.exp(0.2 * normal(key(*of, "load"), slots))
        rng = np.random.default_rng(key(*of, int(slots[0])))
        return acceleration(machine, rng, speeds=speeds, loads=loads, severity=severity, fault=fault)

    def block(self, device: int, slots: Places) -> tuple[Inputs, Targets]:
        times = slots.astype(np.float64) * self._interval - self._history
        life = self.life(device)
        severity = life.severity(times)
        changed = times >= (np.inf if self._drift is None else self._drift.of((self._seed, device)))
        x = np.empty((len(slots), len(self.features)), np.float32)
        for after in np.unique(changed):
            signals = self.signal(device, slots, changed=bool(after), fault=life.fault, severity=severity)
            x[changed == after] = self._seen(device, signals)[changed == after]
        kind = 0 if life.fault is None else self.names.index(life.fault)
        return x, np.where(severity >= VISIBLE, kind, 0).astype(np.int64)

    def _seen(self, number: int, signals: Signals) -> Inputs:
        """Features computed by the device, which knows the nameplate speed but not its change."""
        return features_of(signals, self.machine(number).speed)

    def bench(self, now: float) -> Rows:
        """Equal numbers of windows of each class, of machines outside the fleet, at severities from VISIBLE to 1."""
        numbers = range(-1, -1 - BENCH, -1)
        drift = self._drift
        changed = tuple(drift is not None and now >= drift.of((self._seed, number)) for number in numbers)
        if self._bench is None or self._bench[0] != changed:
            x = np.concatenate([self._benched(number, after) for number, after in zip(numbers, changed, strict=True)])
            y = np.tile(np.repeat(np.arange(len(self.names)), EACH), BENCH)
            self._bench = changed, Rows(x, y)
        return self._bench[1]

    def _benched(self, number: int, changed: bool) -> Inputs:
        """The windows of one test machine, class by class."""
        if (number, changed) not in self._windows:
            parts = []
            for kind in range(len(self.names)):
                slots = np.arange(kind * EACH, (kind + 1) * EACH)
                severity = VISIBLE + (1 - VISIBLE) * uniform(key(self._seed, number, "severity"), slots)
                fault = FAULTS[kind - 1] if kind else None
                parts.append(self.signal(number, slots, changed=changed, fault=fault, severity=severity))
            self._windows[number, changed] = self._seen(number, np.concatenate(parts))
        return self._windows[number, changed]


def vibration(
    devices: int = 100,
    *,
    seed: int = 0,
    interval: float = 1800.0,
    history: float = 2 * DAY,
    window: int = 96,
    fresh: int = 8,
    faulty: float = FAULTY,
    flaws: Flaws | None = None,
    drift: Drift | None = None,
) -> Stream:
    """Bearings of rotating machines: healthy, or with a fault in the outer race, the inner race or a ball.

    Each machine has its own bearing, speed, resonance and sensor, and at most one fault, which grows.

    Args:
        devices: machines, each with its sensor.
        seed: of all randomness.
        interval: seconds between two windows of 0.32 s.
        history: seconds of measurements before the start.
        window: rows that a device holds, the newest.
        fresh: rows that must be new before it trains again.
        faulty: share of the machines that develop a fault.
        flaws: faults of the data; the usual ones by default.
        drift: maintenance at that time: machines turn a fifth slower than their nameplate speed, and resonate
            differently.

    Raises:
        ValueError: numbers out of range.
    """
    if not 0 <= faulty <= 1:
        raise ValueError(f"faulty={faulty:g} is not a share: give 0 to 1.")
    return streamed(
        Machines(seed, interval, history, faulty, drift),
        devices=devices,
        seed=seed,
        interval=interval,
        history=history,
        window=window,
        fresh=fresh,
        flaws=Flaws() if flaws is None else flaws,
        drift=drift,
    )
