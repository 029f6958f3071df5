"""Acceleration of a machine's housing: shaft, noise, and impacts of a fault in a rolling-element bearing.

Frequencies, random slip, modulation by load zone and cage, and the squared envelope follow R. B. Randall and J. Antoni,
"Rolling element bearing diagnostics: a tutorial", Mechanical Systems and Signal Processing 25 (2011) 485-520. The load
distribution is Stribeck's, as in T. A. Harris, "Rolling Bearing Analysis".
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

RATE: Final = 12_800
"""Samples per second."""
SAMPLES: Final = 4096
"""Samples of a window: 0.32 s, some eight turns of the shaft."""
SECONDS: Final = SAMPLES / RATE
SLIP: Final = 0.012
"""Relative σ of the time between two impacts: rolling elements slip by 1 to 2 %."""
ZONE: Final = 0.35
"""Stribeck's load factor ε, the loaded share of the ring; 0.5 is half of it."""
EXPONENT: Final = 1.5
"""Exponent of the load in terms of a ball's deflection."""
HARMONICS: Final = ((1, 0.8), (2, 0.35), (7, 0.25))
"""Harmonics of the shaft and of a seven-blade wheel: orders, and amplitudes in standard deviations of the noise."""

Floats = npt.NDArray[np.float64]
Signals = npt.NDArray[np.float32]
Fault = Literal["outer race", "inner race", "ball"]
FAULTS: Final[tuple[Fault, ...]] = ("outer race", "inner race", "ball")


@dataclass(frozen=True, slots=True)
class Bearing:
    """A bearing's geometry. Frequencies are orders, multiples of the shaft speed, with the outer ring at rest."""

    name: str
    elements: int
    """Number of balls or rollers."""
    ratio: float
    """Diameter of an element relative to the pitch diameter."""
    contact: float = 0.0
    """Contact angle, radians."""

    @property
    def _slope(self) -> float:
        return self.ratio * math.cos(self.contact)

    @property
    def cage(self) -> float:
        """FTF, the fundamental train frequency: ½·(1 − (d/D)·cos φ)."""
        return (1 - self._slope) / 2

    @property
    def outer(self) -> float:
        """BPFO, the ball pass frequency of the outer race: (n/2)·(1 − (d/D)·cos φ)."""
        return self.elements * (1 - self._slope) / 2

    @property
    def inner(self) -> float:
        """BPFI, the ball pass frequency of the inner race: (n/2)·(1 + (d/D)·cos φ)."""
        return self.elements * (1 + self._slope) / 2

    @property
    def spin(self) -> float:
        """BSF, the ball spin frequency: (D/2d)·(1 − ((d/D)·cos φ)²)."""
        return (1 - self._slope**2) / (2 * self.ratio)

    def order(self, fault: Fault) -> float:
        """Impacts per turn of the shaft. A spot on a ball strikes both races in each of its turns."""
        return {"outer race": self.outer, "inner race": self.inner, "ball": 2 * self.spin}[fault]


BEARINGS: Final = (
    Bearing("6205", 9, 7.94 / 39.04),
    Bearing("6203", 8, 6.746 / 28.50),
    Bearing("ZA-2115", 16, 8.4 / 71.5, math.radians(15.17)),
    Bearing("7 balls", 7, 0.28),
    Bearing("8 balls", 8, 0.29),
    Bearing("10 balls", 10, 0.21),
    Bearing("11 balls", 11, 0.19),
    Bearing("12 rollers", 12, 0.18),
    Bearing("13 rollers", 13, 0.16),
    Bearing("14 rollers", 14, 0.14),
)
"""The first two are in the Bearing Data Center of Case Western Reserve University, the third in the run-to-failure
tests of the University of Cincinnati's Center for Intelligent Maintenance Systems; the others are round numbers of that
kind. One's BPFO is about another's BPFI, so that a spectral line alone does not identify the fault."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Parameters of a machine's vibration."""

    bearing: Bearing
    speed: float
    """Turns of the shaft per second."""
    resonance: float
    """Resonance of the structure that an impact excites, Hz."""
    damping: float
    """Damping of the resonance, relative to critical."""
    gain: float
    """m/s² per standard deviation of the noise, set by the sensor's mounting."""
    shaft: float
    """Relative imbalance; 1 is usual."""


def acceleration(
    machine: Machine,
    rng: np.random.Generator,
    *,
    speeds: Floats,
    loads: Floats,
    severity: Floats,
    fault: Fault | None = None,
) -> Signals:
    """Windows of shape (n, SAMPLES) in m/s².

    Args:
        machine: which one.
        rng: source of randomness.
        speeds: turns per second, of shape (n,).
        loads: relative loads, of shape (n,); 1 is usual, higher is louder.
        severity: of shape (n,): strength of impacts; at 1 they ring with STRENGTH standard deviations of the noise.
        fault: of its bearing.
    """
    speed, load = speeds[:, None], loads[:, None]
    count = len(speed)
    signal = rng.standard_normal((count, SAMPLES), np.float32)
    signal += _shaft(machine.shaft * load, speed, rng)
    if fault is not None and severity.any():
        struck = _impacts(machine, fault, severity[:, None] * load, speed, rng)
        spectrum = np.fft.rfft(struck, axis=1) * _ringing(machine.resonance, machine.damping)
        signal += np.fft.irfft(spectrum, SAMPLES, axis=1)
    signal *= (machine.gain * np.sqrt(load)).astype(np.float32)
    return signal


STRENGTH: Final = 12.0
"""Initial amplitude of the ringing after an impact of severity 1, in standard deviations of the noise."""
_FINE: Final = 64


def _shaft(size: Floats, speed: Floats, rng: np.random.Generator) -> Signals:
    """Harmonics of the shaft, of shape (n, SAMPLES): sin(a + b) as sin·cos + cos·sin of coarse and fine times."""
    orders, strengths = np.array([each for each, _ in HARMONICS]), np.array([strength for _, strength in HARMONICS])
    step = 2 * np.pi * orders * speed[:, :1, None] / RATE  # radians per sample, of shape (n, 1, harmonics)
    coarse = step * np.arange(0, SAMPLES, _FINE)[:, None] + rng.uniform(0, 2 * np.pi, (len(speed), 1, len(orders)))
    fine, high = step * np.arange(_FINE)[:, None], strengths * size[:, :, None]
    left = np.concatenate([high * np.sin(coarse), high * np.cos(coarse)], axis=2).astype(np.float32)
    right = np.concatenate([np.cos(fine), np.sin(fine)], axis=2).astype(np.float32)
    found: Signals = np.matmul(left, right.transpose(0, 2, 1)).reshape(len(speed), SAMPLES)
    return found


def _impacts(machine: Machine, fault: Fault, hard: Floats, speed: Floats, rng: np.random.Generator) -> Signals:
    """Each impact at its time, of shape (n, SAMPLES): interpolated between two samples."""
    order = machine.bearing.order(fault)
    most = math.ceil(1.1 * SECONDS * order * float(speed.max())) + 4
    period = 1 / (order * speed)
    slips = 1 + SLIP * rng.standard_normal((len(speed), most))
    times = np.cumsum(period * slips, axis=1) - period * rng.uniform(0, 1, speed.shape)
    turn = rng.uniform(0, 1, speed.shape)
    match fault:
        case "outer race":  # fixed in the load zone; only the shaft's imbalance modulates it
            size = 1 + 0.1 * np.cos(2 * np.pi * (speed * times + turn))
        case "inner race":  # passes through the load zone once a turn
            size = _load(2 * np.pi * (speed * times + turn))
        case "ball":  # the cage carries it through the load zone; it strikes one race harder than the other
            size = _load(2 * np.pi * (machine.bearing.cage * speed * times + turn))
            size = (0.3 + 0.7 * size) * np.where(np.arange(most) % 2, 0.75, 1.0)
    size = STRENGTH * hard * size * (1 + 0.1 * rng.standard_normal(size.shape))
    place = times * RATE
    first = np.floor(place).astype(np.int64)
    share = place - first
    there = (first >= 0) & (first < SAMPLES - 1)
    flat = (np.arange(len(speed))[:, None] * SAMPLES + first)[there]
    weights = np.concatenate([((1 - share) * size)[there], (share * size)[there]])
    struck = np.bincount(np.concatenate([flat, flat + 1]), weights, minlength=len(speed) * SAMPLES)
    return struck.reshape(len(speed), SAMPLES).astype(np.float32)


def _load(angle: Floats) -> Floats:
    """Stribeck's load distribution over the ring: 1 at its centre, 0 outside the load zone."""
    found: Floats = np.maximum(0.0, 1 - (1 - np.cos(angle)) / (2 * ZONE)) ** EXPONENT
    return found


def _ringing(resonance: float, damping: float) -> npt.NDArray[np.complex64]:
    """The spectrum of exp(−ζωt)·sin(ωt), the structure's response to an impact."""
    time = np.arange(SAMPLES) / RATE
    angular = 2 * np.pi * resonance
    rung = np.exp(-damping * angular * time) * np.sin(angular * math.sqrt(1 - damping**2) * time)
    return np.fft.rfft(rung).astype(np.complex64)
