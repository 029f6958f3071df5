"""A delta as bytes, held against the formula written out in plain Python."""

import math
import struct
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from midge.wire.codecs import Float32, Int8, NonFinite, decode_delta, encode_delta, parse
from midge.wire.errors import WireError
from midge.wire.schema import Schema, Tensor

Vector = npt.NDArray[np.float32]
LARGEST = float(np.finfo(np.float32).max)
FINITE = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**126), 2.0**126, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-37, 1.27e-35, 1.3e-35, 1e38, -1e38]).map(
        lambda value: float(np.float32(value))
    ),
)
VECTORS = st.integers(0, 70).flatmap(lambda size: npst.arrays(np.float32, size, elements=FINITE))
BLOCKS = st.sampled_from([16, 17, 32, 256, 65536])


def f32(value: float) -> float:
    """Rounded to float32, which a Python float holds exactly."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


def int8_in_plain_python(values: list[float], block: int) -> bytes:
    """The documented formula. A product or quotient of two float32 rounds in float64 without doing so twice."""
    scales, integers = b"", b""
    for start in range(0, len(values), block):
        row = values[start : start + block]
        scale = f32(max(map(abs, row)) / 127)
        inverse = f32(1 / scale) if scale > f32(1e-37) else 0.0
        scales += struct.pack("<f", scale)
        integers += b"".join(struct.pack("<b", max(-127, min(127, round(f32(value * inverse))))) for value in row)
    return scales + integers


def int8_back_in_plain_python(data: bytes, count: int, block: int) -> list[float]:
    blocks = math.ceil(count / block)
    scales = struct.unpack(f"<{blocks}f", data[: 4 * blocks])
    integers = struct.unpack(f"<{count}b", data[4 * blocks :])
    return [f32(scales[index // block] * integer) for index, integer in enumerate(integers)]


@given(VECTORS, BLOCKS)
def test_int8_is_the_documented_formula(vector: Vector, block: int) -> None:
    codec = Int8(block)
    data = codec.encode(vector)
    assert data == int8_in_plain_python(vector.tolist(), block)
    assert len(data) == codec.size(vector.size)
    decoded = codec.decode(memoryview(data), vector.size)
    assert decoded.dtype == np.float32
    assert decoded.tolist() == int8_back_in_plain_python(data, vector.size, block)


@given(VECTORS, BLOCKS)
def test_the_error_of_int8_is_half_a_step_of_its_block(vector: Vector, block: int) -> None:
    decoded = Int8(block).decode(Int8(block).encode(vector), vector.size)
    for start in range(0, vector.size, block):
        row = vector[start : start + block].astype(np.float64)
        error = np.abs(row - decoded[start : start + block]).max()
        scale = np.abs(row).max() / 127
        assert error <= 0.50001 * scale or (scale < 1.0001e-37 and error <= 127 * scale * 1.0001)


@given(VECTORS)
def test_float32_is_exact_to_the_bit(vector: Vector) -> None:
    data = Float32().encode(vector)
    assert len(data) == Float32().size(vector.size)
    assert Float32().decode(memoryview(data), vector.size).tobytes() == vector.tobytes()


def test_zeros_and_tiny_blocks_decode_to_zeros_beside_large_ones() -> None:
    vector = np.concatenate([np.zeros(16), np.full(16, 1e-45), np.full(16, 1e-36), np.full(16, 1e38)]).astype(
        np.float32
    )
    decoded = Int8(16).decode(Int8(16).encode(vector), vector.size)
    np.testing.assert_array_equal(decoded[:48], np.zeros(48, np.float32))
    np.testing.assert_allclose(decoded[48:], 1e38, rtol=1e-6)


def test_small_deltas_survive() -> None:
    vector = np.linspace(-1e-12, 1e-12, 256, dtype=np.float32)
    decoded = Int8().decode(Int8().encode(vector), 256)
    np.testing.assert_allclose(decoded, vector, atol=1e-12 / 127)


MIXED = Schema(
    [
        Tensor("w", (5, 8), "float32", "trained"),
        Tensor("count", (), "int64", "frozen"),
        Tensor("mean", (7,), "float32", "averaged"),
        Tensor("own", (3,), "float32", "local"),
        Tensor("none", (0, 2), "float32", "trained"),
        Tensor("b", (9,), "float32", "trained"),
        Tensor("scale", (), "float32", "averaged"),
    ]
)
PLAIN = Schema([Tensor("w", (5, 8), "float32", "trained"), Tensor("b", (), "float32", "trained")])
BUFFERS = Schema([Tensor("mean", (7,), "float32", "averaged")])
EMPTY = Schema([])
SCHEMAS = st.sampled_from([MIXED, PLAIN, BUFFERS, EMPTY])
CODECS = st.sampled_from(["float32", "int8", "int8:16", "int8:256"])


def deltas(schema: Schema, elements: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[Vector]:
    return npst.arrays(np.float32, schema.size, elements=elements)


@given(SCHEMAS, CODECS, st.data())
def test_partial_deltas_are_zero_elsewhere_and_averaged_tensors_exact(
    schema: Schema, codec: str, data: st.DataObject
) -> None:
    delta = data.draw(deltas(schema))
    shared = {index: place for index, _, place in schema.shared}
    every = st.just(sorted(shared)) if not shared else st.sets(st.sampled_from(sorted(shared))).map(sorted)
    tensors = data.draw(st.none() | every.map(tuple))
    body = encode_delta(delta, schema, codec, tensors)
    decoded = decode_delta(memoryview(body), schema, codec, tensors)
    assert decoded.shape == (schema.size,)
    assert decoded.flags.writeable
    for index, tensor, place in schema.shared:
        if tensors is not None and index not in tensors:
            assert not decoded[place].any()
        elif tensor.role == "averaged" or codec == "float32":
            assert decoded[place].tobytes() == delta[place].tobytes()
    if tensors is None:
        whole = tuple(sorted(shared))
        assert body == encode_delta(delta, schema, codec, whole)
    for wrong in (body + b"\0", body[:-1]):
        if wrong != body:
            with pytest.raises(WireError):
                decode_delta(wrong, schema, codec, tensors)


@given(st.sampled_from([MIXED, PLAIN, BUFFERS]), CODECS, st.data())
def test_what_is_not_finite_is_refused_wherever_it_stands(schema: Schema, codec: str, data: st.DataObject) -> None:
    delta = data.draw(deltas(schema, st.floats(-1, 1, width=32)))
    delta[data.draw(st.integers(0, schema.size - 1))] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    with pytest.raises(NonFinite):
        decode_delta(encode_delta(delta, schema, codec), schema, codec)


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan, LARGEST, -LARGEST])
@pytest.mark.parametrize("integers", [b"\0\x7f\x80", b"\x01\xff\x7f"])
def test_a_hostile_scale_is_refused(scale: float, integers: bytes) -> None:
    schema = Schema([Tensor("a", (3,), "float32", "trained")])
    with pytest.raises(NonFinite):
        decode_delta(struct.pack("<f", scale) + integers, schema, "int8")


@pytest.mark.parametrize("tensors", [(1,), (3,), (7,), (2, 0), (0, 0), (2**32 - 1,)])
def test_what_is_not_shared_cannot_be_covered(tensors: tuple[int, ...]) -> None:
    with pytest.raises(WireError, match="cannot be covered"):
        decode_delta(b"", MIXED, "float32", tensors)


def test_names_of_codecs() -> None:
    assert parse("float32") == Float32()
    assert parse("int8") == parse("int8:256") == Int8(256)
    assert parse("int8:16") == Int8(16)
    assert parse("int8:65536") == Int8(65536)


NO_CODECS = ["", "float", "float32:", "float32:1", "FLOAT32", " int8", "int8\0", ":", "::::"]
NO_CODECS += [
    f"int8:{block}"
    for block in ("", "15", "65537", "99999", "0256", "+256", "-256", " 256", "256 ", "256\n", "2_56", "25.6", "256:")
]
NO_CODECS += [f"int8:{block}" for block in ("٢٥٦", "²", "000016999999999", "9" * 59)]


@pytest.mark.parametrize("name", NO_CODECS)
def test_what_is_no_codec_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="unknown codec"):
        parse(name)


@given(st.text(max_size=12) | st.integers().map("int8:{}".format))
def test_any_name_is_a_codec_or_refused(name: str) -> None:
    try:
        codec = parse(name)
    except WireError:
        return
    assert isinstance(codec, Float32 | Int8)
    assert not isinstance(codec, Int8) or 16 <= codec.block <= 65536


def test_no_name_of_a_codec_takes_memory() -> None:
    tracemalloc.start()
    try:
        for name in ("int8:65536", "int8:0000169999999", "int8:169999999"):
            try:
                decode_delta(b"\0" * 45, PLAIN, name)
            except WireError:
                continue
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
