"""A hall of rotating machines, each with a vibration sensor: they begin healthy, and some bearings wear out."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from midge.sensor_fleet.dataset import Rows
from midge.sensor_fleet.sensors.bearing import BEARINGS, FAULTS, Fault, Machine, Signals, acceleration
from midge.sensor_fleet.sensors.chance import Floats, Places, draw, key, normal, uniform
from midge.sensor_fleet.sensors.flaws import DAY, Drift, Flaws
from midge.sensor_fleet.sensors.flow import Inputs, Targets
from midge.sensor_fleet.sensors.spectra import FEATURES
from midge.sensor_fleet.sensors.spectra import features as features_of
from midge.sensor_fleet.sensors.stream import Stream, streamed

VISIBLE: Final = 0.25
"""The severity from which on an inspection finds the fault, and labels say so."""
FAULTY: Final = 0.4
"""Share of the machines that have a fault some day."""
SHARES: Final = (0.5, 0.3, 0.2)
"""Of outer race, inner race and ball in these."""
ONSET: Final = (-4 * DAY, 6 * DAY)
"""Seconds from the start between which faults begin."""
GROWTH: Final = 3 * DAY
"""Seconds from there to severity 1, where it stays."""
BENCH: Final = 30
"""Machines of the test, none of them the fleet's."""
EACH: Final = 4
"""Windows of each class that each of them has."""
_SPEED, _STIFFNESS = 0.8, 0.85
"""What maintenance makes of speed and resonance: a new drive, a sensor that is mounted again."""


@dataclass(frozen=True, slots=True)
class BearingLife:
    """What becomes of a machine."""

    fault: Fault | None
    onset: float

    def severity(self, times: Floats) -> Floats:
        """From 0 to 1, by time."""
        if self.fault is None:
            return np.zeros(len(times))
        found: Floats = np.clip((times - self.onset) / GROWTH, 0.0, 1.0)
        return found


class Machines:
    """All machines, by number; those of the test have negative ones. Devices compute what `spectra.features` says."""

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
        """How a machine is built, before or behind its maintenance."""
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
        """What becomes of it."""
        of = self._seed, number
        if draw(*of, "faulty") >= self._faulty:
            return BearingLife(None, 0.0)
        kind = int(np.searchsorted(np.cumsum(SHARES), draw(*of, "fault"), side="right"))
        first, last = ONSET
        return BearingLife(FAULTS[min(kind, len(SHARES) - 1)], first + (last - first) * draw(*of, "onset"))

    def signal(
        self, number: int, slots: Places, *, changed: bool = False, fault: Fault | None, severity: Floats
    ) -> Signals:
        """What the sensor of a machine measures in slots in a row, of shape (n, SAMPLES), in m/s²."""
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
        """What the device computes: it knows the speed on the machine's plate, and not that it was changed."""
        return features_of(signals, self.machine(number).speed)

    def bench(self, now: float) -> Rows:
        """As many windows of each class, of machines that are not the fleet's, at severities from VISIBLE to 1."""
        numbers = range(-1, -1 - BENCH, -1)
        drift = self._drift
        changed = tuple(drift is not None and now >= drift.of((self._seed, number)) for number in numbers)
        if self._bench is None or self._bench[0] != changed:
            x = np.concatenate([self._benched(number, after) for number, after in zip(numbers, changed, strict=True)])
            y = np.tile(np.repeat(np.arange(len(self.names)), EACH), BENCH)
            self._bench = changed, Rows(x, y)
        return self._bench[1]

    def _benched(self, number: int, changed: bool) -> Inputs:
        """The windows of one machine of the test, class by class."""
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

    Each machine has a bearing, speed, resonance and sensor of its own, and one fault at most, which grows.

    Args:
        devices: machines, each with its sensor.
        seed: of all chance.
        interval: seconds between two windows of 0.32 s.
        history: seconds that the sensors have been there before the start.
        window: rows that a device holds, the newest.
        fresh: rows that must be new before it trains again.
        faulty: share of the machines that have a fault some day; fewer make it rarer.
        flaws: what is wrong with the data; the usual where it is None.
        drift: maintenance at that time: machines turn a fifth slower than their plate says, and ring otherwise.

    Raises:
        ValueError: numbers that cannot be.
    """
    if not 0 <= faulty <= 1:
        raise ValueError(f"faulty={faulty:g} is no share: give 0 to 1.")
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
