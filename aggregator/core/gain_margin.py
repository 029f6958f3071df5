"""The largest safe step: the gain margin of a control loop with many delays.

An update that is τ steps old says what x lacked τ steps ago. If a training reaches the optimum of its data, the model's
error e follows e(t+1) = e(t) − η·Σ p(τ)·e(t−τ), where p(τ) is the share of updates of staleness τ. This loop is stable
up to a gain M, the smallest positive real value of −(z − 1) / Σ p(τ)·z^−τ on the unit circle (Nyquist's criterion); for
a single delay that is the known 2·sin(π / (2·(2τ + 1))). Spread delays leave far more room than equal delays of the
same mean. So a rule from the number of devices alone would slow a diverse fleet down, and let a uniform one oscillate.

Updates in bursts from one base, as from devices in lock-step, add up before any of them takes effect: however small
their staleness, they make as many steps in the same direction as they fill. A second bound covers them. It counts
steps, not updates: where a deadline makes steps of few updates, the same updates fill more of them.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

SHARE = 0.55
"""Fraction of the margin that is used: above it the loop still settles, but oscillates for long. With 0.6, thirteen
liars among 97 devices kept it oscillating."""
BURSTS = 0.8
"""The fraction for bursts: larger, because the delay between x and p does not add to theirs, and because in fleets with
bursts this bound is the one that makes learning slow."""
_FEWEST, _MOST = 32, 2048
"""Updates from which the margin is computed, and most updates that are remembered."""
_EARLY = 8
"""Updates from which it is estimated, if there are two of each device: while the estimate is rough, it may only lower
the rate. Four devices whose steps did not wait for a full buffer swung to forty times their data within 32 updates."""
_DOMINANT = 1.5
"""Multiple of its fair share of the window beyond which a device's updates count less. Otherwise liars that send all
the time, always from the newest version, would hide the delays of the others, and the rate would be too high for them.
"""
_FIELDS = 6
"""Number of fields in a dump of the oldest format that is still read."""
_FREQUENCIES = np.unique(np.concatenate([np.geomspace(1e-4, np.pi, 300), np.linspace(0.02, np.pi, 300)]))
_FAR = 5.0
"""Largest imaginary part beside a crossing: a larger one is a jump of the response across the axis, not a crossing."""


Updates = Sequence[tuple[str, int, int]]
"""Updates of a step: device, base, and the number of updates that each stands for."""


@lru_cache(maxsize=1024)
def _turned(tau: int) -> npt.NDArray[np.complex128]:
    """The response of a delay at each frequency; cached, because it costs as much as many additions."""
    return np.exp(-1j * tau * _FREQUENCIES)


def gain_margin(staleness: dict[int, float], momentum: float = 0.0) -> float:
    """M for weights by staleness in steps; momentum β adds the factor 1 / (1 − β·z⁻¹) to the loop."""
    total = sum(staleness.values())
    delayed = np.zeros(_FREQUENCIES.size, np.complex128)
    for tau, share in staleness.items():  # not by a matrix product: its threads would take the other cores
        delayed += (share / total) * _turned(tau)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = -(np.exp(1j * _FREQUENCIES) - 1) * (1 - momentum * np.exp(-1j * _FREQUENCIES)) / delayed
    imaginary, real = gains.imag, gains.real
    best = float(real[-1]) if real[-1] > 0 and abs(imaginary[-1]) < 1e-6 else np.inf
    near = np.abs(imaginary) < _FAR
    crossing = (imaginary[:-1] * imaginary[1:] <= 0) & near[:-1] & near[1:]
    for place in np.flatnonzero(crossing):
        part = imaginary[place] / (imaginary[place] - imaginary[place + 1] + 1e-30)
        value = float(real[place] + part * (real[place + 1] - real[place]))
        if 0 < value < best:
            best = value
    return best


def _by_staleness(seen: Sequence[tuple[str, int, float]]) -> dict[int, float]:
    """Weights by staleness, with no device above 1.5 times its fair share; empty if all weights are 0."""
    by_device: Counter[str] = Counter()
    for device, _, weight in seen:
        by_device[device] += weight  # type: ignore[assignment]
    bound = _DOMINANT * sum(by_device.values()) / len(by_device)
    shares: Counter[int] = Counter()
    for device, tau, weight in seen:
        shares[tau] += weight * min(1.0, bound / by_device[device]) if weight else 0.0  # type: ignore[assignment]
    return dict(shares) if any(shares.values()) else {}


def _calibrated(shares: dict[int, float], seen: Sequence[tuple[str, int, float]], beta: float) -> dict[int, float]:
    """The shares, with the contribution of the cached deltas.

    A step is Δ − β·h + β·h̄: the new delta of staleness τ, minus the device's delta of one training earlier, plus the
    mean over devices of the last deltas. Such a delta is as old as its training, and up to twice that before the next.
    """
    total = sum(shares.values())
    found: Counter[int] = Counter({tau: share / total for tau, share in shares.items()})
    sent: dict[str, list[int]] = {}
    for device, tau, _ in seen:
        sent.setdefault(device, []).append(tau)
    for taus in sent.values():
        tau = round(sum(taus) / len(taus))
        for age in range(tau + 1):
            found[tau + age] += beta / len(sent) / (tau + 1)  # type: ignore[assignment]
    for tau, share in shares.items():
        found[2 * tau + 1] -= beta * share / total  # type: ignore[assignment]
    return dict(found)


class GainMarginEstimator:
    """Measures the staleness of accepted updates, and computes the largest safe rate.

    A single device cannot fake the fleet's delays: an update of the same base as its last one is ignored, and beyond
    1.5 times its fair share of the window its updates count less.

    Args:
        calibration: β of the strategy, the share of a device's cached delta in a step. A cached delta is up to one
            training of its device older than a new one.
        momentum: β1 of the server's optimiser.
        normalised: whether a step divides by its weights. Otherwise the loop's gain is the rate times their mean: 200
            devices in lock-step weigh 0.07 each by FedBuff's s(τ), and the rate may be 14 times as large.
    """

    def __init__(self, calibration: float = 0.0, momentum: float = 0.0, *, normalised: bool = True) -> None:
        self._calibration, self._momentum, self._normalised = calibration, momentum, normalised
        self._seen: deque[tuple[str, int, float]] = deque(maxlen=_MOST)
        self._sent: Counter[str] = Counter()
        """Number of updates of each device in `_seen`."""
        self._last_base: dict[str, int] = {}
        self._steps_of_base: dict[int, float] = {}
        self._last_stepped: dict[str, int] = {}
        """By device, the base of its last update in a step."""
        self._burst = 0.0
        """Number of steps that the updates of one base fill, a mean over as many updates as there are devices."""
        self._stepped = 0
        """Number of updates that were counted for it."""
        self._shares: dict[int, float] = {}
        """Weights by staleness; recomputed after half as many updates as there are devices."""
        self.mean_weight = 1.0
        """Mean weight of the updates in `_shares`, if steps do not divide by it; otherwise 1."""
        self._since = 0
        self._margin: float | None = None
        """The margin of `_shares`, if it was computed."""

    def record(self, device: str, staleness: int, weight: float, base: int, devices: int) -> None:
        """Record an accepted update, in a federation of `devices` devices."""
        if self._last_base.get(device) == base:
            return
        self._last_base[device] = base
        if len(self._seen) == _MOST:
            self._sent[self._seen[0][0]] -= 1
        self._sent[device] += 1
        self._seen.append((device, staleness, weight))
        self._since += 1
        known, usual = len(self._seen), max(16, devices // 2)
        if known < _FEWEST:
            usual = max(_EARLY, 2 * devices) if not self._shares else max(_EARLY // 2, devices // 2)
        if self._since >= usual or known == _FEWEST:
            self._since, self._margin = 0, None
            window = list(islice(self._seen, max(0, len(self._seen) - max(64, 4 * devices)), None))
            self._shares = _by_staleness(window)
            if self._shares and not self._normalised:
                self.mean_weight = sum(weight for _, _, weight in window) / len(window)
            if self._calibration and self._shares:
                self._shares = _calibrated(self._shares, window, self._calibration)

    def record_step(self, updates: Updates, devices: int) -> None:
        """Record a step in a federation of `devices` devices."""
        self._burst, filled = self._with(updates, devices)
        self._steps_of_base |= filled
        self._last_stepped |= {device: base for device, base, _ in updates}
        self._stepped += len(updates)
        while len(self._steps_of_base) > _MOST:
            del self._steps_of_base[min(self._steps_of_base)]

    def _with(self, updates: Updates, devices: int) -> tuple[float, dict[int, float]]:
        """Burst, and steps that each of their bases fills, once a step of these updates is made."""
        total = sum(count for _, _, count in updates)
        fair = _DOMINANT * (len(self._seen) + 1) / max(devices, 1)
        burst, filled, counted = self._burst, dict[int, float](), set[tuple[str, int]]()
        for number, (device, base, count) in enumerate(updates, self._stepped + 1):
            if self._last_stepped.get(device) == base or (device, base) in counted:
                continue
            counted.add((device, base))
            part = count / total
            filled[base] = filled.get(base, self._steps_of_base.get(base, 0.0)) + part
            share = min(1.0, fair / max(self._sent[device], 1))
            # The mean of 2c − part over the updates of a base, while c grows by their parts, is the last c.
            burst += share * (2 * filled[base] - part - burst) / max(min(number, devices), 1)
        return burst, filled

    def rate(self, step: Updates = (), devices: int = 1) -> float | None:
        """The largest safe rate of a step of these updates; None before 32 updates.

        At most 1 − β1: a rate of 1 applies a whole delta, and momentum multiplies it by 1 / (1 − β1) in the long run.
        """
        return self._rate(step, devices) if self._shares and len(self._seen) >= _FEWEST else None

    def early_rate(self, step: Updates = (), devices: int = 1) -> float:
        """A rough estimate of it before that, infinite before eight updates."""
        return self._rate(step, devices) if self._shares else math.inf

    def _rate(self, step: Updates, devices: int) -> float:
        if self._margin is None:
            self._margin = gain_margin(self._shares, self._momentum)
        # A step of cached deltas repeats those of a training ago: with β = 1, bursts are stable up to half of the gain.
        burst = self._with(step, devices)[0] * (1 + self._calibration)
        gain = min(1.0 - self._momentum, SHARE * self._margin)
        return min(gain, 2 * BURSTS / burst if burst else math.inf) / self.mean_weight

    def forget(self, device: str, alias: str) -> None:
        """Keep the record of a device under an alias."""
        self._last_base.pop(device, None)
        self._last_stepped.pop(device, None)
        if not (sent := self._sent.pop(device, 0)):
            return
        self._sent[alias] += sent
        self._seen = deque(
            ((alias if name == device else name, tau, weight) for name, tau, weight in self._seen), maxlen=_MOST
        )

    def dump(self) -> list[Any]:
        return [
            [list(row) for row in self._seen],
            list(self._steps_of_base.items()),
            self._burst,
            list(self._shares.items()),
            self._since,
            list(self._last_base.items()),
            self.mean_weight,
            list(self._last_stepped.items()),
            self._stepped,
        ]

    def load(self, state: Sequence[Any], buffer_size: int) -> None:
        """Restore from the result of `dump`; an older format counts the updates of a base, `buffer_size` to a step."""
        if len(state) < _FIELDS:
            return  # without devices: measured again from the next updates
        seen, of_base, burst, shares, self._since, last, *added = state
        self.mean_weight = added[0] if added else 1.0  # measured again soon
        size = 1 if len(added) > 1 else buffer_size
        self._steps_of_base, self._burst = {base: filled / size for base, filled in of_base}, burst / size
        self._last_stepped, self._stepped = (dict(added[1]), added[2]) if len(added) > 1 else ({}, len(seen))
        self._shares, self._last_base = dict(shares), dict(last)
        self._seen = deque(((device, tau, weight) for device, tau, weight in seen), maxlen=_MOST)
        self._sent = Counter(device for device, _, _ in self._seen)
        self._margin = None
