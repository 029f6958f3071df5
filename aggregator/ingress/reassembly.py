"""Puts updates together that come in chunks, under a budget of memory."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from midge.wire.chunks import Assembly, part_size
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, Grant, Settled, Update, Verdict

WINDOW = 8
"""Chunks that a device may have under way."""
LARGE = 2**20
"""Bytes above which it is told how far an update is."""
PATIENCE = 120.0
"""Seconds after which an assembly whose device fell silent makes room for another: a link that comes back within two
minutes goes on with what is here."""
_NO_ROOM, _WRONG = 5.0, 60.0
"""Seconds after which a device offers again: room may be made at any time, a wrong offer needs another program."""


@dataclass(slots=True)
class Assembling:
    """An offered update whose chunks are coming in."""

    update: Update
    assembly: Assembly
    granted: set[int]
    touched: float


@dataclass(frozen=True, slots=True)
class Whole:
    """An update of which every chunk has come. Its checksum has not been looked at."""

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
        """Called with a device, and how many bytes of its update are here, twenty times for a large one."""
        self._assembling: dict[str, Assembling] = {}

    def grant(self, device: str, update: Update, chunk: int, now: float) -> Grant | Settled:
        """Make room for an offered update and say which chunks to send, or why not now.

        Args:
            device: that offers.
            update: its header.
            chunk: bytes of a chunk's body at most.
            now: seconds of any clock that never goes back.
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
            # Reserved before the first byte comes: otherwise many half updates could fill the memory, and none end.
            if not self._has_room(update.size, now):
                return None
            size = part_size(update.size, update.parts)
            if size > chunk:
                raise WireError(f"chunks of {size} bytes; at most {chunk} are taken")
            assembly = self._assembly(update.size, size, update.sha256, limit=self._budget)
            if assembly.parts != update.parts:
                raise WireError(f"{update.size} bytes do not make {update.parts} parts")
            current = self._assembling[device] = Assembling(update, assembly, set(), now)
        current.touched = now
        parts = current.assembly.missing(WINDOW)
        current.granted = set(parts)
        return Grant(seq=current.update.seq, parts=parts)

    def _has_room(self, size: int, now: float) -> bool:
        for device, item in list(self._assembling.items()):
            if now - item.touched > PATIENCE:
                del self._assembling[device]
        return size + sum(item.assembly.size for item in self._assembling.values()) <= self._budget

    def add(self, device: str, chunk: Chunk, body: memoryview, now: float) -> Whole | Update | None:
        """Take a chunk in. Returns the update if it is whole, its header if more chunks may come, or nothing yet.

        Raises:
            WireError: there is no such chunk of it.
        """
        item = self._assembling.get(device)
        if item is None or (item.update.outbox, item.update.seq) != (chunk.outbox, chunk.seq):
            self._dropped["chunk of nothing"] += 1  # as after a restart: the device offers again by itself
            return None
        item.touched = now
        assembly = item.assembly
        before = assembly.here
        assembly.add(chunk.part, body)
        here, total = assembly.here, assembly.size
        if total > LARGE and 20 * before // total != 20 * here // total:
            self._progress(device, here, total)
        item.granted.discard(chunk.part)
        if assembly.complete:
            del self._assembling[device]
            return Whole(item.update, assembly.whole())
        # The next window when this one is here: one at a time bounds what a lost link can leave under way.
        return None if item.granted else item.update

    def forget(self, device: str) -> None:
        """Drop what has come of a device's update."""
        self._assembling.pop(device, None)


def _identity(update: Update) -> tuple[int, int, bytes, int]:
    """What an offer is of, and how it is cut: over another link the device may cut it otherwise."""
    return update.outbox, update.seq, update.sha256, update.parts
