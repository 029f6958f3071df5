"""What is known of each device's outboxes: up to which seq all is settled, and the last verdicts.

A seq at or below `hi` is settled for good. The verdicts of the last 16 are kept, so that a repeat gets its old one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from midge.wire.messages import OUTBOX_LIMIT, Settled, Verdict

_CODES = tuple(Verdict)
MOST = 64
"""Outboxes that one device may have had; a broken or hostile one must not fill the memory with new ones."""
EACH = 4
"""Outboxes that all devices together may have had, times how many devices there may be."""


@dataclass(slots=True)
class TrackedOutbox:
    """What is known of one outbox of one device."""

    hi: int = 0
    claimed: int = 0
    """The highest seq that is being decoded; at rest, hi."""
    gaps: int = 0
    """Updates that the device gave up or lost, as its own `first` tells."""
    codes: bytearray = field(default_factory=bytearray)
    """The verdicts of the last 16, newest last, as indices of Verdict."""

    def settle(self, seq: int, verdict: Verdict) -> None:
        self.gaps += seq - self.hi - 1
        if seq != self.hi + 1:
            self.codes.clear()
        self.hi = seq
        self.claimed = max(self.claimed, seq)
        self.codes.append(_CODES.index(verdict))
        del self.codes[:-OUTBOX_LIMIT]

    def verdict(self, seq: int) -> Verdict | None:
        """The verdict on a settled seq, where it is still remembered."""
        place = len(self.codes) - 1 - (self.hi - seq)
        return _CODES[self.codes[place]] if 0 <= place < len(self.codes) else None

    def repeat(self, seq: int) -> tuple[Settled, ...]:
        """What a settled seq is answered with when it comes again; nothing if its verdict is forgotten: hi says it."""
        verdict = self.verdict(seq)
        return () if verdict is None else (Settled(seq=seq, verdict=verdict, repeat=True),)

    def verdicts(self, first: int) -> tuple[Settled, ...]:
        """The verdicts that are remembered from a seq on, as repeats."""
        known = ((seq, self.verdict(seq)) for seq in range(max(first, self.hi - OUTBOX_LIMIT + 1), self.hi + 1))
        return tuple(Settled(seq=seq, verdict=verdict, repeat=True) for seq, verdict in known if verdict is not None)


class Outboxes:
    """All of them, by device and identity."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._known: dict[tuple[str, int], TrackedOutbox] = {}
        self._of: Counter[str] = Counter()

    @property
    def devices(self) -> int:
        """How many devices they are of."""
        return len(self._of)

    def get(self, device: str, number: int) -> TrackedOutbox | None:
        return self._known.get((device, number))

    def obtain(self, device: str, number: int) -> TrackedOutbox:
        """The outbox, new where it was not known: for what is in the journal."""
        known = self._known.get((device, number))
        if known is None:
            self._of[device] += 1
            known = self._known[device, number] = TrackedOutbox()
        return known

    def raised(self, device: str, number: int, first: int) -> TrackedOutbox | None:
        """The outbox, with all that the device no longer holds counted as settled; None where there is no room."""
        outbox = self.get(device, number)
        if outbox is None:
            new = device not in self._of
            full = len(self._known) >= EACH * self._devices
            if full or (new and len(self._of) >= self._devices) or self._of[device] >= MOST:
                return None
            outbox = self.obtain(device, number)
        if outbox.claimed == outbox.hi and first - 1 > outbox.hi:
            outbox.gaps += first - 1 - outbox.hi
            outbox.hi = outbox.claimed = first - 1
            outbox.codes.clear()
        return outbox

    def forget(self, device: str) -> None:
        """Remove all outboxes of a device."""
        for name in [name for name in self._known if name[0] == device]:
            del self._known[name]
        self._of.pop(device, None)

    def dump(self) -> list[list[Any]]:
        return [[*name, box.hi, box.gaps, bytes(box.codes)] for name, box in self._known.items()]

    def load(self, state: Iterable[Any]) -> None:
        self._known.clear()
        self._of.clear()
        for device, number, hi, gaps, codes in state:
            self._known[device, number] = TrackedOutbox(hi, hi, gaps, bytearray(codes))
            self._of[device] += 1
