"""The global model's arithmetic: applying steps to x, releasing p.

Everything here is elementwise, in float32, in a fixed order: multiplication, addition, division and scaling by powers
of two. No BLAS, no exponentials: their last bits differ between processors and numbers of threads. So replaying the
journal on a checkpoint gives the same bits anywhere.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.aggregator.core.records import ReleaseRecord, ServeRecord, StepRecord, SumRecord
from midge.aggregator.model.averaging import Averaging
from midge.aggregator.model.movement import Movement
from midge.aggregator.model.quantiser import Quantiser
from midge.aggregator.model.reducer import Contribution, Noise, ServerState, make_step
from midge.aggregator.model.step_merging import Merging
from midge.wire import codecs, lineage
from midge.wire.errors import WireError
from midge.wire.lineage import State
from midge.wire.messages import Update
from midge.wire.schema import Parameters, Schema, Vector

LARGEST = np.float32(2.0**80)
"""Bound of a parameter: with every value within it, the model can be released."""
SNAPSHOT_EVERY = 32
"""Versions from snapshot to snapshot: steps and merged steps lead from any of the last 32 to the newest."""
SMALL = 256
"""Most parameters of a small model, whose snapshot of a kilobyte costs devices little more than a step."""
FIRST_BITS, KEYFRAME_BITS = 6, 12
"""Precision in bits, relative to a tensor's largest value, of the first published model, and of one that outgrew its
grid."""
SERVED = -1
"""In place of a span, marks a snapshot of the channel `serve`."""
REGISTERED = -2
"""In place of a span, marks the snapshot of a registered version."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as stored and published."""

    version: int
    span: int
    data: bytes


class Model:
    """x, the exact global model, and p, the published one."""

    def __init__(self, schema: Schema, x: Vector, frozen: bytes) -> None:
        self.schema = schema
        self.x = x
        self.state = lineage.on_grid(x, schema, frozen, bits=FIRST_BITS)
        self.version = 0
        self.keyframe = True
        """Whether the next release is only a snapshot, because no step leads to it."""
        self._quantiser, self._merging = Quantiser(), Merging()
        self._averaging = Averaging(schema)
        self._movement = Movement(schema.size)
        self.steps: dict[int, bytes] = {}
        """Step frames by version, back to the oldest base; needed to rebuild earlier models."""
        self.ends: dict[int, bytes] = {}
        """Snapshots of the versions before keyframes, across which no step leads back."""
        self.keeps_past = False
        """Whether earlier models must be reconstructible; then the version before a keyframe is kept as a snapshot."""
        self.server = ServerState()
        self.serving: Vector | None = None
        """The served model, a moving average over versions; None if the strategy keeps none."""

    @property
    def small(self) -> bool:
        """Whether each version has a snapshot instead of merged steps."""
        return self.schema.size <= SMALL and len(self.state.frozen) <= 4 * SMALL

    @classmethod
    def of(cls, parameters: Parameters, schema: Schema) -> "Model":
        """Make the model of a dict of arrays."""
        return cls(schema, schema.flatten(parameters), schema.freeze(parameters))

    # -------------------------------------------------------------------- updates

    def decode(self, update: Update, body: memoryview) -> tuple[Vector, float]:
        """Decode the delta of an update, with its L2 norm.

        Raises:
            WireError: the body does not match the header; `codecs.NonFinite` if it holds NaN or infinity.
        """
        if len(body) != update.size:
            raise WireError(f"the delta has {len(body)} bytes, not the {update.size} of its header")
        return self._decode(body, update.codec, update.tensors)

    def _decode(self, body: memoryview, codec: str, tensors: tuple[int, ...] | None) -> tuple[Vector, float]:
        return codecs.decode_measured(body, self.schema, codec, tensors)

    def decode_again(self, body: bytes, codec: str, tensors: tuple[int, ...] | None) -> Vector:
        """Decode the delta of an update that was accepted before a restart."""
        return self._decode(memoryview(body), codec, tensors)[0]

    # ---------------------------------------------------------------------- steps

    def contribution(self, delta: Vector, tensors: tuple[int, ...] | None, base: int, device: str) -> Contribution:
        """A decoded update, prepared for a step."""
        return self._averaging.split(Contribution(delta, tensors, base, device))

    def total(self, record: SumRecord, contributions: Sequence[Contribution]) -> Vector:
        """The weighted sum of updates for the federation above, in float32, in the order of the record.

        These are the operations of a step before its division, so that a step of sums is one of their updates.
        """
        total = np.zeros(self.schema.size, np.float32)
        for (_, weight), scale, item in zip(record.updates, record.scales, contributions, strict=True):
            scaled = item if scale == 1 else replace(item, delta=np.float32(scale) * item.delta)
            total += np.float32(weight) * self._averaging.whole(scaled)
        return total

    def apply(self, record: StepRecord, contributions: Sequence[Contribution], noise: Noise | None = None) -> None:
        """Apply one step of the record: `contributions` are in the order of its updates."""
        self._quantiser.late(self.version - item.base for item in contributions)
        averaged = self._averaging.values(self.x)
        if record.form == "mixing":
            ((_, weight),) = record.updates
            self._mix(np.float32(record.rate) * np.float32(weight), contributions[0], *record.scales)
        else:
            make_step(self.x, self.schema, record, contributions, self.server, noise)
        self._averaging.step(self.x, averaged, record, contributions)
        np.clip(self.x, -LARGEST, LARGEST, out=self.x)

    def _mix(self, alpha: np.float32, item: Contribution, scale: float = 1.0) -> None:
        """Mixing as in FedAsync: x ← (1 − α)·x + α·(p_v + Δ), with the exact p_v that the device began from."""
        delta = item.delta if scale == 1 else np.float32(scale) * item.delta
        trained = self.published(item.base) + delta
        for place in self.schema.covered(item.tensors):
            self.x[place] = (np.float32(1) - alpha) * self.x[place] + alpha * trained[place]

    def published(self, version: int) -> Vector:
        """The values published as `version`, by stepping back from the newest, or from before a keyframe.

        Raises:
            KeyError: a step in between is no longer held.
        """
        end = min((end for end in self.ends if end >= version), default=None)
        start, state = (self.version, self.state) if end is None else (end, lineage.decode_snapshot(self.ends[end]))
        for number in range(start, version, -1):
            state = state.advance(-lineage.decode_step(self.steps[number], self.schema.size)[0])
        return state.values()

    @property
    def oldest(self) -> int:
        """The oldest version that `published` can reconstruct."""
        version = self.version
        while version in self.steps or version - 1 in self.ends:
            version -= 1
        return version

    # ------------------------------------------------------------------- releases

    def freeze(self, tensors: Parameters, *, keep: bool = False) -> None:
        """Set frozen tensors by name; the next release is a snapshot. `keep` leaves the others as published.

        The unpublished part of x may be the work of one device, which a release must not publish alone.
        """
        frozen = self.schema.freeze({**self.schema.thaw(self.state.frozen), **tensors})
        if keep:
            self.state = State(self.schema, self.state.integers, self.state.exponent, frozen)
        else:
            self.state = lineage.on_grid(self.x, self.schema, frozen, bits=FIRST_BITS)
        self.keyframe = True

    def roll_back(self, snapshot: bytes) -> None:
        """Go on from a snapshot, as if nothing had been learned since; the next release is a snapshot of it."""
        self.state = lineage.decode_snapshot(snapshot)
        self.x = self.state.values()
        self._quantiser, self._averaging = Quantiser(), Averaging(self.schema)
        self.server, self.serving, self.keyframe = ServerState(), None, True

    def release(self, record: ReleaseRecord) -> list[Frame]:
        """Move p towards x and return the frames that lead there: a step, merged steps, sometimes a snapshot.

        If a merged step leaves 32 bits, a snapshot replaces it, because perhaps nothing else leads across it.
        """
        self._average(record)
        frames = self._release(record)
        self._averaging.released(self.version, self.state)
        return frames

    def _release(self, record: ReleaseRecord) -> list[Frame]:
        if self.keyframe:
            self.version = record.version
            self.steps.clear()
            self.ends.clear()
            return [self._keyframe(moved=record.devices > 0)]
        step = self._quantiser.step(self.x, self.state)
        if step is None:
            return self._outgrow(record.version)
        self.version = record.version
        self.state = self.state.advance(step)
        data = lineage.encode_step(step, self.state.exponent)
        self.steps[record.version] = data
        if self.small:
            return [Frame(record.version, 1, data), self.snapshot()]
        merged, whole = self._merging.add(record.version, step, data, self.state.exponent)
        frames = [Frame(record.version, 1, data), *(Frame(record.version, span, frame) for span, frame in merged)]
        if not whole or record.version % SNAPSHOT_EVERY == 0:
            frames.append(self.snapshot())
        return frames

    def _keyframe(self, *, moved: bool) -> Frame:
        """Release a snapshot: of x, or of the unchanged p if no device's work may be in the release."""
        if moved:
            self.state = lineage.on_grid(self.x, self.schema, self.state.frozen, bits=KEYFRAME_BITS)
        self.keyframe = False
        self._quantiser.begin(self.x, self.state)
        self._merging.clear()
        return self.snapshot()

    def _outgrow(self, version: int) -> list[Frame]:
        """Release on a coarser grid."""
        frames = []
        if self.keeps_past:
            frames.append(Frame(self.version, 0, lineage.encode_snapshot(self.state)))
            self.ends[self.version] = frames[0].data
        self.version = version
        return [*frames, self._keyframe(moved=True)]

    def snapshot(self) -> Frame:
        return Frame(self.version, 0, lineage.encode_snapshot(self.state))

    def follow_movement(self, turn: int) -> int:
        """Number of versions in a row that moved p within its noise. `turn`: versions in one turn of the fleet."""
        return self._movement.follow(self.state, turn)

    # -------------------------------------------------------------------- serving

    def _average(self, record: ReleaseRecord) -> None:
        """Update the moving average over versions; its decay is lower at first, or it would keep the initial model."""
        if record.decay is None:
            self.serving = None
        elif self.serving is None:
            self.serving = self.x.copy()
        elif record.devices:
            decay = np.float32(min(record.decay, (1 + record.version) / (10 + record.version)))
            self.serving *= decay
            self.serving += (np.float32(1) - decay) * self.x

    def used(self) -> State:
        """The served model on a grid: the moving average, or the published training model."""
        return self.state if self.serving is None else lineage.on_grid(self.serving, self.schema, self.state.frozen)

    def serve(self, record: ServeRecord) -> Frame:
        """The served model as a snapshot."""
        return Frame(record.version, SERVED, lineage.encode_snapshot(self.used()))

    def forget_steps(self, oldest: int) -> None:
        """Drop step frames that lead to `oldest` or before, and snapshots from before it: no device's base is older."""
        self.steps = {version: data for version, data in self.steps.items() if version > oldest}
        self.ends = {version: data for version, data in self.ends.items() if version >= oldest}

    # ---------------------------------------------------------------- checkpoints

    def dump(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values for `load`; `steps` are kept by the store."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "x": self.x,
            "integers": self.state.integers,
            "frozen": np.frombuffer(self.state.frozen, np.uint8),
        }
        left, scales = self._quantiser.dump()
        arrays |= left | self._merging.dump() | self._averaging.dump()
        server, devices = self.server.dump()
        arrays |= server
        if self.serving is not None:
            arrays["serving"] = self.serving
        values = {
            "exponent": self.state.exponent,
            "version": self.version,
            "keyframe": self.keyframe,
            "cached": devices,
            "scales": scales,
        }
        return arrays, values

    @classmethod
    def load(cls, schema: Schema, arrays: Parameters, values: dict[str, Any]) -> "Model":
        """Restore from the result of `dump`."""
        model = cls.__new__(cls)
        model.schema = schema
        model.x = np.array(arrays["x"], np.float32)
        model.state = State(
            schema, np.array(arrays["integers"], np.int32), values["exponent"], np.asarray(arrays["frozen"]).tobytes()
        )
        model.version = values["version"]
        model.keyframe = values["keyframe"]
        model._quantiser = Quantiser.load(arrays, values["scales"])  # noqa: SLF001 - of our own class
        model._merging = Merging.load(arrays)  # noqa: SLF001
        model._averaging = Averaging.load(schema, arrays)  # noqa: SLF001
        model._movement = Movement(schema.size)  # noqa: SLF001
        model.steps, model.ends, model.keeps_past = {}, {}, False
        model.server = ServerState.load(arrays, values.get("cached", ()), schema.size)
        model.serving = np.array(arrays["serving"], np.float32) if "serving" in arrays else None
        return model

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """The exact model, all shared and frozen tensors by name, for evaluation and export."""
        return {**self.schema.views(self.x.copy()), **self.schema.thaw(self.state.frozen)}

    def digest(self) -> bytes:
        """A 16-byte hash of x, p and the moving average; equal after a restart."""
        sha = hashlib.sha256(self.x.astype("<f4", copy=False).data)
        sha.update(self.state.digest())
        if self.serving is not None:
            sha.update(self.serving.astype("<f4", copy=False).data)
        return sha.digest()[:16]
