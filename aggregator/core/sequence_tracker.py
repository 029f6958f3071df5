"""Deduplication of updates: for each outbox of a device, the high-water mark `hi` and the last verdicts.

Every seq up to `hi` is settled. The verdicts of the last 16 are kept to answer duplicates, each with the digest of the
judged body: a device that was restored from a copy sends another body under a settled seq.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

from midge.wire.messages import BODY_DIGEST, OUTBOX_LIMIT, Settled, Verdict

_CODES = tuple(Verdict)
_UNKNOWN = bytes(BODY_DIGEST)
"""Digest of a body that was settled before digests were kept."""
MOST = 64
"""Most outboxes of one device: a faulty or hostile one must not fill the memory with new ones."""
EACH = 4
"""Most outboxes of all devices, in multiples of the largest number of devices."""
_LOOKED_AT = 64
"""Outboxes examined, longest silent first, for one that can be forgotten."""


@dataclass(slots=True)
class TrackedOutbox:
    """One outbox of one device."""

    hi: int = 0
    claimed: int = 0
    """The highest seq that is being decoded; hi if none is."""
    gaps: int = 0
    """Number of updates that the device discarded or lost, by its own `first`."""
    codes: bytearray = field(default_factory=bytearray)
    """The verdicts of the last 16 updates, newest last, as indices of Verdict."""
    bodies: bytearray = field(default_factory=bytearray)
    """The digests of their bodies, concatenated."""
    base: int = 0
    """The newest base of an accepted update, 0 without one; no retransmission has a newer one."""

    @property
    def decided(self) -> bool:
        """Whether an update was decided on; otherwise the device only claims the outbox."""
        return self.hi > self.gaps

    @property
    def busy(self) -> bool:
        """Whether an update is being decoded."""
        return self.claimed != self.hi

    def settle(self, seq: int, verdict: Verdict, body: bytes = b"") -> None:
        self.gaps += seq - self.hi - 1
        # The verdicts are addressed by their distance from hi, so a gap would shift them.
        if seq != self.hi + 1:
            self.forget_verdicts()
        self.hi = seq
        self.claimed = max(self.claimed, seq)
        self.codes.append(_CODES.index(verdict))
        self.bodies += body or _UNKNOWN
        del self.codes[:-OUTBOX_LIMIT]
        del self.bodies[: -OUTBOX_LIMIT * BODY_DIGEST]

    def forget_verdicts(self) -> None:
        """Forget all verdicts, because the next settled seq does not follow them."""
        self.codes.clear()
        self.bodies.clear()

    def repeat(self, seq: int) -> tuple[Settled, ...]:
        """The answer to a duplicate; empty if its verdict is forgotten, because hi suffices to settle it."""
        place = len(self.codes) - 1 - (self.hi - seq)
        if not 0 <= place < len(self.codes):
            return ()
        body = bytes(self.bodies[place * BODY_DIGEST : (place + 1) * BODY_DIGEST])
        verdict = _CODES[self.codes[place]]
        return (Settled(seq=seq, verdict=verdict, repeat=True, body=b"" if body == _UNKNOWN else body),)

    def verdicts(self, first: int) -> tuple[Settled, ...]:
        """The remembered verdicts from a seq on, as answers to duplicates."""
        seqs = range(max(first, self.hi - OUTBOX_LIMIT + 1), self.hi + 1)
        return tuple(settled for seq in seqs for settled in self.repeat(seq))


class Outboxes:
    """All outboxes by device and number, ordered by their last decision, the oldest first.

    A full table forgets outboxes that lose nothing. First one without accepted updates: a retransmission is refused
    again, or accepted for the first time. Then one whose accepted updates are all of versions that are gone: a
    retransmission is stale. So made-up names never keep a device out.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._known: dict[tuple[str, int], TrackedOutbox] = {}
        self._barren: dict[tuple[str, int], None] = {}
        """Outboxes without an accepted update, the oldest first."""
        self._of: dict[str, dict[int, None]] = {}
        """The numbers of each device's outboxes."""

    @property
    def devices(self) -> int:
        """Number of devices with an outbox."""
        return len(self._of)

    def get(self, device: str, number: int) -> TrackedOutbox | None:
        return self._known.get((device, number))

    def settle(self, device: str, number: int, seq: int, verdict: Verdict, base: int, *, body: bytes = b"") -> None:
        """Record a journaled verdict."""
        outbox = self._obtain(device, number)
        outbox.settle(seq, verdict, body)
        if verdict is Verdict.ACCEPTED:
            outbox.base = max(outbox.base, base)
            self._barren.pop((device, number), None)
        # The longest silent are at the beginning.
        self._known[device, number] = self._known.pop((device, number))
        self._of[device][number] = self._of[device].pop(number)

    def _obtain(self, device: str, number: int) -> TrackedOutbox:
        known = self._known.get((device, number))
        return known or self._add(device, number, TrackedOutbox())

    def _add(self, device: str, number: int, outbox: TrackedOutbox) -> TrackedOutbox:
        self._known[device, number] = outbox
        self._of.setdefault(device, {})[number] = None
        if not outbox.base:
            self._barren[device, number] = None
        return outbox

    def advance_to(self, device: str, number: int, first: int, oldest_base: int = 0) -> TrackedOutbox | None:
        """Settle everything below `first`, which the device no longer holds.

        Returns the outbox; None if there is no room for it. `oldest_base` is the oldest version whose updates may still
        be accepted.
        """
        outbox = self.get(device, number)
        if outbox is None:
            if not self._make_room(device, oldest_base):
                return None
            outbox = self._obtain(device, number)
        if not outbox.busy and first - 1 > outbox.hi:
            outbox.gaps += first - 1 - outbox.hi
            outbox.hi = outbox.claimed = first - 1
            outbox.forget_verdicts()
        return outbox

    def _make_room(self, device: str, oldest_base: int) -> bool:
        """Make room for one more outbox of this device; return whether there is."""
        mine = [(device, number) for number in self._of.get(device, ())]
        while (alone := len(mine) >= MOST) or self._full(new=not mine):
            name = None if alone else self._first(self._barren, oldest_base) or self._first(self._known, oldest_base)
            # A board without a disk makes a new outbox at each start, so its longest silent one no longer exists.
            name = (
                name or self._first(mine, oldest_base) or next((own for own in mine if not self._known[own].busy), None)
            )
            if name is None:
                return False
            self._drop(name)
            if name in mine:
                mine.remove(name)
        return True

    def _full(self, *, new: bool) -> bool:
        return len(self._known) >= EACH * self._devices or (new and len(self._of) >= self._devices)

    def _first(self, names: Iterable[tuple[str, int]], oldest_base: int) -> tuple[str, int] | None:
        """The first of a few outboxes that can be forgotten without a loss."""
        return next(
            (
                name
                for name in islice(names, _LOOKED_AT)
                if not self._known[name].busy and self._known[name].base < max(1, oldest_base)
            ),
            None,
        )

    def _drop(self, name: tuple[str, int]) -> None:
        del self._known[name]
        self._barren.pop(name, None)
        numbers = self._of[name[0]]
        del numbers[name[1]]
        if not numbers:
            del self._of[name[0]]

    def forget(self, device: str) -> None:
        """Remove all outboxes of a device."""
        for number in list(self._of.get(device, ())):
            self._drop((device, number))

    def dump(self) -> list[list[Any]]:
        """Plain values for `load`, of the outboxes with a decision: a device's claims alone are not durable."""
        return [[*name, box.hi, box.gaps, bytes(box.codes)] for name, box in self._known.items() if box.decided]

    def bases(self) -> list[int]:
        """The `base` of each of these outboxes, in the same order."""
        return [box.base for box in self._known.values() if box.decided]

    def bodies(self) -> list[bytes]:
        """The digests of the judged bodies of each of these outboxes, in the same order."""
        return [bytes(box.bodies) for box in self._known.values() if box.decided]

    def load(self, state: Iterable[Any], bases: Iterable[int], bodies: Iterable[bytes] = ()) -> None:
        """Restore from the results of `dump`, `bases` and `bodies`; earlier checkpoints have no digests."""
        self._known.clear()
        self._barren.clear()
        self._of.clear()
        digests = chain(bodies, repeat(b""))
        for (device, number, hi, gaps, codes), base, body in zip(state, bases, digests, strict=False):
            if hi > gaps:  # earlier checkpoints have outboxes without a decision, too
                known = bytearray(body or _UNKNOWN * len(codes))
                self._add(device, number, TrackedOutbox(hi, hi, gaps, bytearray(codes), known, base))
