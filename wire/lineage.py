"""The published model as a lineage: a state on a power-of-two grid, steps that add integers to it, snapshots of it.

A published state is a vector of int32 `n` and an exponent `e`; its values are float32(n)·2^e. A step is another integer
vector, and an advance is `n + step`. So consecutive steps merge by exact integer addition, every device that holds a
version holds the same bits whatever its processor, and a state can be stepped back as exactly as forward.

The aggregator keeps the exact model x beside it. `compress(x, state)` says which step to send next; what it leaves out
stays in x − p and goes into a later step: error feedback at the server, the hidden state of QAFeL (arXiv:2308.00263).
Bits cannot differ between processors: only scalings by powers of two, one division, rounding and integer sums.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from wire import frames
from wire.errors import WireError
from wire.messages import FrameInfo
from wire.schema import MAX_PACKED, MAX_TENSORS, Schema, Vector

Integers = npt.NDArray[np.int32]
T = TypeVar("T", bound=np.generic)

BLOCK = 256
"""Values that share one scale in a step."""
_LEVELS = 127
_HEADROOM = 30
"""Bits of a grid integer; where a value outgrows them, the grid becomes coarser."""
_LARGEST = 2**31 - 1
"""Of a grid integer; −2³¹ is none, so that each step can be taken back."""
_FINEST, _COARSEST = -40, 60
_WIDTHS: tuple[npt.DTypeLike, ...] = ("<i1", "<i2", "<i4")


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
    if not np.isfinite(x).all() or largest >= 2.0 ** (_COARSEST + 25):
        raise ValueError("the model holds values that are not finite or are too large to publish")
    exponent = max(int(np.frexp(largest)[1]) - (_HEADROOM - 5), _FINEST)
    return State(schema, np.rint(np.ldexp(x, -exponent)).astype(np.int32), exponent, frozen)


def compress(x: Vector, state: State) -> Integers | None:
    """The step that takes a state near the exact model: one int8 and one power-of-two scale for each block.

    None where the state would leave its grid: then the next release is a snapshot `on_grid`.
    """
    if not np.isfinite(x).all():
        raise ValueError("the exact model is not finite")
    if x.size and float(np.max(np.abs(x))) >= 2.0 ** (_HEADROOM + state.exponent):
        return None
    fine = state.schema.fine
    left = np.ldexp(x - state.values(), -state.exponent)
    if fine is not None:
        left[fine] = 0  # they may be large, and have no say in their neighbours' scale
    rest = _rows(left)
    _, shifts = np.frexp(np.max(np.abs(rest), axis=1, initial=0) / np.float32(_LEVELS))
    shifts = np.clip(shifts, 0, 24).astype(np.int32)
    integers = np.clip(np.rint(np.ldexp(rest, -shifts[:, None])), -_LEVELS, _LEVELS).astype(np.int32)
    step: Integers = (integers << shifts[:, None]).reshape(-1)[: x.size]
    if fine is not None:  # averaged buffers go out exactly as the grid can say them; float32 would round x − p
        exact = np.rint(np.ldexp(x[fine], -state.exponent)).astype(np.int64) - state.integers[fine]
        step[fine] = np.clip(exact, -_LARGEST, _LARGEST).astype(np.int32)
    return step


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


def encode_step(step: Integers, exponent: int) -> bytes:
    """A step as a frame: one byte for each block (width and shift), then the blocks' integers by width.

    Blocks whose integers share trailing zero bits are shifted; then one, two or four bytes a value, or none for zeros.
    """
    rows = _rows(step)
    bits = np.bitwise_or.reduce(rows, axis=1)
    shifts = np.where(bits == 0, 0, np.frexp((bits & -bits).astype(np.float64))[1] - 1).astype(np.int32)
    rows = rows >> shifts[:, None]
    largest = np.max(np.abs(rows.astype(np.int64)), axis=1, initial=0)
    widths = np.select([largest == 0, largest <= 2**7 - 1, largest <= 2**15 - 1], [0, 1, 2], 3).astype(np.uint8)
    codes = (widths << 5) | shifts.astype(np.uint8)
    blocks = [rows[widths == number].astype(dtype).tobytes() for number, dtype in enumerate(_WIDTHS, start=1)]
    return frames.encode({"kind": "step", "exponent": exponent, "size": step.size}, codes.tobytes() + b"".join(blocks))


def decode_step(data: frames.Buffer, size: int) -> tuple[Integers, int]:
    """Read a step of `size` values, and the exponent of its grid.

    Raises:
        WireError: it is no step, or not of that size.
    """
    header, body = frames.decode(data)
    if header.get("kind") != "step" or type(header.get("size")) is not int or header["size"] != size:
        raise WireError(f"no step of {size} values")
    exponent = _exponent(header.get("exponent"))
    count = -(-size // BLOCK)
    if len(body) < count:
        raise WireError("the step ends within its block codes")
    codes = np.frombuffer(body[:count], np.uint8)
    widths, shifts = codes >> 5, (codes & 31).astype(np.int64)
    if widths.size and int(widths.max()) > len(_WIDTHS):
        raise WireError("a block of unknown width")
    rows = np.zeros((count, BLOCK), np.int64)
    offset = count
    for number, dtype in enumerate(_WIDTHS, start=1):
        chosen = widths == number
        end = offset + int(chosen.sum()) * BLOCK * np.dtype(dtype).itemsize
        if end > len(body):
            raise WireError("the step is cut short")
        rows[chosen] = np.frombuffer(body[offset:end], dtype).reshape(-1, BLOCK)
        offset = end
    if offset != len(body):
        raise WireError("bytes follow the step")
    rows <<= shifts[:, None]
    if rows.size and max(int(rows.max()), -int(rows.min())) > 2**31 - 1:
        raise WireError("a step beyond 32 bits")
    return rows.reshape(-1)[:size].astype(np.int32), exponent


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
    exponent = _exponent(header.get("exponent"))
    schema = Schema.unpacked(frames.unpack(body[:length], items=MAX_TENSORS))
    end = length + 4 * schema.size
    if end + frozen != len(body):
        raise WireError(f"the snapshot has {len(body)} bytes, not {end + frozen}")
    schema.thaw(body[end:])
    integers = np.frombuffer(body[length:end], "<i4").astype(np.int32)
    if integers.size and int(integers.min()) < -_LARGEST:
        raise WireError("a value of the snapshot is not on the grid")
    return State(schema, integers, exponent, bytes(body[end:]))


def _exponent(value: object) -> int:
    if type(value) is not int or not _FINEST <= value <= _COARSEST:
        raise WireError("the grid's exponent is out of range")
    return value


def _rows(vector: npt.NDArray[T]) -> npt.NDArray[T]:
    """The vector as rows of a block, the last one filled up with zeros."""
    padding = -vector.size % BLOCK
    return (np.concatenate([vector, np.zeros(padding, vector.dtype)]) if padding else vector).reshape(-1, BLOCK)


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
