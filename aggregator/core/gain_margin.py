"""How large a step may be while others are under way: the gain margin of a loop with many delays.

An update that is τ steps old says what x lacked τ steps ago. Where a training goes all the way to what its data want,
the model's error e follows e(t+1) = e(t) − η·Σ p(τ)·e(t−τ), p being the share of updates of that staleness. Such a loop
is stable up to a gain M, the smallest positive real value of −(z − 1) / Σ p(τ)·z^−τ on the unit circle (Nyquist's
criterion); for one delay it is the known 2·sin(π / (2·(2τ + 1))). Spread delays leave far more room than equal ones of
the same mean, which is why a rule from the number of devices alone brakes wild fleets and lets equal ones swing.

Updates that come in bursts from one base, as of devices in lock-step, add up before any of them is seen: m of them in
steps of K make m/K steps in the same direction, however small their staleness. The second bound is for them.
"""

from collections import Counter, deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

SHARE = 0.55
"""Of the margin that is used: beyond it the loop still settles, and swings for long. With 0.6, thirteen liars of 97
devices kept one swinging."""
BURSTS = 0.8
"""The same for bursts: what is behind in p does not add to them, and where they come it is they that make it slow."""
_FEWEST, _MOST = 32, 2048
"""Updates that must have been seen, and that are remembered."""
_DOMINANT = 1.5
"""Times its share of the window beyond which a device's updates count less: several liars that send all the time, and
always from the newest version, would otherwise hide the delays of the others, and the rate would let these swing."""
_FIELDS = 6
"""Of a dump of the oldest format that is still read."""
_FREQUENCIES = np.unique(np.concatenate([np.geomspace(1e-4, np.pi, 300), np.linspace(0.02, np.pi, 300)]))
_FAR = 5.0
"""Gains beyond this one are no limit, and where the response jumps it is no crossing."""


@lru_cache(maxsize=1024)
def _turned(tau: int) -> npt.NDArray[np.complex128]:
    """A delay's response at each frequency. Delays come again; making one costs as much as many additions."""
    return np.exp(-1j * tau * _FREQUENCIES)


def gain_margin(staleness: dict[int, float], momentum: float = 0.0) -> float:
    """M for weights by staleness in steps; with momentum β the loop has 1 / (1 − β·z⁻¹) in it as well."""
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
    """Weights by staleness, in which no device has more than 1.5 times its share; empty if all weights are 0."""
    by_device: Counter[str] = Counter()
    for device, _, weight in seen:
        by_device[device] += weight  # type: ignore[assignment]
    bound = _DOMINANT * sum(by_device.values()) / len(by_device)
    shares: Counter[int] = Counter()
    for device, tau, weight in seen:
        shares[tau] += weight * min(1.0, bound / by_device[device]) if weight else 0.0  # type: ignore[assignment]
    return dict(shares) if any(shares.values()) else {}


def _calibrated(shares: dict[int, float], seen: Sequence[tuple[str, int, float]], beta: float) -> dict[int, float]:
    """The shares, with what the mean of the cached deltas adds to them.

    A step is Δ − β·h + β·h̄: fresh at τ, less what the same device had said a training before, plus the mean over
    devices of what each has said last. That is as old as its training, and grows by as much until its next one comes.
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


class Margin:
    """Follows the staleness of accepted updates and says the largest rate that is safe.

    A device cannot make up a delay for the fleet: an update of the same base as its last one is passed over, and beyond
    1.5 times its share of the window its updates count less.

    Args:
        calibration: β of the strategy: how much of a device's cached delta stands in for its next one. What is cached
            is up to a training of its device older than what has just come.
        momentum: β1 of the server's optimiser.
        normalised: whether a step divides by its weights. Otherwise the loop's gain is the rate times their mean: 200
            devices in lock-step weigh 0.07 each by FedBuff's s(τ), and the rate may be 14 times as large.
    """

    def __init__(self, calibration: float = 0.0, momentum: float = 0.0, *, normalised: bool = True) -> None:
        self._calibration, self._momentum, self._normalised = calibration, momentum, normalised
        self._seen: deque[tuple[str, int, float]] = deque(maxlen=_MOST)
        self._sent: Counter[str] = Counter()
        """Updates of each device among those."""
        self._last_base: dict[str, int] = {}
        self._of_base: Counter[int] = Counter()
        self._burst = 1.0
        self._shares: dict[int, float] = {}
        """Weights by staleness, as they were when the margin was last computed."""
        self.mean_weight = 1.0
        """Of the updates that the shares are of, if the strategy's steps do not divide by it; otherwise 1."""
        self._since = 0
        self._margin: float | None = None
        """Of these shares, once it was asked for."""

    def saw(self, device: str, staleness: int, weight: float, base: int, devices: int) -> None:
        """Take in an accepted update of a federation of `devices` devices."""
        if self._last_base.get(device) == base:
            return
        self._last_base[device] = base
        if len(self._seen) == _MOST:
            self._sent[self._seen[0][0]] -= 1
        self._sent[device] += 1
        share = min(1.0, _DOMINANT * (len(self._seen) + 1) / max(devices, 1) / self._sent[device])
        self._seen.append((device, staleness, weight))
        self._of_base[base] += 1
        if len(self._of_base) > _MOST:
            del self._of_base[min(self._of_base)]
        self._burst += share * (2 * self._of_base[base] - 1 - self._burst) / max(devices, 1)
        self._since += 1
        if len(self._seen) >= _FEWEST and (not self._shares or self._since >= max(16, devices // 2)):
            self._since, self._margin = 0, None
            window = list(islice(self._seen, max(0, len(self._seen) - max(64, 4 * devices)), None))
            self._shares = _by_staleness(window)
            if self._shares and not self._normalised:
                self.mean_weight = sum(weight for _, _, weight in window) / len(window)
            if self._calibration and self._shares:
                self._shares = _calibrated(self._shares, window, self._calibration)

    def rate(self, buffer_size: int) -> float | None:
        """The largest safe rate for steps of `buffer_size` updates; None if too little was seen.

        At most 1 − β1: a rate of 1 goes all the way, and momentum multiplies it by 1 / (1 − β1) in the end.
        """
        if not self._shares:
            return None
        if self._margin is None:
            self._margin = gain_margin(self._shares, self._momentum)
        gain = min(1.0 - self._momentum, SHARE * self._margin, BURSTS * 2 * buffer_size / max(self._burst, 1.0))
        return gain / self.mean_weight

    def forget(self, device: str, alias: str) -> None:
        """Let what was seen of a device stand under another name."""
        self._last_base.pop(device, None)
        self._sent[alias] += self._sent.pop(device, 0)
        self._seen = deque(
            ((alias if name == device else name, tau, weight) for name, tau, weight in self._seen), maxlen=_MOST
        )

    def dump(self) -> list[Any]:
        return [
            [list(row) for row in self._seen],
            list(self._of_base.items()),
            self._burst,
            list(self._shares.items()),
            self._since,
            list(self._last_base.items()),
            self.mean_weight,
        ]

    def load(self, state: list[Any]) -> None:
        if len(state) < _FIELDS:
            return  # an older format, without devices: the next updates measure it again
        seen, of_base, self._burst, shares, self._since, last, *added = state
        self.mean_weight = added[0] if added else 1.0  # an older format: the next turn of the fleet measures it
        self._of_base, self._shares, self._last_base = Counter(dict(of_base)), dict(shares), dict(last)
        self._seen = deque(((device, tau, weight) for device, tau, weight in seen), maxlen=_MOST)
        self._sent = Counter(device for device, _, _ in self._seen)
        self._margin = None
