"""An accepted update that waits for its step."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from midge.aggregator.core import records as rec

_ADDED: list[Any] = [0.0, 0.0, 0, False, False, 0, 0, 0, 1.0, 0, None, b""]
"""Values of a waiting update that checkpoints of earlier versions of Midge do not have."""
_UNUSED = 0.0
"""Where a checkpoint of an earlier Midge has the cosine of its delta."""
HASH = 4
"""Bytes that stand for a device's name in a shard's sum: two that are equal count as one, which is the safe side."""
_COUNTED = 64
"""Most devices of one sum that count for the floor of a release, and for the fleet's delays."""


def hash_of(device: str) -> bytes:
    """The 4 bytes that stand for a device's name in a shard's sum."""
    return hashlib.sha256(device.encode()).digest()[:HASH]


def names_of(device: str, devices: int, who: bytes = b"") -> list[str]:
    """A name for each device of a sum, or the device's own; no device has one with a slash.

    Two sums of a gateway have the same names, because it does not say which devices they are of; a shard does.
    """
    if who:
        return [f"/{who[place : place + HASH].hex()}" for place in range(0, len(who), HASH)]
    return [device, *(f"{device}/{number}" for number in range(1, min(devices, _COUNTED)))]


@dataclass(frozen=True, slots=True)
class Buffered:
    """An accepted update that waits for its step, with the number (lsn) of its journal record."""

    device: str
    staleness: int
    weight: float
    scale: float = 1.0
    norm: float = 0.0
    """L2 norm of the delta as sent."""
    outbox: int = 0
    trivial: bool = False
    lsn: int = 0
    masked: bool = False
    """Whether only its sum with others can be decoded."""
    group: int = 0
    """The record (lsn) of the opened sum that it is in, which waits for others; 0 if there is none yet."""
    accepted: int = 0
    """Of a gateway's sum: the number of updates in it; 0 is a device's own update."""
    devices: int = 0
    """The number of distinct devices that they are of."""
    mass: float = 1.0
    """The sum of their weights."""
    base: int = 0
    tensors: tuple[int, ...] | None = None
    """Indices of the tensors that it covers; None is all."""
    who: bytes = b""
    """Of a shard's sum: 4 bytes for each of these devices."""

    @property
    def summed(self) -> bool:
        """Whether it is a gateway's sum of updates."""
        return self.accepted > 0

    @property
    def count(self) -> int:
        """The number of updates that it stands for."""
        return max(1, self.accepted)

    @property
    def names(self) -> set[str]:
        """As many names as devices whose work it hides in a release."""
        return set(names_of(self.device, self.devices, self.who))

    def dump(self) -> list[Any]:
        """Plain values for `load`."""
        first = [self.lsn, self.device, self.staleness, self.weight, self.scale]
        told = [self.norm, _UNUSED, self.outbox, self.trivial, self.masked, self.group]
        return [*first, *told, self.accepted, self.devices, self.mass, self.base, self.tensors, self.who]

    @classmethod
    def of(cls, record: rec.UpdateRecord) -> "Buffered":
        """An update that was just accepted."""
        return cls(
            record.device,
            record.staleness,
            record.weight,
            record.scale,
            record.norm,
            record.outbox,
            record.trivial,
            lsn=record.lsn,
            masked=bool(record.ticket),
            accepted=record.accepted,
            devices=record.devices,
            mass=record.mass,
            base=record.base,
            tensors=record.tensors,
            who=record.who,
        )

    @classmethod
    def load(cls, values: Sequence[Any]) -> "Buffered":
        """Restore from the result of `dump`; a checkpoint of an earlier Midge has fewer values."""
        lsn, device, staleness, weight, scale, *later = values
        norm, _, outbox, trivial, masked, *later = [*later, *_ADDED[len(later) :]]
        group, accepted, devices, mass, base, tensors, who = later
        return cls(
            device,
            staleness,
            weight,
            scale,
            norm,
            outbox,
            trivial,
            lsn=lsn,
            masked=masked,
            group=group,
            accepted=accepted,
            devices=devices,
            mass=mass,
            base=base,
            tensors=None if tensors is None else tuple(tensors),
            who=who,
        )


def counted(items: Iterable[Buffered], *, sums: bool) -> list[tuple[str, int, int]]:
    """Device, base, and the number of updates that each stands for: 1, unless the step takes sums as their updates."""
    return [(item.device, item.base, item.count if sums else 1) for item in items]
