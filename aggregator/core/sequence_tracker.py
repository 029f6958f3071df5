"""What is known of each device's outboxes: up to which seq all is settled, and the last verdicts.

A seq at or below `hi` is settled for good. The verdicts of the last 16 are kept, so that a repeat gets its old one,
each with the digest of the body that it is for: a device that was put back from a copy sends another one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

from midge.wire.messages import BODY_DIGEST, OUTBOX_LIMIT, Settled, Verdict

_CODES = tuple(Verdict)
_UNKNOWN = bytes(BODY_DIGEST)
"""Of a body that was settled before digests were kept."""
MOST = 64
"""Outboxes of one device that are remembered; a broken or hostile one must not fill the memory with new ones."""
EACH = 4
"""Outboxes of all devices together, times how many devices there may be."""
_LOOKED_AT = 64
"""Outboxes that are looked at, longest silent first, for one that can be forgotten."""


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
    bodies: bytearray = field(default_factory=bytearray)
    """The digests of the bodies of the same, one after the other."""
    base: int = 0
    """The newest version of which an update was accepted; 0 if none was. What comes again is of no newer one."""

    @property
    def decided(self) -> bool:
        """Whether anything was decided on, and not only said by its device."""
        return self.hi > self.gaps

    @property
    def busy(self) -> bool:
        """Whether an update is being decoded."""
        return self.claimed != self.hi

    def settle(self, seq: int, verdict: Verdict, body: bytes = b"") -> None:
        self.gaps += seq - self.hi - 1
        if seq != self.hi + 1:
            self.forget_verdicts()
        self.hi = seq
        self.claimed = max(self.claimed, seq)
        self.codes.append(_CODES.index(verdict))
        self.bodies += body or _UNKNOWN
        del self.codes[:-OUTBOX_LIMIT]
        del self.bodies[: -OUTBOX_LIMIT * BODY_DIGEST]

    def forget_verdicts(self) -> None:
        """Forget those that are remembered: what is settled next does not follow on them."""
        self.codes.clear()
        self.bodies.clear()

    def repeat(self, seq: int) -> tuple[Settled, ...]:
        """What a settled seq is answered with when it comes again; nothing if its verdict is forgotten: hi says it."""
        place = len(self.codes) - 1 - (self.hi - seq)
        if not 0 <= place < len(self.codes):
            return ()
        body = bytes(self.bodies[place * BODY_DIGEST : (place + 1) * BODY_DIGEST])
        verdict = _CODES[self.codes[place]]
        return (Settled(seq=seq, verdict=verdict, repeat=True, body=b"" if body == _UNKNOWN else body),)

    def verdicts(self, first: int) -> tuple[Settled, ...]:
        """The verdicts that are remembered from a seq on, as repeats."""
        seqs = range(max(first, self.hi - OUTBOX_LIMIT + 1), self.hi + 1)
        return tuple(settled for seq in seqs for settled in self.repeat(seq))


class Outboxes:
    """All of them, by device and identity, those that were decided on longest ago first.

    What is full forgets. First an outbox of which nothing was accepted: what comes of it again is refused again, or
    taken for the first time. Then one whose accepted updates are all of versions that are gone: again, they are stale.
    So names that cost nothing never keep a device out.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._known: dict[tuple[str, int], TrackedOutbox] = {}
        self._barren: dict[tuple[str, int], None] = {}
        """Those of which nothing was accepted, the oldest first."""
        self._of: dict[str, dict[int, None]] = {}
        """The numbers of each device's."""

    @property
    def devices(self) -> int:
        """How many devices they are of."""
        return len(self._of)

    def get(self, device: str, number: int) -> TrackedOutbox | None:
        return self._known.get((device, number))

    def settle(self, device: str, number: int, seq: int, verdict: Verdict, base: int, *, body: bytes = b"") -> None:
        """Take a verdict of the journal."""
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

    def raised(self, device: str, number: int, first: int, oldest_base: int = 0) -> TrackedOutbox | None:
        """The outbox, with all that the device no longer holds counted as settled; None where there is no room.

        `oldest_base` is the oldest version of which an update may still be taken.
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
        """Forget what must be forgotten for one more outbox of this device; whether there is room for it then."""
        mine = [(device, number) for number in self._of.get(device, ())]
        while (alone := len(mine) >= MOST) or self._full(new=not mine):
            name = None if alone else self._first(self._barren, oldest_base) or self._first(self._known, oldest_base)
            # A board without a disk begins an outbox at each start. The one that was silent longest is gone: no board
            # that has it was heard through all the starts since.
            name = (
                name or self._first(mine, oldest_base) or next((one for one in mine if not self._known[one].busy), None)
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
        """The first of a few that nothing is lost with."""
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
        """Those that were decided on: what a device only said of itself is not remembered for it."""
        return [[*name, box.hi, box.gaps, bytes(box.codes)] for name, box in self._known.items() if box.decided]

    def bases(self) -> list[int]:
        """The newest version that each of those has an update of, in their order."""
        return [box.base for box in self._known.values() if box.decided]

    def bodies(self) -> list[bytes]:
        """The digests of the bodies of the verdicts of each of those."""
        return [bytes(box.bodies) for box in self._known.values() if box.decided]

    def load(self, state: Iterable[Any], bases: Iterable[int], bodies: Iterable[bytes] = ()) -> None:
        """Take up what was dumped; earlier checkpoints have no digests."""
        self._known.clear()
        self._barren.clear()
        self._of.clear()
        digests = chain(bodies, repeat(b""))
        for (device, number, hi, gaps, codes), base, body in zip(state, bases, digests, strict=False):
            if hi > gaps:  # earlier checkpoints have some that were never decided on
                known = bytearray(body or _UNKNOWN * len(codes))
                self._add(device, number, TrackedOutbox(hi, hi, gaps, bytearray(codes), known, base))
