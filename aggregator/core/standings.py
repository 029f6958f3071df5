"""Standings: how far each device has agreed with most devices so far.

A single update proves little: honest deltas from different data oppose each other too, the more so the less is left to
learn. But what all data have in common is learned first, and then honest deltas agree clearly. So the standing of a
device is Σ c·|c| / Σ c² over the cosines c of its deltas with the consensus direction (`aggregator.model.consensus`):
−1 for a device that always opposed it, near 1 for one that agreed when there was most to learn, 0 for a new one.

The deltas of a device with standing may be about as long as those with which it was earned, although the fleet's
reference norm falls once most devices have converged. A device that opposes most of the others counts less.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

_LITTLE = 0.05
"""Σ c² below which a device is new: one update with a cosine of 0.22."""
_MUCH = 1.0
"""Σ c² from which older updates are forgotten: a device that turns hostile must not profit from its past."""
_LONG = 2.0
"""Length, in reference norms, above which a delta earns no more standing."""
_ROOM = 2.0
"""Length that a device's delta may have, in multiples of the mean length with which it earned its standing."""
_WIDEST = 10.0
"""Most reference norms of a delta, whatever the standing of its device."""
_PLAIN = 0.1
"""Negative cosine above which a delta clearly opposes most devices: honest ones rarely reach it once they diverge."""
_EXCESS = 6.0
"""Typical length of a device's deltas, in multiples of the expected one, above which they count less."""
_LEAST = 0.25
"""Least factor for such a device: it may be the first to see a change of the data."""
_OPPOSED = 0.1
"""Least factor for a device that always opposed the others."""


@dataclass(slots=True)
class _DeviceStanding:
    agreed: float = 0.0
    """Σ c·|c|."""
    evidence: float = 0.0
    """Σ c²."""
    earned: float = 0.0
    """Σ c²·|Δ| over the deltas that agreed."""
    support: float = 0.0
    """Σ c² over the deltas that agreed."""


class Standings:
    """The standing of each device. All of it can be rebuilt from the journal."""

    def __init__(self) -> None:
        self._devices: dict[str, _DeviceStanding] = {}

    def take(self, device: str, agreement: float, norm: float, reference: float) -> None:
        """Record an accepted delta: its cosine with the consensus, its L2 norm, and the fleet's reference norm.

        A very long delta that agrees earns as much as one of twice the reference norm.
        """
        if agreement == 0:
            return
        known = self._devices.setdefault(device, _DeviceStanding())
        square = agreement * agreement
        if agreement > 0:
            part = min(1.0, _LONG * reference / norm) if reference > 0 and norm > 0 else 1.0
            known.agreed += square * part
            known.earned += square * norm * part
            known.support += square
        else:
            known.agreed -= square
        known.evidence += square
        if known.evidence > _MUCH:
            known.agreed *= _MUCH / known.evidence
            known.evidence = _MUCH
        if known.support > _MUCH:
            known.earned *= _MUCH / known.support
            known.support = _MUCH

    def of(self, device: str) -> float:
        """The standing of a device, from −1 to 1."""
        known = self._devices.get(device)
        return 0.0 if known is None else known.agreed / max(known.evidence, _LITTLE)

    def share(self, device: str) -> float:
        """Factor of a device's clipped deltas: 1, or less if it opposes most devices."""
        return max(1.0 + min(self.of(device), 0.0), _OPPOSED)

    def longest(self, device: str, bound: float, reference: float) -> float:
        """The L2 norm to which a device's delta is scaled down: `bound`, or more by its standing."""
        return max(bound, min(_ROOM * self._expected(device), _WIDEST * reference))

    def factor(self, device: str, agreement: float, usual: float, typical: float, reference: float) -> float:
        """The factor of a delta, in addition to its bound.

        Args:
            device: that sent it.
            agreement: its cosine with the consensus direction.
            usual: the median |cosine| over devices.
            typical: the median L2 norm of the device's deltas.
            reference: the fleet's reference norm.
        """
        factor = self.share(device)
        if agreement < -(plain := max(usual, _PLAIN)):
            factor *= plain / -agreement
        if (excess := self.excess(device, typical, reference)) > _EXCESS:
            factor *= max((_EXCESS / excess) ** 2, _LEAST)
        return factor

    def excess(self, device: str, typical: float, reference: float) -> float:
        """The typical length of a device's deltas as a multiple of the expected one; 0 if nothing is expected."""
        expected = max(reference, self._expected(device))
        return typical / expected if expected > 0 else 0.0

    def _expected(self, device: str) -> float:
        """The mean L2 norm with which a device earned its standing, times that standing; 0 without any."""
        known = self._devices.get(device)
        return max(self.of(device), 0.0) * known.earned / known.support if known is not None and known.support else 0.0

    def forget(self, device: str) -> None:
        """Remove the standing of a device."""
        self._devices.pop(device, None)

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        return [[name, *astuple(known)] for name, known in self._devices.items()]

    def load(self, state: Iterable[Any]) -> None:
        """Restore from the result of `dump`."""
        self._devices = {name: _DeviceStanding(*values) for name, *values in state}
