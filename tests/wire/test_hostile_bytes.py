"""Whatever bytes come, a decoder gives a value or a WireError, and takes no more memory than its limits allow."""

import math
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire import codecs, frames, lineage, messages
from midge.wire.errors import WireError
from midge.wire.messages import AggregatorStatus, Announcement, Envelope, Hello, Part, Receipt, Report, SiteValues
from midge.wire.moments import Moments
from midge.wire.schema import Schema, Tensor
from midge.wire.steps import BLOCK, SECTION

SCHEMA = Schema(
    [
        Tensor("w", (20, 30), "float32", "trained"),
        Tensor("mean", (11,), "float32", "averaged"),
        Tensor("count", (2,), "int64", "frozen"),
    ]
)
VALID = [path.read_bytes() for path in sorted(Path(__file__).with_name("golden").glob("*.bin"))]


def snapshot(data: bytes) -> None:
    """Read a snapshot and use all of it."""
    state = lineage.decode_snapshot(data)
    state.parameters()
    state.digest()
    lineage.encode_snapshot(state)
    lineage.decode_snapshot(lineage.encode_snapshot(state))


def step(data: bytes) -> None:
    """Read a step of whatever size it says, and write it again."""
    header, _ = frames.decode(data)
    size = header.get("size")
    values, exponent = lineage.decode_step(data, size if type(size) is int and 0 <= size < 2**16 else 600)
    again, _ = lineage.decode_step(lineage.encode_step(values, exponent), values.size)
    assert (again == values).all()


def update(data: bytes) -> None:
    """Read an update and its delta, as the aggregator does."""
    message, body = messages.decode_update(data)
    if isinstance(message, messages.Update):
        codecs.decode_delta(body, SCHEMA, message.codec, message.tensors)
    elif isinstance(message, messages.Statistics):
        for _, channels in message.names:
            Moments.from_bytes(body, channels)


def schema(data: bytes) -> None:
    """Read a schema and use it."""
    read = Schema.unpacked(frames.unpack(data))
    assert len(read.hash) == 16
    assert read.size >= 0


DECODERS: dict[str, Callable[[bytes], object]] = {
    "update": update,
    "announcement": messages.decode_announcement,
    "snapshot": snapshot,
    "step": step,
    "schema": schema,
    **{
        model.__name__.lower(): partial(messages.decode, model)
        for model in (Report, Hello, Receipt, AggregatorStatus, Announcement, Part, SiteValues, Envelope)
    },
}


def decoder(decode: Callable[[bytes], object], data: bytes) -> None:
    """Read by one decoder: a value or a WireError, whose words fit a receipt."""
    why = ""
    try:
        decode(data)
    except WireError as error:
        why = str(error)
    assert len(why) <= 300
    assert why.isprintable()


def survives(data: bytes) -> None:
    """Give the bytes to every decoder."""
    for decode in DECODERS.values():
        decoder(decode, data)


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=20), st.binary(max_size=40))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = sorted(
    {name for model in vars(messages).values() if hasattr(model, "model_fields") for name in model.model_fields}
)
KINDS = ["update", "offer", "chunk", "fetch", "statistics", "report", "hello", "receipt", "aggregator", "announcement"]
KINDS += ["part", "step", "snapshot"]


def framed(header: object, body: bytes) -> bytes:
    """A frame, without any look at what is in it."""
    packed: bytes = msgpack.packb(header)
    return struct.pack("<H", len(packed) & 0xFFFF) + packed + body


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    survives(data)


@given(ANYTHING, st.binary(max_size=100))
def test_any_msgpack_as_a_header(header: object, body: bytes) -> None:
    survives(framed(header, body))
    survives(msgpack.packb(header))
    survives(framed({"body": framed(header, body), "signatures": [header]}, b""))


@given(
    st.dictionaries(st.sampled_from([*FIELDS, "exponent", "schema", "frozen", "filling"]), ANYTHING, max_size=8),
    st.sampled_from(KINDS),
    st.binary(max_size=100),
)
def test_known_fields_with_any_values(fields: dict[str, object], kind: str, body: bytes) -> None:
    survives(framed({**fields, "kind": kind}, body))


@given(st.lists(st.tuples(st.text(max_size=3), st.lists(NUMBERS, max_size=4), SCALARS, SCALARS), max_size=3))
def test_any_numbers_as_sides(packed: list[Any]) -> None:
    for dtype, role in (("float32", "trained"), ("float64", "frozen"), ("bool", "local")):
        tensors = [[name, sides, dtype, role] for name, sides, _, _ in packed]
        for value in (packed, tensors):
            data = msgpack.packb(value)
            survives(data)
            survives(framed({"kind": "snapshot", "exponent": 0, "schema": len(data), "frozen": 0, "filling": 0}, data))


@given(st.sampled_from(VALID), st.data())
def test_valid_bytes_with_some_changed(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        # Most changes near the front, where the header is.
        at = draw.draw(st.integers(0, min(len(changed), 80)) | st.integers(0, len(changed)))
        end = at + draw.draw(st.integers(0, 8))
        changed[at:end] = draw.draw(st.binary(max_size=8))
    survives(bytes(changed))


@given(st.sampled_from(VALID), st.data())
def test_valid_bytes_cut_short_and_repeated(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data)))
    survives(data[:at])
    survives(data[at:])
    survives(data + data[at:])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside of a value."""
    inside: list[Any] = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """The value with another one at the end of a way."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


HEADERS = []
for valid in VALID:
    try:
        (length,) = struct.unpack_from("<H", valid)
        HEADERS.append((msgpack.unpackb(valid[2 : 2 + length]), valid[2 + length :]))
    except (ValueError, struct.error, msgpack.UnpackException):
        continue  # a schema or a delta, which has no header


@given(st.sampled_from(HEADERS), st.data())
def test_valid_messages_with_one_value_changed(valid: tuple[Any, bytes], draw: st.DataObject) -> None:
    header, body = valid
    path = draw.draw(st.sampled_from(places(header)))
    survives(framed(put(header, path, draw.draw(ANYTHING)), body))


@given(st.binary(max_size=900), st.text(max_size=10) | st.sampled_from(["float32", "int8", "int8:16"]), st.data())
def test_any_bytes_as_a_delta(data: bytes, codec: str, draw: st.DataObject) -> None:
    tensors = draw.draw(st.none() | st.lists(st.integers(0, 3)).map(tuple))
    sizes = {"float32": 2444, "int8": 600 + 12 + 44, "int8:16": 600 + 4 * 38 + 44}
    for body in (data, data.ljust(sizes.get(codec, 0), data[:1] or b"\xff")[: sizes.get(codec)]):
        try:
            delta = codecs.decode_delta(body, SCHEMA, codec, tensors)
        except WireError:
            continue
        assert delta.shape == (SCHEMA.size,)
        assert all(map(math.isfinite, delta.tolist()))


def nested(depth: int, inner: bytes = b"\x90") -> bytes:
    """Arrays of one, in one another."""
    return b"\x91" * depth + inner


@pytest.mark.parametrize("depth", [10, 400, 900, 990, 1000, 1010, 1020, 1023, 1024, 5000])
def test_deep_nesting(depth: int) -> None:
    packed = nested(depth)
    survives(packed)
    for field in (b"\xa4kind", b"\xa4body", b"\xaasignatures", b"\xa7metrics", b"\xa5state"):
        header = b"\x81" + field + packed
        survives(struct.pack("<H", len(header)) + header)
    header = b"\x82\xa4body\xc4\x03\x01\x00\x80\xaasignatures" + packed
    survives(struct.pack("<H", len(header)) + header)


def header_of(packed: bytes) -> bytes:
    """A frame of the largest header, that begins like this."""
    return struct.pack("<H", 0xFFFF) + packed.ljust(0xFFFF, b"\0")


def snapshot_of(packed: object, body: bytes = b"", **header: object) -> bytes:
    data = msgpack.packb(packed)
    return framed(
        {"kind": "snapshot", "exponent": 0, "schema": len(data), "frozen": 0, "filling": 0, **header}, data + body
    )


BOMBS = {
    "an array of 2**32 items": header_of(b"\xdd\xff\xff\xff\xff"),
    "a map of 2**32 items": header_of(b"\xdf\xff\xff\xff\xff"),
    "text of 2**32 bytes": header_of(b"\xdb\xff\xff\xff\xff"),
    "bytes of 2**32 bytes": header_of(b"\xc6\xff\xff\xff\xff"),
    "an extension of 2**32 bytes": header_of(b"\xc9\xff\xff\xff\xff\x01"),
    "nested arrays that claim all": header_of(b"\xdc\xff\xf0" * 1000),
    "nested maps that claim all": header_of(b"\xde\xff\xf0\xa1k" * 1000),
    "a step of 2**31 values": framed({"kind": "step", "exponent": 0, "size": 2**31 - 1}, b"\0\0"),
    "a tensor of 2**31 values": snapshot_of([["w", [2**31 - 1], "float32", "trained"]], b"\0\0\0\0"),
    "a frozen tensor of 2**31 values": snapshot_of([["w", [2**31 - 1], "float64", "frozen"]], frozen=2**34),
    "a tensor of 2**2048 values": snapshot_of([["w", [2**64 - 1] * 32, "float32", "trained"]]),
    "a tensor of 20,000 sides": snapshot_of([["w", [2**64 - 1] * 20_000, "float32", "trained"]]),
    "many tensors of many sides": snapshot_of([[str(n), [2**31 - 1] * 32, "float32", "trained"] for n in range(4000)]),
    "a tensor of 2**21 values and much filling": snapshot_of(
        [["w", [2**21], "float32", "trained"]], bytes(2**20), filling=2**20
    ),
    "100,000 tensors": snapshot_of([["w", [], "float32", "trained"]] * 100_000),
    "a schema of 8 MB of maps": framed(
        {"kind": "snapshot", "exponent": 0, "schema": 2**23, "frozen": 0, "filling": 0},
        b"\xdd\x00\x00\x0f\xa0" + b"\xdc\x0f\xa0" + b"\x80" * (2**23 - 8),
    ),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_claims_take_no_memory(data: bytes) -> None:
    survives(framed({}, b""))  # what is made once
    tracemalloc.start()
    try:
        survives(data)
        survives(framed({"kind": "announcement", "frames": 3}, data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 12 * len(data)


def test_a_step_takes_a_small_multiple_of_its_values_whatever_its_body() -> None:
    size = 2**18
    blocks = bytes(8 + 5 * BLOCK // SECTION) * (size // BLOCK)
    data = framed({"kind": "step", "exponent": 0, "size": size}, blocks)
    tracemalloc.start()
    try:
        lineage.decode_step(data, size)
        with pytest.raises(WireError):
            lineage.decode_step(data, 2**31 - 1)
        assert tracemalloc.get_traced_memory()[1] < 4 * 4 * size
    finally:
        tracemalloc.stop()
