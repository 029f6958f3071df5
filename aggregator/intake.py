"""What came from devices, made into events: reading, bodies by key, and the assembly of chunks."""

from itertools import count

from aggregator import events as ev
from aggregator.engine import split_moments
from aggregator.reassembly import UpdateReassembler, Whole
from wire import chunks
from wire.messages import Chunk, Fetch, Statistics, ToAggregator, Update


class Intake:
    """Bodies that wait for a decision, and updates that come in chunks."""

    def __init__(self, reassembler: UpdateReassembler) -> None:
        self.reassembler = reassembler
        self._keys = count(1)
        self._bodies: dict[int, memoryview] = {}

    def body(self, key: int) -> memoryview:
        return self._bodies[key]

    def replace(self, key: int, body: memoryview) -> None:
        """Put another body in the place of one: what was in a seal."""
        self._bodies[key] = body

    def drop(self, key: int) -> None:
        self._bodies.pop(key, None)

    def _keep(self, body: memoryview) -> int:
        key = next(self._keys)
        self._bodies[key] = body
        return key

    def take(self, device: str, message: ToAggregator, body: memoryview, now: float) -> ev.Event | Update | None:
        """A message as an event; or the update of which more chunks may come, or nothing yet.

        Raises:
            WireError: it does not keep the protocol.
        """
        match message:
            case Update(kind="update"):
                return ev.Arrived(device, message, self._keep(body))
            case Update():
                return ev.Offered(device, message)
            case Chunk():
                come = self.reassembler.add(device, message, body, now)
                # Its checksum is looked at where a straight update's is: when it is decoded.
                return ev.Arrived(device, come.update, self._keep(come.body)) if isinstance(come, Whole) else come
            case Fetch():
                return ev.FetchAsked(device, message)
            case Statistics():
                split_moments(body, message.names)
                return ev.StatisticsArrived(device, message, self._keep(body), chunks.checksum(body))
