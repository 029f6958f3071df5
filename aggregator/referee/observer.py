"""Checks every message of a device by the rules that always hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from midge.aggregator.referee.model import RefereedModel
from midge.aggregator.referee.rules import Notebook
from midge.wire import chunks, codecs, frames, messages
from midge.wire.errors import WireError
from midge.wire.messages import Chunk, DeviceState, Fetch, Hello, Report, Statistics, Update
from midge.wire.messages.proofs import Prove
from midge.wire.schema import Vector
from midge.wire.topics import Topics

Said = Update | Chunk | Fetch | Statistics | Prove | Hello | Report
_LATE = 2.0
"""Seconds after a receipt in which settled updates may still be in transit."""


@dataclass(frozen=True, slots=True)
class HeardMessage:
    """One message of the device."""

    message: Said
    body: bytes
    at: float
    delta: Vector | None = None
    """The delta of a whole update."""


@dataclass(slots=True)
class SentUpdate:
    """An update as it was first sent."""

    update: Update
    body: bytes


@dataclass(slots=True)
class Observer:
    """The observer of one device."""

    topics: Topics
    device: str
    notebook: Notebook
    model: RefereedModel
    chunk: int = 2**18
    """Bytes of a chunk's body, as announced."""
    digests: dict[int, list[bytes]] = field(default_factory=dict)
    """Announced digests of each version, right or wrong ones."""
    outbox: int | None = None
    sent: dict[int, SentUpdate] = field(default_factory=dict)
    """Updates of the current outbox, by seq."""
    first: int = 1
    settled: Mapping[int, float] = field(default_factory=dict)
    """When each seq was first settled."""
    ours: set[bytes] = field(default_factory=set)
    """The referee's own messages on the device's status topic."""

    def hear(self, topic: str, payload: bytes, now: float) -> HeardMessage | None:
        """Check a message, and return it if it can be used."""
        if not payload or payload in self.ours:
            return None
        try:
            origin = self.topics.origin(topic)
        except WireError as error:
            self.notebook.failed("topics", str(error))
            return None
        self.notebook.passed("topics", "its topics are its own")
        try:
            message, body = self._read(origin.sort, payload)
        except WireError as error:
            self.notebook.failed("frames", f"a message on {topic} cannot be read: {error}")
            return None
        self.notebook.passed("frames", "all of its messages could be read")
        delta = None
        match message:
            case Hello():
                self._greeted(message)
            case Update():
                delta = self._updated(message, bytes(body), now)
            case Chunk() if len(body) > self.chunk:
                self.notebook.failed("chunk size", f"a chunk of {len(body)} bytes; {self.chunk} were announced")
            case _:
                pass
        return HeardMessage(message, bytes(body), now, delta)

    def _read(self, sort: str, payload: bytes) -> tuple[Said, memoryview]:
        match sort:
            case "status":
                return messages.decode(Hello, payload)
            case "report":
                return messages.decode(Report, payload)
        return messages.decode_update(payload)

    def _greeted(self, hello: Hello) -> None:
        if hello.state is not DeviceState.READY or hello.to:
            return
        if self.outbox is None or hello.outbox != self.outbox:
            self.outbox, self.first = hello.outbox, hello.first
            self.sent, self.settled = {}, {}
        if hello.first > hello.next:
            self.notebook.failed("greeting", f"first {hello.first} is beyond next {hello.next}")

    def _updated(self, update: Update, body: bytes, now: float) -> Vector | None:
        book, number = self.notebook, update.seq
        if update.outbox != self.outbox:
            book.failed("seq", f"an update of outbox {update.outbox}, and it greeted with {self.outbox}")
            return None
        self._numbered(update, now)
        before = self.sent.get(number)
        if before is not None and (
            before.update.sha256 != update.sha256 or (before.body and body and before.body != body)
        ):
            book.failed("resending", f"other bytes under seq {number} than when it was sent first")
        if number in self.settled and now > self.settled[number] + _LATE:
            book.failed("settling", f"seq {number} was sent again after it was settled")
        if before is None or (body and not before.body):
            self.sent[number] = SentUpdate(update, body)
        self._based(update)
        if update.kind == "offer":
            size = chunks.part_size(update.size, update.parts)
            if size > self.chunk:
                book.failed("chunk size", f"chunks of {size} bytes are offered; {self.chunk} were announced")
            return None
        if len(body) > self.chunk:
            book.failed("chunk size", f"an update of {len(body)} bytes was sent whole; {self.chunk} were announced")
        return self.decoded(update, body)

    def _numbered(self, update: Update, now: float) -> None:
        book = self.notebook
        newest = max(self.sent, default=update.first - 1)
        if update.seq > newest + 1:
            book.failed("seq", f"seq {update.seq} follows on {newest}")
        elif update.first < self.first:
            book.failed("seq", f"first fell from {self.first} to {update.first}")
        elif update.first > update.seq:
            book.failed("seq", f"first {update.first} is beyond its own seq {update.seq}")
        else:
            book.passed("seq", f"seq has come to {update.seq} without a gap")
        self.first = max(self.first, update.first)
        if update.seq not in self.sent:
            self._forgotten(update, now)

    def _forgotten(self, update: Update, now: float) -> None:
        """Check that `first` of a new update passes what was settled before it was sent."""
        held = [seq for seq in self.settled if seq >= update.first]
        late = [seq for seq in held if now > self.settled[seq] + _LATE]
        if late and update.seq not in self.settled:
            self.notebook.failed("settling", f"seq {late[0]} was settled, and first is still {update.first}")
        elif self.settled and not held:
            self.notebook.passed("settling", f"first is {update.first} once what is before is settled")

    def _based(self, update: Update) -> None:
        """Check its base against the announced ones."""
        book, base = self.notebook, update.base
        if update.lineage != self.model.name or update.generation != 0:
            book.failed("base", "lineage or generation are not those that were announced")
        elif base not in self.digests:
            book.failed("base", f"its base {base} was never announced")
        elif update.base_digest and update.base_digest[:8] not in [each[:8] for each in self.digests[base]]:
            book.failed("base", f"base_digest is not that of version {base}")
        else:
            book.passed("base", "base and base_digest are those of announced versions")

    def decoded(self, update: Update, body: bytes) -> Vector | None:
        """The delta of a whole body; None if it is invalid."""
        if len(body) != update.size or not chunks.fits(body, update.sha256):
            self.notebook.failed("delta", f"{len(body)} bytes are not what size and sha256 say")
            return None
        if update.sealed:
            self.notebook.failed("delta", "it is sealed, and no key to seal to was announced")
            return None
        try:
            delta = codecs.decode_delta(body, self.model.schema, update.codec, update.tensors)
        except WireError as error:
            self.notebook.failed("delta", f"{update.codec}: {error}")
            return None
        self.notebook.passed("delta", f"{len(body)} bytes in {update.codec} decode")
        return delta


def encoded_with(message: object, more: Mapping[object, object]) -> bytes:
    """A message with names as text, and with unknown fields."""
    assert hasattr(message, "model_dump")
    fields = {**message.model_dump(exclude_defaults=True, by_alias=True), **more}
    kind = getattr(message, "kind", None)
    packed = frames.pack({**({} if kind is None else {"kind": kind}), **fields})
    return len(packed).to_bytes(2, "little") + packed
