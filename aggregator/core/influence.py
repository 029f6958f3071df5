"""Influence: the share of each device in the model's recent movement, and the bound on it.

Weights alone do not give devices equal influence. A step divides by the sum of its weights, so a buffer that only fast
devices filled moves the model as far as any other, although each of their weights is low. The fastest of ten devices
had a third of all movement: enough to push the model steadily in a direction that the data of the others hardly resist.

So a device contributes at most 1.5 times its fair share of the movement; in a fleet of fewer than twelve an eighth, or
1.25 times its fair share if that is more. The rest of its deltas is left out of the steps; devices below the bound are
not changed. Where devices train some tensors only, a fair share is one of the devices that train a tensor, in the mean
over tensors: otherwise the few that train what the model moves by could not hold an attacker. Two devices are not
bounded: neither is a majority, and one may have most to learn, as where each trains its own tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from midge.aggregator.core.fleet_statistics import FEWEST

LARGEST = 1 / 8
"""Largest share of one device in a small fleet."""
LEEWAY = 1.5
"""Most fair shares of one device: attackers that are a tenth of the fleet have 15 % of the movement."""
SLACK = 1.25
"""Fair shares that are allowed in any case: in a fleet of equal devices the shares fluctuate."""
LEAST = 0.25
"""Least factor of a delta: if one device is a hundred times as fast as the others, their pace would be the model's."""
_HALF_LIFE = 10
"""Updates of each device, in the mean, over which movement counts half."""
_GONE = 1e-6
"""Share below which a device is no longer remembered."""
_KNOWN = 2
"""Updates of each device, in the mean, from which shares are bounded."""


@dataclass(frozen=True, slots=True)
class Push:
    """The contribution of one update to a step."""

    device: str
    length: float
    """By how far it would move the model, in L2 norm."""
    devices: int = 1
    """Number of devices whose work it is: above 1 for a gateway's sum."""
    tensors: tuple[int, ...] | None = None
    """Indices of the tensors that it covers; None is all."""


def largest_share(devices: float) -> float:
    """The largest share of recent movement that one of these devices may have."""
    return min(max(LARGEST, SLACK / devices), LEEWAY / devices)


class Influence:
    """The movement of the model by device, with exponential decay. It restarts with the process."""

    def __init__(self) -> None:
        self._moved: dict[str, float] = {}
        self._tensors: dict[str, tuple[int, ...] | None] = {}
        """Of each device, the tensors of its last update."""
        self._total = 0.0
        self._updates = 0.0

    def bound(self, pushes: Sequence[Push], devices: int) -> list[float]:
        """Record a step of these updates in a fleet of `devices`; return the factor of each, at most 1."""
        devices = max(devices, 1)
        self._decay(0.5 ** (len(pushes) / (_HALF_LIFE * devices)))
        known = devices >= FEWEST and self._updates > _KNOWN * devices
        self._tensors |= {push.device: push.tensors for push in pushes}
        largest = largest_share(devices * self._coverage())
        total = self._total + sum(push.length for push in pushes)
        factors = []
        for push in pushes:
            moved = self._moved.get(push.device, 0.0)
            room = min(largest * push.devices, 1.0) * total - moved
            factor = min(max(room / push.length, LEAST), 1.0) if known and push.length > 0 else 1.0
            self._moved[push.device] = moved + factor * push.length
            self._total += factor * push.length
            factors.append(factor)
        self._updates += len(pushes)
        return factors

    def _coverage(self) -> float:
        """The share of devices that train a tensor, in the mean over the tensors that some of them name."""
        given = [tensors for tensors in self._tensors.values() if tensors is not None]
        if not (named := len({tensor for tensors in given for tensor in tensors})):
            return 1.0
        missing = sum(named - len(tensors) for tensors in given)
        return 1 - missing / named / len(self._tensors)

    def _decay(self, factor: float) -> None:
        self._moved = {device: factor * moved for device, moved in self._moved.items() if moved > _GONE * self._total}
        self._tensors = {device: tensors for device, tensors in self._tensors.items() if device in self._moved}
        self._total *= factor
        self._updates *= factor
