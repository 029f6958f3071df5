"""Applies journaled decisions to the model: live, and again when a restart replays the journal."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.aggregator.core import events as ev
from midge.aggregator.core import records as rec
from midge.aggregator.core.core import AggregatorCore
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.model.consensus import Consensus, direction, sketch
from midge.aggregator.model.group_means import outlying
from midge.aggregator.model.model import REGISTERED, Frame, Model
from midge.aggregator.model.reducer import Contribution, distances
from midge.aggregator.model.statistics import NEAR, ChannelFinding, Names, Sent, examine, pooled
from midge.aggregator.model.unmasking import Opened
from midge.aggregator.store.store import Checkpoint, Store, StoreError, StoreFull
from midge.storage.failpoints import failpoint
from midge.wire.errors import WireError
from midge.wire.masking import covered
from midge.wire.messages import Moment, Update, Verdict
from midge.wire.messages.masking import Masking
from midge.wire.moments import BYTES_PER_CHANNEL, MAX_VALUE, Moments
from midge.wire.schema import Schema, Vector

log = logging.getLogger("aggregator")

_CONSENSUS = "consensus"


class Engine:
    """The model, its store, and the decoded updates and sums that wait for their step."""

    def __init__(self, model: Model, store: Store, consensus: Consensus | None = None) -> None:
        self.model = model
        self.store = store
        self._consensus = consensus or Consensus()
        self._waiting: dict[int, Contribution] = {}
        self._unwritten: list[Frame] = []

    @classmethod
    def of(cls, checkpoint: Checkpoint, schema: Schema, store: Store) -> "Engine":
        """Make an engine from a checkpoint."""
        arrays, values = checkpoint.arrays, checkpoint.values
        model = Model.load(schema, arrays, values)
        return cls(model, store, Consensus.load(arrays, values.get(_CONSENSUS, ())))

    def decode(self, update: Update, body: memoryview, masking: Masking | None) -> tuple[Vector | None, float]:
        """Decode the delta of an update, with its L2 norm; None and 0 if it is masked, after a check of its form.

        Raises:
            WireError: the body does not match the header or the plan.
        """
        if masking is None:
            return self.model.decode(update, body)
        covered(update, body, self.model.schema.size, masking)
        return None, 0.0

    def direction(self, strategy: Strategy, delta: Vector) -> Vector | None:
        """The sketch of a delta; None if the strategy does not need it."""
        if not strategy.robust:
            return None
        if not self._consensus.follows:
            self._consensus.released(self.model.version, sketch(self.model.x))
        return direction(delta)

    def agreement(self, direction: Vector | None) -> float:
        """The cosine of a sketch with the consensus direction; 0 if unknown."""
        return self._consensus.agreement(direction)

    def hold(self, record: rec.UpdateRecord, delta: Vector, direction: Vector | None) -> None:
        """Keep a decoded update, and the sketch of its direction, for its step."""
        self._waiting[record.lsn] = self._as_contribution(record, delta)
        if direction is not None:
            # A partial delta says nothing about the other tensors, so it is not extrapolated to newer versions.
            base = record.base if record.tensors is None else None
            self._consensus.take(record.device, direction, base)

    def hold_again(self, record: rec.UpdateRecord, strategy: Strategy) -> None:
        """Keep an update that was accepted before a restart; without a sketch it is decoded when needed."""
        if strategy.robust and record.verdict == Verdict.ACCEPTED:
            delta = self._redecode(record)
            self.hold(record, delta, self.direction(strategy, delta))

    def senders(self, record: rec.StepRecord) -> list[str]:
        """The devices of a step's updates, in its order; empty names for those decoded before a restart."""
        return [self._waiting[lsn].device if lsn in self._waiting else "" for lsn, _ in record.updates]

    def carry(self, record: rec.Record) -> list[Frame]:
        """Apply a record's decision; the frames of a release are in the store when this returns."""
        match record:
            case rec.StepRecord(combine="masked"):
                # One sum in place of its updates, whose weights are in it.
                self.model.apply(replace(record, updates=((0, 1.0),), combine="mean"), [self._mean(record.lsn)])
            case rec.StepRecord(combine="groups"):
                means = [self._waiting[lsn] if lsn in self._waiting else self._mean(lsn) for lsn in record.groups]
                # Equal weights: a group of few devices must not have less protection than another.
                weights = tuple((lsn, 1.0) for lsn in record.groups)
                self.model.apply(replace(record, updates=weights, combine="trimmed"), means)
                self._drop(record.groups)
            case rec.StepRecord():
                kind = "<i4" if record.clip else "<f4"
                noise = np.frombuffer(self.store.body(record.lsn), kind) if record.noise else None
                self.model.apply(record, [self.contribution(lsn) for lsn, _ in record.updates], noise)
                self._drop(lsn for lsn, _ in record.updates)
            case rec.DropRecord():
                self._drop(record.dropped)
            case rec.SumRecord():
                self._drop(lsn for lsn, _ in record.updates)
            case rec.FollowRecord():
                self.model.version = record.version
            case rec.FreezeRecord():
                self.model.freeze(self._pooled(record), keep=record.keep)
            case rec.GenerationRecord():
                self.model.keyframe = True
            case rec.RenormaliseRecord():
                self._consensus = Consensus()
            case rec.RegisterRecord():
                return [Frame(record.version, REGISTERED, self.store.body(record.lsn))]
            case rec.RollbackRecord():
                self._drop(record.dropped)
                self.model.roll_back(self.store.body(record.lsn))
                self._consensus = Consensus()
            case rec.ReleaseRecord():
                frames = self.model.release(record)
                if self._consensus.follows:
                    self._consensus.released(self.model.version, sketch(self.model.x))
                return frames
            case rec.ServeRecord():
                return [self.model.serve(record)]
            case _:
                pass
        return []

    def _drop(self, lsns: Iterable[int]) -> None:
        for lsn in lsns:
            self._waiting.pop(lsn, None)

    def forget(self, device: str) -> None:
        """Remove a device's cached delta and direction; its contribution to the model stays."""
        self.model.server.forget(device)
        self._consensus.forget(device)

    def replayed(self, frames: Sequence[Frame]) -> None:
        """Record frames that are not published now: after a power cut the store may lack those of a release."""
        self._unwritten += frames

    def write_replayed(self) -> None:
        """Make sure that the store has these frames.

        Raises:
            StoreFull: there is no room for them now; retry later.
        """
        if self._unwritten:
            self.store.add_frames((frame, 0) for frame in self._unwritten)
            self._unwritten.clear()

    def repair(self, core: AggregatorCore) -> None:
        """Rebuild damaged parts of the store from the others, before anything is published.

        Raises:
            StoreFull: there is no room for it now.
            StoreError: it cannot be written.
        """
        self.write_replayed()
        if self.store.checkpoint_damaged:
            self.checkpoint(core)
            log.warning("A checkpoint of record %d replaces the damaged one.", core.lsn)

    def contribution(self, lsn: int) -> Contribution:
        """The decoded update of a record."""
        if lsn in self._waiting:
            return self._waiting[lsn]
        record = self.store.record(lsn)
        assert isinstance(record, rec.UpdateRecord)
        return self._as_contribution(record, self._redecode(record))

    def _redecode(self, record: rec.UpdateRecord) -> Vector:
        return self.model.decode_again(self.store.body(record.lsn), record.codec, record.tensors)

    def _as_contribution(self, record: rec.UpdateRecord, delta: Vector) -> Contribution:
        item = self.model.contribution(delta, record.tensors, record.base, record.device)
        if record.accepted and item.averaged is not None:  # values are averaged, not summed
            item = replace(item, averaged=item.averaged / np.float32(record.mass))
        return item

    def total(self, record: rec.SumRecord) -> Vector:
        """The weighted sum of updates that a gateway sends on."""
        return self.model.total(record, [self.contribution(lsn) for lsn, _ in record.updates])

    def measure(self, lsns: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """The distance of these updates' deltas from the last combined delta, by lsn."""
        contributions = [self.contribution(lsn) for lsn in lsns]
        return tuple(zip(lsns, distances(contributions, self.model.server), strict=True))

    def outlying(self, groups: Sequence[int]) -> list[int]:
        """Those of these opened sums, by lsn, whose means lie far from the others. The means are kept for the step."""
        means = {lsn: self._mean(lsn) for lsn in groups}
        self._waiting |= means
        return [groups[place] for place in outlying([mean.delta for mean in means.values()])]

    def _mean(self, lsn: int) -> Contribution:
        """The mean of the masked updates of an opened sum."""
        opened = Opened.read(self.store.body(lsn))
        return self.model.contribution(opened.delta(self.store.lineage, self.model.schema.size), None, opened.base, "")

    def ticket(self, lsn: int) -> bytes:
        """The ticket of a masked update that waits."""
        record = self.store.record(lsn)
        assert isinstance(record, rec.UpdateRecord)
        return record.ticket

    def _sent(self, lsn: int) -> Sent:
        """A device's statistics."""
        record = self.store.record(lsn)
        assert isinstance(record, rec.StatisticsRecord)
        return Sent(record.device, split_moments(memoryview(self.store.body(lsn)), record.names))

    def examine(
        self, lsns: Sequence[int], asked: Sequence[Moment], *, factor: float | None, names: Names
    ) -> tuple[ev.Examined, ChannelFinding]:
        """Which of these statistics can be pooled, for the core, and all findings.

        Statistics with other names or channels than requested now are left out: the model's owner changed the request.
        """
        channels = {moment.name: moment.channels for moment in asked}
        every = [(lsn, self._sent(lsn)) for lsn in lsns]
        sent = [(lsn, one) for lsn, one in every if {n: m.count.size for n, m in one.moments.items()} == channels]
        finding = examine([one for _, one in sent], factor=factor, names=names)
        kept, near = tuple(sent[place][0] for place in finding.kept), 0.0 if factor is None else NEAR
        return ev.Examined(kept, finding.wait, finding.soon, near), finding

    def _pooled(self, record: rec.FreezeRecord) -> dict[str, npt.NDArray[Any]]:
        """Frozen tensors `{name}_mean` and `{name}_scale` from devices' moments, in the shapes of the schema."""
        devices = [self._sent(lsn).moments for lsn in record.statistics]
        shapes = {tensor.name: tensor.shape for tensor in self.model.schema.frozen}
        tensors: dict[str, npt.NDArray[Any]] = {}
        for name in devices[0]:
            moments = pooled([device[name] for device in devices], record.cap, record.near)
            for suffix, values in (("mean", moments.mean), ("scale", moments.scale())):
                tensor = f"{name}_{suffix}"
                tensors[tensor] = np.minimum(values, MAX_VALUE).astype(np.float32).reshape(shapes[tensor])
        return tensors

    def checkpoint(self, core: AggregatorCore) -> None:
        """Write a checkpoint of everything up to the last record."""
        arrays, values = self.model.dump()
        sketches, devices = self._consensus.dump()
        # So that a checkpoint can be identified even if the database is lost.
        about = {"lineage": self.store.lineage, "schema": self.model.schema.packed()}
        registered = frozenset(core.registry.versions)
        self.store.checkpoint(
            Checkpoint(core.lsn, arrays | sketches, values | {_CONSENSUS: devices} | about, core.dump(), registered),
            oldest_body=core.oldest_needed,
            oldest_base=core.oldest_base,
        )


def split_moments(body: memoryview, names: Sequence[tuple[str, int]]) -> dict[str, Moments]:
    """A device's named moments, one after another in the body.

    Raises:
        WireError: they do not fill it, or are invalid.
    """
    moments = {}
    offset = 0
    for name, channels in names:
        end = offset + channels * BYTES_PER_CHANNEL
        moments[name] = Moments.from_bytes(body[offset:end], channels)
        offset = end
    if offset != len(body):
        raise WireError("bytes follow the moments")
    return moments


def recover(core: AggregatorCore, store: Store, schema: Schema, checkpoint: Checkpoint | None = None) -> Engine:
    """Rebuild the model and the core from a checkpoint, the newest by default, and the journal after it.

    Raises:
        StoreError: the store is damaged.
    """
    checkpoint = checkpoint or store.newest_checkpoint()
    try:
        engine = Engine.of(checkpoint, schema, store)
        core.load(checkpoint.core)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise StoreError(
            f"The checkpoint of record {checkpoint.lsn} in {store.directory} is of another layout ({error}): start "
            "with the version of Midge that wrote it."
        ) from error
    model = engine.model
    if core.strategy.form == "mixing":
        load_past_frames(model, store)
    for record, frames in execute(core, engine):
        engine.replayed(frames)
        if isinstance(record, rec.ReleaseRecord):
            store.note_release(record, core.generation, model.state.digest())
    for lsn in core.needed:  # a damaged body is found now rather than when its step is due
        store.body(lsn)
    failpoint("recovery.replayed")
    with suppress(StoreFull):
        engine.write_replayed()
    if core.strategy.form == "mixing":
        core.forget_bases(model.oldest)
    return engine


def execute(core: AggregatorCore, engine: Engine) -> Iterator[tuple[rec.Record, list[Frame]]]:
    """Execute the journal after the core's last record; each record with the frames that it makes.

    Raises:
        StoreError: the store is damaged.
    """
    model, store = engine.model, engine.store
    for entry in store.entries(after=core.lsn):
        record = rec.clamped(entry.record, core.generation, core.version)
        if record is not entry.record:
            log.warning("Record %d of %s has an impossible number, which is ignored.", record.lsn, store.directory)
        core.replay(record)
        if isinstance(record, rec.UpdateRecord):
            engine.hold_again(record, core.strategy)
        try:
            frames = engine.carry(record)
        except KeyError as error:  # mixing needs an earlier model, and its frame is damaged
            raise store.damaged(record.lsn) from error
        if isinstance(record, rec.ReleaseRecord):
            core.handle(ev.ReleaseCarried(record.version, model.state.digest()), 0.0)
        yield record, frames


def load_past_frames(model: Model, store: Store) -> None:
    """Give the model the frames that it needs to rebuild earlier versions."""
    model.keeps_past = True
    known = {(frame.version, frame.span) for frame in store.published() if frame.version <= model.version}
    for version, span in known:
        data = store.frame(version, span)
        if data is None:
            continue
        if span == 1:
            model.steps[version] = data
        elif span == 0 and version < model.version and (version + 1, 1) not in known:
            model.ends[version] = data
