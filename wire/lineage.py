"""The published model as a lineage: a state on a power-of-two grid, integer steps between states, and snapshots.

A published state is a vector of int32 `n` and an exponent `e`; its values are float32(n)·2^e. A step is another integer
vector, and an advance is `n + step`. So consecutive steps merge by exact integer addition, every device at a version
holds the same bits whatever its processor, and a state can be stepped back exactly.

The aggregator keeps the exact model x beside it and decides which step to send next (`aggregator/model/quantiser.py`).
Bits cannot differ between processors, because there are only scalings by powers of two, rounding, and integer sums.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import FrameInfo
from midge.wire.schema import MAX_PACKED, MAX_TENSORS, Schema, Vector
from midge.wire.steps import (
    FINEST,
    LARGEST_VALUE,
    Integers,
    decode_integers,
    decode_step,
    encode_integers,
    encode_step,
    read_exponent,
)

__all__ = [
    "Integers",
    "State",
    "decode_snapshot",
    "decode_step",
    "encode_snapshot",
    "encode_step",
    "merge",
    "on_grid",
    "route",
]


HEADROOM = 30
"""Bits of a grid integer; if a value outgrows them, the grid becomes coarser."""
_SMALL = 1024
"""Models up to this many values begin without rounding."""
_PLAIN = 2
"""A snapshot has at least one byte for this many values, so that a reader's memory is bounded by the bytes received."""
LARGEST = 2**31 - 1
"""Largest grid integer; −2³¹ is excluded, so that each step can be reversed."""


@dataclass(frozen=True, eq=False)
class State:
    """A published model: what every device at a version holds, bit for bit. Two are equal if their digests are."""

    schema: Schema
    integers: Integers
    exponent: int
    frozen: bytes

    def values(self) -> Vector:
        """The shared parameters as a new float32 vector of shape (schema.size,)."""
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


def logged(log: bytes, generation: int, version: int, digest: bytes) -> bytes:
    """Extend the hash over all releases: 16 bytes of SHA-256 over the previous hash, the numbers and the digest."""
    return hashlib.sha256(log + generation.to_bytes(8, "little") + version.to_bytes(8, "little") + digest).digest()[:16]


def on_grid(x: Vector, schema: Schema, frozen: bytes, *, bits: int = HEADROOM) -> State:
    """Put an exact model on a grid that leaves five bits of headroom above its largest value, or above 1.

    With fewer `bits`, each trained tensor is rounded to that many bits of its largest value: a small state from which
    steps continue. Models of up to a thousand values are not rounded.

    Raises:
        ValueError: a value is not finite, or is beyond 2^85.
    """
    largest = float(np.max(np.abs(x), initial=np.float32(1)))
    if not np.isfinite(x).all() or largest >= LARGEST_VALUE:
        raise ValueError("the model holds values that are not finite or are too large to publish")
    exponent = max(int(np.frexp(largest)[1]) - (HEADROOM - 5), FINEST)
    integers = np.rint(np.ldexp(x, -exponent)).astype(np.int32)
    if integers.size > _SMALL:
        for _, tensor, place in schema.shared:
            if tensor.role == "trained" and tensor.size:
                shift = max(0, int(np.abs(integers[place]).max()).bit_length() - bits)
                integers[place] = (
                    np.rint(np.ldexp(integers[place].astype(np.float64), -shift)).astype(np.int32) << shift
                )
    return State(schema, integers, exponent, frozen)


def merge(steps: Iterable[Integers]) -> Integers:
    """Merge consecutive steps into one, exactly.

    Raises:
        WireError: the sum leaves int32, the lengths differ, or there is nothing to merge.
    """
    total: npt.NDArray[np.int64] | None = None
    for step in steps:
        if total is not None and step.shape != total.shape:
            raise WireError(f"steps of {total.size} and of {step.size} values do not merge")
        total = step.astype(np.int64) if total is None else total + step
    if total is None or (total.size and int(np.abs(total).max()) > LARGEST):
        raise WireError("these steps do not merge")
    return total.astype(np.int32)


# ------------------------------------------------------------------------ as bytes


def encode_snapshot(state: State) -> bytes:
    """Encode a state as a frame: the full schema, the frozen tensors, the integers coded like a step, and padding."""
    schema = frames.pack(state.schema.packed())
    integers = encode_integers(state.integers)
    filling = bytes(max(0, -(-state.schema.size // _PLAIN) - len(integers)))
    header = {
        "kind": "snapshot",
        "exponent": state.exponent,
        "schema": len(schema),
        "frozen": len(state.frozen),
        "filling": len(filling),
    }
    return frames.encode(header, b"".join((schema, state.frozen, integers, filling)))


def decode_snapshot(data: frames.Buffer) -> State:
    """Read a snapshot.

    Raises:
        WireError: the bytes are no snapshot, or its parts do not fit one another.
    """
    header, body = frames.decode(data)
    if header.get("kind") != "snapshot":
        raise WireError("no snapshot")
    lengths = header.get("schema"), header.get("frozen"), header.get("filling")
    if not all(type(length) is int and 0 <= length <= len(body) for length in lengths):
        raise WireError("the snapshot's header does not fit its body")
    packed, frozen, filling = (int(length) for length in lengths if length is not None)
    if packed > MAX_PACKED:
        raise WireError(f"a schema of {packed} bytes is over {MAX_PACKED}")
    exponent = read_exponent(header.get("exponent"))
    schema = Schema.unpacked(frames.unpack(body[:packed], items=MAX_TENSORS))
    start, end = packed + frozen, len(body) - filling
    if start > end or len(body) - start < -(-schema.size // _PLAIN):
        raise WireError(f"the snapshot has {len(body)} bytes, too few for {schema.size} values")
    schema.thaw(body[packed:start])
    return State(schema, decode_integers(body[start:end], schema.size), exponent, bytes(body[packed:start]))


# ---------------------------------------------------------------------- the way there


def follow(
    way: Iterable[FrameInfo], data: Callable[[FrameInfo], frames.Buffer], state: State | None = None
) -> State | None:
    """Return the state at the end of a way of frames, which begins at `state` or with a snapshot.

    Args:
        way: as `route` finds it.
        data: gives the bytes of a frame; it is called once for each, in order.
        state: where the way begins; None if its first frame is a snapshot.

    Raises:
        WireError: a frame is invalid, or a step does not fit the state before it.
    """
    for frame in way:
        if frame.span == 0:
            state = decode_snapshot(data(frame))
            continue
        if state is None:
            raise WireError("a step without a model to start from")
        step, exponent = decode_step(data(frame), state.schema.size)
        if exponent != state.exponent:
            raise WireError("a step on another grid")
        state = state.advance(step)
    return state


def route(known: Sequence[FrameInfo], have: int | None, target: int) -> tuple[FrameInfo, ...] | None:
    """The cheapest frames, in order, from the version `have` (None: nothing) to `target`; None if there is no way.

    A snapshot starts anywhere; a step over `span` versions starts at `version − span`. Each frame costs its bytes and a
    constant per request.
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
