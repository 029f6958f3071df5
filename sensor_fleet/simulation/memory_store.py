"""An in-memory store: what a running engine reads again, and all that a restart recovers from."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from midge.aggregator.core import records as rec
from midge.aggregator.model.model import Frame
from midge.aggregator.store.store import Checkpoint, Published
from midge.wire import codecs, frames
from midge.wire.messages import Verdict
from midge.wire.noise import rounded_gaussian
from midge.wire.schema import Schema, Vector


@dataclass(frozen=True, slots=True)
class _Entry:
    record: rec.Record
    body: bytes


class MemoryStore:
    """The journal, the newest checkpoint and the frames of one virtual aggregator.

    Args:
        schema: of the model.
        seed: of the privacy noise.
        durable: whether to keep all that a restart needs; otherwise only noise and statistics are kept.
    """

    def __init__(self, schema: Schema, seed: int, *, durable: bool) -> None:
        self._schema, self.durable = schema, durable
        self.lineage = b""
        self._rng = np.random.default_rng((seed, 3))
        self._entries: dict[int, _Entry] = {}
        self._frames: dict[tuple[int, int], bytes] = {}
        self._accepted: set[tuple[str, int, int]] = set()
        self._checkpoint = b"", b""
        self._newest = self._checked = 0
        """LSNs of the newest record and of the newest checkpoint."""

    def noise(self, deviation: float) -> bytes:
        """Draw the noise of a step's record, as its body: reproducible, so it protects no one."""
        return rounded_gaussian(deviation, self._schema.size, self._rng.bytes).astype("<i4").tobytes()

    def commit(self, record: rec.Record, body: bytes, delta: Vector | None = None) -> None:
        """Append a record. An accepted update is stored as float32 values, to save encoding it by its codec.

        Raises:
            AssertionError: this update was already accepted.
        """
        if self.durable and isinstance(record, rec.UpdateRecord) and record.verdict == Verdict.ACCEPTED:
            assert delta is not None
            identity = record.device, record.outbox, record.seq
            if identity in self._accepted:
                raise AssertionError(f"{identity} was accepted twice")
            self._accepted.add(identity)
            record = replace(record, codec="float32")
            body = codecs.encode_delta(delta, self._schema, record.codec, record.tensors)
        self._newest = record.lsn
        if self.durable or body:
            self._entries[record.lsn] = _Entry(record, body)

    @property
    def since_checkpoint(self) -> int:
        """Number of records after the newest checkpoint."""
        return self._newest - self._checked

    # ------------------------------------------------------------------- read again

    def entries(self, after: int) -> Iterator[_Entry]:
        """The journal records after a checkpoint, in order."""
        return (entry for lsn, entry in self._entries.items() if lsn > after)

    def record(self, lsn: int) -> rec.Record:
        return self._entries[lsn].record

    def body(self, lsn: int) -> bytes:
        body = self._entries[lsn].body
        if not self.durable and isinstance(self._entries[lsn].record, rec.StepRecord):
            del self._entries[lsn]
        return body

    def checkpoint(self, checkpoint: Checkpoint, *, oldest_body: int, oldest_base: int) -> None:
        """Replace the checkpoint, and drop what no restart needs any more."""
        plain = frames.pack({"values": checkpoint.values, "core": checkpoint.core})
        self._checkpoint, self._checked = (pickle.dumps(checkpoint.arrays), plain), checkpoint.lsn
        needed = min(checkpoint.lsn + 1, oldest_body)
        self._entries = {lsn: entry for lsn, entry in self._entries.items() if lsn >= needed}
        self._frames = {place: data for place, data in self._frames.items() if place[0] >= oldest_base}

    def newest_checkpoint(self) -> Checkpoint:
        arrays, packed = self._checkpoint
        plain = frames.unpack(packed)
        return Checkpoint(self._checked, pickle.loads(arrays), plain["values"], plain["core"])  # noqa: S301 - our own

    # ----------------------------------------------------------------------- frames

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        self._frames |= {(frame.version, frame.span): frame.data for frame, _ in new}

    def note_release(self, record: rec.ReleaseRecord, generation: int, digest: bytes) -> None:
        """Nothing: no device asks a virtual aggregator for a proof."""

    def published(self) -> list[Published]:
        return [Published(version, span, len(data), 1, True) for (version, span), data in self._frames.items()]

    def frame(self, version: int, span: int) -> bytes | None:
        return self._frames.get((version, span))
