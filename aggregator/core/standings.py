"""How far each device has agreed with most devices so far, each update counting by how much it says.

One update says little: the honest deltas of unlike data oppose each other as well, the more so the less is left to
learn. But what all have in common is learned first, and then honest deltas agree clearly. So the standing of a device
is Σ c·|c| / Σ c² over the cosines c of its deltas with the direction of most devices (`aggregator.model.consensus`): −1
for one that was always against it, near 1 for one that helped when there was most to learn, and 0 for one that is new.

A device with standing has room: its deltas may be about as long as those with which it earned it, although the fleet's
reference norm falls once most devices have learned what they can. A device that works against most counts less.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

_LITTLE = 0.05
"""Σ c² below which a device is new: one update with a cosine of 0.22."""
_MUCH = 1.0
"""Σ c² at which older updates begin to be forgotten: a device that changes must not live on what it once was."""
_LONG = 2.0
"""Reference norms beyond which a delta earns no more for being longer."""
_ROOM = 2.0
"""Times the length of what it has earned its standing with that a device's delta may be."""
_WIDEST = 10.0
"""Reference norms that no delta is longer than, whatever its device has earned."""
_PLAIN = 0.1
"""Cosine beyond which a delta goes plainly against most devices: honest ones rarely reach it once they differ."""
_EXCESS = 6.0
"""Times what it may expect to be that a device's deltas always are, beyond which they count less."""
_LEAST = 0.25
"""Of its clipped delta that such a device still moves the model by: it may be the one that sees the world change."""
_OPPOSED = 0.1
"""The same for a device that was always against most."""


@dataclass(slots=True)
class _DeviceStanding:
    agreed: float = 0.0
    """Σ c·|c|."""
    evidence: float = 0.0
    """Σ c²."""
    earned: float = 0.0
    """Σ c²·L2 over the deltas that agreed."""
    support: float = 0.0
    """Σ c² over the same."""


class Standings:
    """The standing of each device. All of it follows from the journal."""

    def __init__(self) -> None:
        self._devices: dict[str, _DeviceStanding] = {}

    def take(self, device: str, agreement: float, norm: float, reference: float) -> None:
        """Take in an accepted delta: its cosine with the direction of most, its L2 norm, the fleet's reference norm.

        A delta that agrees and is very long earns as much as one of twice the reference norm.
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
        """The part of its clipped delta that a device moves the model by: all of it, unless it works against most."""
        return max(1.0 + min(self.of(device), 0.0), _OPPOSED)

    def longest(self, device: str, bound: float, reference: float) -> float:
        """How long a delta may be that otherwise is scaled down to `bound`; both are L2 norms."""
        return max(bound, min(_ROOM * self._expected(device), _WIDEST * reference))

    def factor(self, device: str, agreement: float, usual: float, typical: float, reference: float) -> float:
        """What a delta is multiplied by beside its bound.

        Args:
            device: whose it is.
            agreement: its cosine with the direction of most devices.
            usual: the median |cosine| over devices.
            typical: the L2 norm that its device's deltas usually have.
            reference: the fleet's reference norm.
        """
        factor = self.share(device)
        if agreement < -(plain := max(usual, _PLAIN)):
            factor *= plain / -agreement
        if (excess := self.excess(device, typical, reference)) > _EXCESS:
            factor *= max((_EXCESS / excess) ** 2, _LEAST)
        return factor

    def excess(self, device: str, typical: float, reference: float) -> float:
        """How many times what it may expect a device's deltas are long; 0 if nothing is known to compare them with."""
        expected = max(reference, self._expected(device))
        return typical / expected if expected > 0 else 0.0

    def _expected(self, device: str) -> float:
        """The L2 norm of the deltas with which a device has earned its standing, as far as it has any."""
        known = self._devices.get(device)
        return max(self.of(device), 0.0) * known.earned / known.support if known is not None and known.support else 0.0

    def forget(self, device: str) -> None:
        """Remove what is known of a device."""
        self._devices.pop(device, None)

    def dump(self) -> list[Any]:
        """Return what `load` takes."""
        return [[name, *astuple(known)] for name, known in self._devices.items()]

    def load(self, state: Iterable[Any]) -> None:
        """Take up what `dump` returned."""
        self._devices = {name: _DeviceStanding(*values) for name, *values in state}
