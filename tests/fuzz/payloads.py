"""Bytes for hypothesis: valid messages with something changed, known fields with any values, and anything."""

import struct
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st

from midge.wire import messages
from midge.wire.signing import SIGNATURE

GOLDEN = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "wire" / "golden").glob("*.bin"))]
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, -1, 2**31 - 1, 2**32, 2**63, 2**64 - 1])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=20), st.binary(max_size=40))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
KINDS = ["update", "offer", "chunk", "fetch", "statistics", "report", "surveyed", "hello"]
FIELDS = sorted(
    {
        name
        for model in (
            messages.Update,
            messages.Chunk,
            messages.Fetch,
            messages.Statistics,
            messages.Hello,
            messages.Report,
        )
        for name in model.model_fields
    }
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "outbox": st.integers(0, 3),
    "first": st.integers(1, 5),
    "seq": st.integers(1, 5),
    "lineage": st.just(bytes(16)),
    "generation": st.integers(0, 1),
    "base": st.integers(0, 3),
    "schema_hash": st.just(bytes(16)),
    "codec": st.sampled_from(["float32", "int8:16", "x"]),
    "size": st.integers(0, 100),
    "sha256": st.binary(min_size=32, max_size=32),
    "state": st.sampled_from(["ready", "training", "lost", "joining"]),
    "parts": st.integers(1, 9),
    "part": st.integers(0, 9),
    "names": st.just([["x", 2]]),
    "sealed": st.sampled_from(["", "", "hpke", "x"]),
    "version": st.integers(0, 5),
    "span": st.integers(0, 5),
    "examples": st.integers(0, 5),
    "metrics": st.just({"loss": 1.0}),
}


def framed(header: object, body: bytes) -> bytes:
    """A frame, without any look at what is in it."""
    packed: bytes = msgpack.packb(header)
    return struct.pack("<H", len(packed) & 0xFFFF) + packed + body


@st.composite
def _known(draw: st.DrawFn) -> bytes:
    """A message of likely values, with some that are not."""
    fields = {name: draw(values) for name, values in LIKELY.items()}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        fields[name] = draw(ANYTHING)
    sizes = st.sampled_from([0, 16, 16 + SIGNATURE, 48, 49, 48 + SIGNATURE, 96])
    body = draw(st.binary(max_size=100) | sizes.map(bytes))
    return framed({**fields, "kind": draw(st.sampled_from(KINDS))}, body)


@st.composite
def _changed(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(GOLDEN)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


MESSAGES: st.SearchStrategy[bytes] = st.one_of(_known(), _known(), _changed(), st.binary(max_size=200))
