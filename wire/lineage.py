"""The published model as a lineage: a state on a power-of-two grid, steps that add integers to it, snapshots of it.

A published state is a vector of int32 `n` and an exponent `e`; its values are float32(n)·2^e. A step is another integer
vector, and an advance is `n + step`. So consecutive steps merge by exact integer addition, every device that holds a
version holds the same bits whatever its processor, and a state can be stepped back as exactly as forward.

The aggregator keeps the exact model x beside it. `compress(x, state)` says which step to send next; what it leaves out
stays in x − p and goes into a later step: error feedback at the server, the hidden state of QAFeL (arXiv:2308.00263).
Bits cannot differ between processors: only scalings by powers of two, rounding, and sums of integers.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wire import frames
from wire.errors import WireError
from wire.messages import FrameInfo
from wire.schema import MAX_PACKED, MAX_TENSORS, Schema, Vector
from wire.steps import COARSEST, FINEST, Integers, decode_step, encode_step, read_exponent

__all__ = [
    "Integers",
    "State",
    "compress",
    "decode_snapshot",
    "decode_step",
    "encode_snapshot",
    "encode_step",
    "merge",
    "on_grid",
    "route",
]


_HEADROOM = 30
"""Bits of a grid integer; where a value outgrows them, the grid becomes coarser."""
_SPREAD = 4 * math.sqrt(2)
_SMALL, _FINER = 256, 6
"""Tensors of at most so many values are said so many bits finer."""
_LARGEST = 2**31 - 1
"""Of a grid integer; −2³¹ is none, so that each step can be taken back."""


@dataclass(frozen=True, eq=False)
class State:
    """A published model: what every device at a version holds, bit for bit. Two are the same where `digest` is."""

    schema: Schema
    integers: Integers
    exponent: int
    frozen: bytes

    def values(self) -> Vector:
        """The shared parameters, a new float32 vector of shape (schema.size,)."""
        return np.ldexp(self.integers.astype(np.float32), self.exponent)

    def parameters(self) -> dict[str, npt.NDArray[np.generic]]:
        """All tensors that travel, by name: shared ones writable and new, frozen ones read-only."""
        return {**self.schema.views(self.values()), **self.schema.thaw(self.frozen)}

    def digest(self) -> bytes:
        """16 bytes that two equal states share."""
        sha = hashlib.sha256(self.schema.hash)
        sha.update(self.exponent.to_bytes(1, "little", signed=True))
        sha.update(self.integers.astype("<i4", copy=False).data)
        sha.update(self.frozen)
        return sha.digest()[:16]

    def advance(self, step: Integers) -> "State":
        """The state after a step.

        Raises:
            WireError: the step is of another length, or the sum leaves the grid.
        """
        if step.shape != self.integers.shape:
            raise WireError(f"a step of {step.size} values cannot advance a state of {self.integers.size}")
        total = self.integers.astype(np.int64) + step
        if total.size and max(int(total.max()), -int(total.min())) > 2**31 - 1:
            raise WireError("the step leaves the grid")
        return replace(self, integers=total.astype(np.int32))


def on_grid(x: Vector, schema: Schema, frozen: bytes) -> State:
    """Put an exact model on a grid that leaves its largest value, or 1 where all are less, room to grow by five bits.

    Raises:
        ValueError: a value is not finite, or is beyond 2^85.
    """
    largest = float(np.max(np.abs(x), initial=np.float32(1)))
    if not np.isfinite(x).all() or largest >= 2.0 ** (COARSEST + 25):
        raise ValueError("the model holds values that are not finite or are too large to publish")
    exponent = max(int(np.frexp(largest)[1]) - (_HEADROOM - 5), FINEST)
    return State(schema, np.rint(np.ldexp(x, -exponent)).astype(np.int32), exponent, frozen)


def compress(x: Vector, state: State) -> Integers | None:
    """The step that takes a state near the exact model: few integers that are not zero, at one scale for each tensor.

    A uniform quantiser with a step of about 3 rms of the tensor, rounded to a power of two: most values become zero and
    wait, in x − p, for a later step. Where that would leave more than seven tenths of the difference, as of a tensor
    whose values are all alike, the scale is halved until it does not; so a model that stands still is reached. Small
    tensors, whose bytes do not count, are said six bits finer.

    None where the state would leave its grid: then the next release is a snapshot `on_grid`.
    """
    if not np.isfinite(x).all():
        raise ValueError("the exact model is not finite")
    if x.size and float(np.max(np.abs(x))) >= 2.0 ** (_HEADROOM + state.exponent):
        return None
    left = np.ldexp(x - state.values(), -state.exponent)
    step = np.zeros(x.size, np.int32)
    for _, tensor, place in state.schema.shared:
        if tensor.role == "averaged":  # as exactly as the grid can say it; float32 would round x − p
            exact = np.rint(np.ldexp(x[place], -state.exponent)).astype(np.int64) - state.integers[place]
            step[place] = np.clip(exact, -_LARGEST, _LARGEST)
        elif tensor.size:
            step[place] = _quantise(left[place])
    return step


def _quantise(left: Vector) -> npt.NDArray[np.int64]:
    """Multiples of a power of two near these values, in units of the grid. Sums are of integers: no order matters."""
    whole = np.rint(left).astype(np.int64)
    total = int(np.abs(whole).sum())
    if total == 0:
        return whole
    # 4·mean|v| is 3.2 rms of normal values and 2.8 rms of Laplacian ones; √2 rounds the power of two to the nearest.
    shift = math.frexp(_SPREAD * total / left.size)[1] - 1 - (_FINER if left.size <= _SMALL else 0)
    shift = min(max(0, shift), 30)
    while shift:
        integers = np.rint(np.ldexp(left, -shift)).astype(np.int64)
        step = np.clip(integers, -(_LARGEST >> shift), _LARGEST >> shift) << shift
        if 10 * int(np.abs(whole - step).sum()) <= 7 * total:
            return step
        shift -= 1
    return np.clip(whole, -_LARGEST, _LARGEST)


def merge(steps: Iterable[Integers]) -> Integers:
    """Consecutive steps as one, exactly.

    Raises:
        WireError: the sum leaves int32, the lengths differ, or there is nothing to merge.
    """
    total: npt.NDArray[np.int64] | None = None
    for step in steps:
        if total is not None and step.shape != total.shape:
            raise WireError(f"steps of {total.size} and of {step.size} values do not merge")
        total = step.astype(np.int64) if total is None else total + step
    if total is None or (total.size and int(np.abs(total).max()) > _LARGEST):
        raise WireError("these steps do not merge")
    return total.astype(np.int32)


# ------------------------------------------------------------------------ as bytes


def encode_snapshot(state: State) -> bytes:
    """A state as a frame: the full schema, the integers, the frozen tensors."""
    schema = frames.pack(state.schema.packed())
    header = {"kind": "snapshot", "exponent": state.exponent, "schema": len(schema), "frozen": len(state.frozen)}
    return frames.encode(header, schema + state.integers.astype("<i4", copy=False).tobytes() + state.frozen)


def decode_snapshot(data: frames.Buffer) -> State:
    """Read a snapshot.

    Raises:
        WireError: it is none, or its parts do not fit one another.
    """
    header, body = frames.decode(data)
    if header.get("kind") != "snapshot":
        raise WireError("no snapshot")
    length, frozen = header.get("schema"), header.get("frozen")
    if type(length) is not int or type(frozen) is not int or not 0 <= length <= len(body) or not frozen >= 0:
        raise WireError("the snapshot's header does not fit its body")
    if length > MAX_PACKED:
        raise WireError(f"a schema of {length} bytes is over {MAX_PACKED}")
    exponent = read_exponent(header.get("exponent"))
    schema = Schema.unpacked(frames.unpack(body[:length], items=MAX_TENSORS))
    end = length + 4 * schema.size
    if end + frozen != len(body):
        raise WireError(f"the snapshot has {len(body)} bytes, not {end + frozen}")
    schema.thaw(body[end:])
    integers = np.frombuffer(body[length:end], "<i4").astype(np.int32)
    if integers.size and int(integers.min()) < -_LARGEST:
        raise WireError("a value of the snapshot is not on the grid")
    return State(schema, integers, exponent, bytes(body[end:]))


# ---------------------------------------------------------------------- the way there


def route(known: Sequence[FrameInfo], have: int | None, target: int) -> tuple[FrameInfo, ...] | None:
    """The cheapest frames, in order, from the version `have` (None: nothing) to `target`; None where there is no way.

    A snapshot starts anywhere; a step over `span` versions starts at `version − span`. Each frame costs its bytes and
    an allowance for asking.
    """
    asking = 64
    best: dict[int, tuple[int, tuple[FrameInfo, ...]]] = {} if have is None else {have: (0, ())}
    for frame in sorted(known, key=lambda frame: (frame.version, frame.span == 0, frame.span)):
        if frame.version > target:
            continue
        start = (0, ()) if frame.span == 0 else best.get(frame.version - frame.span)
        if start is None:
            continue
        cost = start[0] + frame.size + asking * frame.parts
        if frame.version not in best or cost < best[frame.version][0]:
            best[frame.version] = (cost, (*start[1], frame))
    return best[target][1] if target in best else None
