"""Standings: how far each device has agreed with most devices so far.

A single update proves little: honest deltas from different data oppose each other too, the more so the less is left to
learn. But what all data have in common is learned first, and then honest deltas agree clearly. So the standing of a
device is Σ c·|c| / Σ c² over the cosines c of its deltas with the consensus direction (`aggregator.model.consensus`):
−1 for a device that always opposed it, 1 for one that always agreed, 0 for a new one. A device that opposes most of the
others counts less.

Cosines are measured by sketches, whose noise is all that is left of them once devices have converged. Its sum would be
a random walk, in which honest devices end as low as attackers. So what this noise can reach is taken off each cosine.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

_NOISE = 0.16
"""What is taken off each |cosine|: five standard deviations of the cosine that two random deltas have by their
sketches, 1/√1024 each."""
_LITTLE = 0.05
"""Σ c² below which a device is new: one update with a cosine of 0.38."""
_MUCH = 1.0
"""Σ c² from which older updates are forgotten: a device that turns hostile must not profit from its past."""
_OPPOSED = 0.1
"""Least factor for a device that always opposed the others."""


@dataclass(slots=True)
class _DeviceStanding:
    agreed: float = 0.0
    """Σ c·|c|."""
    evidence: float = 0.0
    """Σ c²."""


class Standings:
    """The standing of each device. All of it can be rebuilt from the journal."""

    def __init__(self) -> None:
        self._devices: dict[str, _DeviceStanding] = {}

    def take(self, device: str, agreement: float) -> None:
        """Record the cosine of an accepted delta with the consensus direction."""
        if (size := abs(agreement) - _NOISE) <= 0:
            return
        known, square = self._devices.setdefault(device, _DeviceStanding()), size * size
        known.agreed += square if agreement > 0 else -square
        known.evidence += square
        if known.evidence > _MUCH:
            known.agreed *= _MUCH / known.evidence
            known.evidence = _MUCH

    def of(self, device: str) -> float:
        """The standing of a device, from −1 to 1."""
        known = self._devices.get(device)
        return 0.0 if known is None else known.agreed / max(known.evidence, _LITTLE)

    def share(self, device: str) -> float:
        """Factor of a device's clipped deltas: 1, or less if it opposes most devices."""
        return max(1.0 + min(self.of(device), 0.0), _OPPOSED)

    def forget(self, device: str) -> None:
        """Remove the standing of a device."""
        self._devices.pop(device, None)

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        return [[name, *astuple(known)] for name, known in self._devices.items()]

    def load(self, state: Iterable[Any]) -> None:
        """Restore from the result of `dump`, also of one that has further values."""
        self._devices = {name: _DeviceStanding(agreed, evidence) for name, agreed, evidence, *_ in state}
