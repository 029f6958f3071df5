"""What came from devices, made into events: reading, bodies by key, and the assembly of chunks under a budget."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from aggregator import events as ev
from aggregator.engine import split_moments
from wire import chunks, messages
from wire.chunks import Assembly
from wire.errors import WireError
from wire.messages import Chunk, Fetch, Grant, Statistics, ToAggregator, Update

WINDOW = 8
"""Chunks that a device may have under way."""
LARGE = 2**20
"""Bytes above which it is told how far an update is."""


@dataclass(slots=True)
class Assembling:
    """An offered update whose chunks are coming in."""

    update: Update
    assembly: Assembly
    granted: set[int]
    touched: float


@dataclass(frozen=True, slots=True)
class Further:
    """More chunks of an update that is coming in may be sent."""

    device: str
    outbox: int
    grant: Grant


class Intake:
    """Bodies that wait for a decision, and updates that come in chunks."""

    def __init__(
        self,
        *,
        budget: int,
        dropped: Counter[str],
        patience: float = 120.0,
        progress: Callable[[str, int, int], None] = lambda _device, _done, _total: None,
    ) -> None:
        self._progress = progress
        """Called with a device, and how many bytes of its update are here, twenty times for a large one."""
        self._keys = count(1)
        self._bodies: dict[int, memoryview] = {}
        self._budget = budget
        """Bytes that assemblies may take in all."""
        self._patience = patience
        """Seconds after which an assembly whose device fell silent makes room for another."""
        self._assembling: dict[str, Assembling] = {}
        self._dropped = dropped

    def body(self, key: int) -> memoryview:
        return self._bodies[key]

    def replace(self, key: int, body: memoryview) -> None:
        """Put another body in the place of one: what was in a seal."""
        self._bodies[key] = body

    def forget(self, device: str) -> None:
        """Drop what has come of a device's update in chunks."""
        self._assembling.pop(device, None)

    def drop(self, key: int) -> None:
        self._bodies.pop(key, None)

    def _keep(self, body: memoryview) -> int:
        key = next(self._keys)
        self._bodies[key] = body
        return key

    def read(self, device: str, payload: bytes, now: float) -> ev.Event | Further | None:
        """One message from an update topic: an event, or a further grant of chunks to send, or nothing yet.

        Raises:
            WireError: it does not keep the protocol.
        """
        return self.take(device, *messages.decode_update(payload), now)

    def take(self, device: str, message: ToAggregator, body: memoryview, now: float) -> ev.Event | Further | None:
        """The same of a message whose header has been read.

        Raises:
            WireError: it does not keep the protocol.
        """
        match message:
            case Update(kind="update"):
                return ev.Arrived(device, message, self._keep(body))
            case Update():
                return ev.Offered(device, message)
            case Chunk():
                return self._chunk(device, message, body, now)
            case Fetch():
                return ev.FetchAsked(device, message)
            case Statistics():
                split_moments(body, message.names)
                return ev.StatisticsArrived(device, message, self._keep(body), chunks.checksum(body))

    # -------------------------------------------------------------------- chunks

    def open(self, device: str, update: Update, chunk: int, now: float) -> Grant | None:
        """Make room for an offered update and say which chunks to send; None where there is no room now."""
        current = self._assembling.get(device)
        same = current is not None and _identity(current.update) == _identity(update)
        if current is None or not same:
            self._assembling.pop(device, None)
            if not self._make_room(update.size, now):
                return None
            size = max(1, -(-update.size // update.parts))
            if size > chunk:
                raise WireError(f"chunks of {size} bytes; at most {chunk} are taken")
            assembly = Assembly(update.size, size, update.sha256, limit=self._budget)
            if assembly.parts != update.parts:
                raise WireError(f"{update.size} bytes do not make {update.parts} parts")
            current = self._assembling[device] = Assembling(update, assembly, set(), now)
        current.touched = now
        return self._grant(current)

    def _make_room(self, size: int, now: float) -> bool:
        for device, item in list(self._assembling.items()):
            if now - item.touched > self._patience:
                del self._assembling[device]
        return size + sum(item.assembly.size for item in self._assembling.values()) <= self._budget

    def _grant(self, item: Assembling) -> Grant:
        parts = item.assembly.missing(WINDOW)
        item.granted = set(parts)
        return Grant(seq=item.update.seq, parts=parts)

    def _chunk(self, device: str, chunk: Chunk, body: memoryview, now: float) -> ev.Event | Further | None:
        item = self._assembling.get(device)
        if item is None or (item.update.outbox, item.update.seq) != (chunk.outbox, chunk.seq):
            self._dropped["chunk of nothing"] += 1
            return None
        item.touched = now
        before = item.assembly.here
        item.assembly.add(chunk.part, body)
        self._show(device, before, item.assembly.here, item.assembly.size)
        item.granted.discard(chunk.part)
        if item.assembly.complete:
            del self._assembling[device]
            # Its checksum is looked at where a straight update's is: when it is decoded.
            return ev.Arrived(device, item.update, self._keep(item.assembly.whole()))
        return None if item.granted else Further(device, chunk.outbox, self._grant(item))

    def _show(self, device: str, before: int, here: int, total: int) -> None:
        if total > LARGE and 20 * before // total != 20 * here // total:
            self._progress(device, here, total)


def _identity(update: Update) -> tuple[int, int, bytes, int]:
    """What an offer is of, and how it is cut: over another link the device may cut it otherwise."""
    return update.outbox, update.seq, update.sha256, update.parts
