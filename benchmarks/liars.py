"""Attacks of the literature and common faults, each as a function of what its sender knows.

Attackers are omniscient: they know the newest delta of every honest device, the model that it started from, and the
rule. An attack gets the device's honest update and returns the one to send instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from midge.aggregator.core.core import AggregatorCore
from midge.sensor_fleet.data import FleetData, Rows
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.server import Server
from midge.wire.messages import Update
from midge.wire.schema import Vector


@dataclass(slots=True)
class Knowledge:
    """What an attack knows."""

    own: Vector
    """The device's honest delta."""
    honest: list[Vector]
    """The newest delta of each honest device."""
    rng: np.random.Generator
    liars: int
    memory: dict[str, Vector]
    """State of the attack for this device."""

    @property
    def mean(self) -> Vector:
        """The mean honest delta; the device's own if no other is known."""
        return np.mean(self.honest, axis=0) if self.honest else self.own

    @property
    def usual(self) -> float:
        """The median norm of honest deltas."""
        return float(np.median([_norm(each) for each in self.honest])) if self.honest else _norm(self.own)


Attack = Callable[[Knowledge], Vector | None]


def _norm(vector: Vector) -> float:
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))


def _unit(vector: Vector) -> Vector:
    unit: Vector = vector / np.float32(max(_norm(vector), 1e-30))
    return unit


def _scaled(low: float, high: float, sign: float) -> Attack:
    def attack(known: Knowledge) -> Vector:
        return known.own * np.float32(sign * math.exp(known.rng.uniform(math.log(low), math.log(high))))

    return attack


def _random(known: Knowledge) -> Vector:
    noise = known.rng.standard_normal(known.own.size).astype(np.float32)
    return _unit(noise) * np.float32(3 * known.usual)


def _replay(known: Knowledge) -> Vector:
    return known.memory.setdefault("first", known.own.copy())


def _drift(known: Knowledge) -> Vector:
    """A constant direction, hidden in the honest delta."""
    noise = known.rng.standard_normal(known.own.size).astype(np.float32)
    return known.own + known.memory.setdefault("direction", _unit(noise)) * np.float32(known.usual)


def _mimicry(known: Knowledge) -> Vector:
    """All attackers copy one honest device, whose data then counts many times (Karimireddy et al., ICLR 2022)."""
    return known.honest[0] if known.honest else known.own


def _alie(known: Knowledge) -> Vector:
    """Mean less z standard deviations, with z as large as the majority can hide (Baruch et al., NeurIPS 2019)."""
    if len(known.honest) < 3:
        return -known.own
    total = len(known.honest) + known.liars
    supporters = total // 2 + 1 - known.liars
    z = NormalDist().inv_cdf(min(max((len(known.honest) - supporters) / len(known.honest), 0.5), 0.999))
    hidden: Vector = (known.mean - np.float32(max(z, 0.3)) * np.std(known.honest, axis=0)).astype(np.float32)
    return hidden


def _ipm(epsilon: float) -> Attack:
    """A negative multiple of the honest mean (inner product manipulation, Xie et al., UAI 2019)."""
    return lambda known: np.float32(-epsilon) * known.mean


def _min_max(known: Knowledge) -> Vector:
    """As far from the mean as the largest distance between honest deltas (Shejwalkar and Houmansadr, NDSS 2021)."""
    if len(known.honest) < 3:
        return -known.own
    rows, mean = np.stack(known.honest), known.mean
    most = max(_norm(a - b) for a in rows for b in rows)
    away = -_unit(mean)
    low, high = 0.0, 20 * most
    for _ in range(30):
        middle = (low + high) / 2
        candidate = mean + np.float32(middle) * away
        low, high = (middle, high) if max(_norm(candidate - row) for row in rows) <= most else (low, middle)
    return mean + np.float32(low) * away


def _collusion(known: Knowledge) -> Vector:
    """All attackers push the same way, against the honest mean, just below the clipping norm."""
    return _unit(known.mean) * np.float32(-known.usual)


def _adaptive(known: Knowledge) -> Vector:
    """Just within the rule: at the reference norm, and against the progress since the start."""
    total = known.memory.setdefault("total", np.zeros_like(known.own))
    total += known.mean
    return _unit(total) * np.float32(-0.99 * known.usual)


def _rare(known: Knowledge) -> Vector | None:
    """One training in ten is sent, so that the correction for rare devices raises its weight."""
    count = known.memory.setdefault("count", np.zeros(1, np.float32))
    count += 1
    return np.float32(-10) * known.own if count[0] % 10 == 1 else None


def _turncoat(factor: float) -> Attack:
    """Honest for the first five updates, to gain standing, and malicious afterwards."""

    def attack(known: Knowledge) -> Vector:
        count = known.memory.setdefault("count", np.zeros(1, np.float32))
        count += 1
        return known.own if count[0] <= 5 else known.own * np.float32(factor)

    return attack


def _times(factor: float) -> Attack:
    return lambda known: np.float32(factor) * known.own


ATTACKS: dict[str, Attack] = {
    "-10 times": _times(-10),
    "tiny": _times(1e-9),
    "zeros": _times(0),
    "huge": lambda known: _unit(known.own) * np.float32(1e15),
    "huge turned": lambda known: _unit(known.own) * np.float32(-1e15),
    "sign flip": _times(-1),
    "scaled up": _scaled(3, 100, 1),
    "scaled turned": _scaled(3, 100, -1),
    "random": _random,
    "replay": _replay,
    "label flip": _times(1),
    "drift": _drift,
    "mimicry": _mimicry,
    "ALIE": _alie,
    "IPM 0.5": _ipm(0.5),
    "IPM 10": _ipm(10),
    "Min-Max": _min_max,
    "collusion": _collusion,
    "adaptive": _adaptive,
    "rare": _rare,
    "turncoat": _turncoat(-1),
    "turncoat -10 times": _turncoat(-10),
    "full rate": _times(-1),
    "full rate tiny": _times(1e-9),
}
FULL_RATE = 50.0
"""Messages per second that a device may send by default."""


class Liars:
    """A tamper that makes some devices of a simulation send an attack's updates."""

    def __init__(self, kind: str, names: frozenset[str], seed: int) -> None:
        self._kind, self._names, self._attack = kind, names, ATTACKS[kind]
        self._rng = np.random.default_rng((seed, 7))
        self._newest: dict[str, Vector] = {}
        self._memory: dict[str, dict[str, Vector]] = {name: {} for name in names}
        self._flood: dict[str, tuple[Update, DecodedUpdate]] = {}

    def begin(self, server: Server, clock: Clock) -> None:
        self._server, self._clock = server, clock
        if self._kind.startswith("full rate"):
            clock.at(0.0, self._send)

    def sent(self, device: str, update: Update, decoded: DecodedUpdate) -> DecodedUpdate | None:
        if device not in self._names:
            self._newest[device] = decoded.delta
            return decoded
        known = Knowledge(decoded.delta, list(self._newest.values()), self._rng, len(self._names), self._memory[device])
        turned = self._attack(known)
        if turned is None:
            return None
        turned = turned.astype(np.float32)
        decoded = replace(decoded, delta=turned, norm=_norm(turned))
        self._flood[device] = update, decoded
        return decoded

    def _send(self) -> None:
        """Send the newest malicious update again, as if trained from the newest version, in a separate outbox."""
        core: AggregatorCore = self._server.core
        for device, (update, decoded) in list(self._flood.items()):
            seq = core.hi(device, 666) + 1
            again = update.model_copy(update={"outbox": 666, "seq": seq, "base": core.version})
            self._server.inject(device, again, decoded)
        self._clock.after(1 / FULL_RATE, self._send)


def flipped(data: FleetData, names: frozenset[str]) -> FleetData:
    """The same data with inverted labels on these devices."""
    top = (data.classes or 1) - 1
    devices = {
        name: Rows(rows.x, (top - rows.y).astype(rows.y.dtype)) if name in names else rows
        for name, rows in data.devices.items()
    }
    return replace(data, devices=devices)
