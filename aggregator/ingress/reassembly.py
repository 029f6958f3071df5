"""Reassembly of updates that arrive in chunks, within a memory budget.

An offer reserves a window of chunks, and room for the whole update once a window has arrived: so a device that only
offers holds little, and one that sends is not interrupted for lack of room. If there is no room, the slowest update is
dropped if it is slower than a working link should be; and for a device with an accepted update, those of unknown
devices.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from midge.wire.chunks import Assembly, part_size
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Grant, Settled, Update, Verdict

WINDOW = 8
"""Most chunks of a device in flight."""
LARGE = 2**20
"""Bytes above which the progress of an update is reported."""
YOUNG = 10.0
"""Seconds for which a new assembly is never dropped."""
SLOW = 600.0
"""Seconds within which an update must be expected to be complete, or it is dropped if another needs the room."""
SMALLEST = 64
"""Least bytes of a chunk, if there are more chunks than this: the bookkeeping of each must not outweigh it."""
_LEAST, _TENSOR = 2048, 40
"""Memory of an assembly in addition to its chunks, in bytes, and for each tensor in its header."""
_NO_ROOM, _WRONG = 5.0, 60.0
"""Seconds after which a device may offer again: room may appear at any time, a wrong offer needs another program."""

DISPLACED = "its incomplete update was dropped for another, because it was too slow: offer it again"
"""The `trouble` for its device."""


@dataclass(slots=True)
class Assembling:
    """An offered update whose chunks are arriving."""

    update: Update
    assembly: Assembly
    granted: set[int]
    touched: float
    opened: float
    reserved: int = 0

    def pace(self, now: float) -> float:
        """Fraction received per second."""
        return self.assembly.received / max(1, self.assembly.size) / max(1e-9, now - self.opened)


@dataclass(frozen=True, slots=True)
class Whole:
    """An update with all chunks. Its checksum has not been verified."""

    update: Update
    body: memoryview


class UpdateReassembler:
    """At most one update of each device, and at most `budget` bytes of all."""

    def __init__(
        self,
        *,
        budget: int,
        dropped: Counter[str],
        progress: Callable[[str, int, int], None] = lambda _device, _done, _total: None,
        assembly: type[Assembly] = Assembly,
    ) -> None:
        self._budget, self._dropped, self._assembly = budget, dropped, assembly
        self._progress = progress
        """Called with a device and the bytes received of its update, twenty times for a large one."""
        self._assembling: dict[str, Assembling] = {}
        self.known: Callable[[str], bool] = lambda _device: False
        """Whether an update of a device was ever accepted."""
        self.displaced: Callable[[str, float], None] = lambda _device, _now: None
        """Called with a device whose incomplete update was dropped for another, and the time."""

    def grant(self, device: str, update: Update, chunk: int, now: float) -> Grant | Settled:
        """Reserve room for an offered update; return the chunks to send, or a temporary refusal.

        Args:
            device: the sender.
            update: its header.
            chunk: most bytes of a chunk's body.
            now: seconds of a monotonic clock.
        """
        try:
            grant = self._open(device, update, chunk, now)
            why, again = "no room for it just now", _NO_ROOM
        except WireError as error:
            grant, why, again = None, str(error)[:400], _WRONG
        return grant or Settled(seq=update.seq, verdict=Verdict.BUSY, why=why, retry_after=again)

    def _open(self, device: str, update: Update, chunk: int, now: float) -> Grant | None:
        current = self._assembling.get(device)
        if current is None or _identity(current.update) != _identity(update):
            self._assembling.pop(device, None)
            size = part_size(update.size, update.parts)
            if size > chunk:
                raise WireError(f"chunks of {size} bytes; at most {chunk} are allowed")
            if size < SMALLEST < update.parts:
                raise WireError(f"{update.parts} chunks of {size} bytes; {SMALLEST} are the least")
            assembly = self._assembly(update.size, size, update.sha256, limit=self._budget)
            if assembly.parts != update.parts:
                raise WireError(f"{update.size} bytes do not make {update.parts} parts")
            current = Assembling(update, assembly, set(), now, now)
        parts = current.assembly.missing(WINDOW)
        # Reserved before the first byte arrives: otherwise many incomplete updates could fill the memory, and none
        # could be completed.
        window = WINDOW * part_size(update.size, update.parts)
        wanted = update.size if current.assembly.received >= window else min(update.size, window)
        wanted = max(wanted, _LEAST) + _TENSOR * len(update.tensors or ())
        if not self._has_room(device, wanted, now):
            return None
        self._assembling[device] = current
        current.touched, current.granted, current.reserved = now, set(parts), wanted
        return Grant(seq=current.update.seq, parts=parts)

    def _has_room(self, device: str, wanted: int, now: float) -> bool:
        """Whether a device's update has this much room, after dropping others if necessary."""
        others = {name: item for name, item in self._assembling.items() if name != device}
        room = self._budget - sum(item.reserved for item in others.values())
        if room >= wanted:
            return True
        known = self.known(device)
        slow = [
            name
            for name, item in others.items()
            if (now - item.opened > YOUNG and item.pace(now) < 1 / SLOW) or (known and not self.known(name))
        ]
        slow.sort(key=lambda name: (self.known(name), others[name].pace(now), others[name].touched))
        for name in slow:
            self._dropped["half an update, for another"] += 1
            room += self._assembling.pop(name).reserved
            self.displaced(name, now)
            if room >= wanted:
                return True
        return False

    def awaits(self, device: str, chunk: Chunk) -> bool:
        """Whether the update of a chunk is being reassembled."""
        item = self._assembling.get(device)
        return item is not None and (item.update.outbox, item.update.seq) == (chunk.outbox, chunk.seq)

    def add(self, device: str, chunk: Chunk, body: memoryview, now: float) -> Whole | Update | None:
        """Add a chunk. Returns the update if it is complete, its header if more chunks may be granted, or nothing.

        Raises:
            WireError: it has no such chunk.
        """
        item = self._assembling.get(device)
        if item is None or (item.update.outbox, item.update.seq) != (chunk.outbox, chunk.seq):
            self._dropped["chunk of nothing"] += 1  # after a restart, for example: the device offers it again
            return None
        item.touched = now
        assembly = item.assembly
        before = assembly.received
        assembly.add(chunk.part, body)
        here, total = assembly.received, assembly.size
        if total > LARGE and 20 * before // total != 20 * here // total:
            self._progress(device, here, total)
        item.granted.discard(chunk.part)
        if assembly.complete:
            del self._assembling[device]
            return Whole(item.update, assembly.whole())
        # The next window follows this one: a single window bounds what a lost link leaves in flight.
        return None if item.granted else item.update

    def forget(self, device: str) -> None:
        """Drop the received chunks of a device."""
        self._assembling.pop(device, None)


def _identity(update: Update) -> tuple[int, int, bytes, int]:
    """Identity of an offer, and its chunking, which may change with the device's link."""
    return update.outbox, update.seq, update.sha256, update.parts
