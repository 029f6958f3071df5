"""Steps as bytes: every vector comes back, and nothing else is taken."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.steps import BLOCK, SECTION, Integers, decode_step, encode_integers, encode_step

LARGEST = 2**31 - 1


@st.composite
def steps(draw: st.DrawFn) -> Integers:
    """Steps whose sections are of every density, size and shift."""
    size = draw(st.integers(0, 3 * SECTION))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = np.zeros(size, np.int64)
    for start in range(0, size, SECTION):
        bits = draw(st.integers(0, 31))
        shift = draw(st.integers(0, 31 - bits))
        count = min(SECTION, size - start)
        values = rng.integers(-(2**bits) + 1, 2**bits, count) << shift
        step[start : start + count] = values * (rng.random(count) < draw(st.sampled_from([0.0, 0.001, 0.1, 1.0])))
    return step.astype(np.int32)


@given(steps(), st.integers(-40, 60))
def test_a_step_comes_back(step: Integers, exponent: int) -> None:
    back, its_exponent = decode_step(memoryview(encode_step(step, exponent)), step.size)
    np.testing.assert_array_equal(back, step, strict=True)
    assert its_exponent == exponent


@pytest.mark.parametrize("value", [1, -1, 2, 3, 2**30, -(2**30), LARGEST, -LARGEST])
@pytest.mark.parametrize("place", [0, 1, SECTION - 1, SECTION, 2 * SECTION])
def test_a_single_value_anywhere(value: int, place: int) -> None:
    step = np.zeros(2 * SECTION + 1, np.int32)
    step[place] = value
    data = encode_step(step, 0)
    np.testing.assert_array_equal(decode_step(data, step.size)[0], step)
    assert len(data) < 100


def rice_in_plain_python(numbers: list[int], parameter: int) -> tuple[str, str]:
    """Unary parts and remainders as text, after the definition."""
    unary = "".join("0" * (number >> parameter) + "1" for number in numbers)
    return unary, "".join(format(number % 2**parameter, f"0{parameter}b") for number in numbers if parameter)


def packed(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def test_the_bytes_are_those_of_the_definition() -> None:
    step = np.zeros(100, np.int32)
    step[[3, 4, 20, 90]] = [8, -16, 24, 40]
    header, body = frames.decode(encode_step(step, -3))
    table = np.frombuffer(body[8:13], np.uint8)
    count, shift, zeros, size = int(table[0]) + 256 * int(table[1]), *map(int, table[2:])
    assert (count, shift) == (4, 3)
    streams = [*rice_in_plain_python([3, 0, 15, 69], zeros), "0100", *rice_in_plain_python([0, 1, 2, 4], size)]
    assert bytes(body[13:]) == b"".join(packed(bits) for bits in streams)
    assert struct.unpack("<II", body[:8]) == (len(packed(streams[0])), len(packed(streams[3])))
    assert header == {"kind": "step", "exponent": -3, "size": 100}


def test_the_parameters_are_the_best_there_are() -> None:
    rng = np.random.default_rng(1)
    step = np.where(rng.random(SECTION) < 0.07, rng.integers(-3, 4, SECTION), 0).astype(np.int32)
    places = np.flatnonzero(step)
    gaps = (np.diff(places, prepend=-1) - 1).tolist()
    _, body = frames.decode(encode_step(step, 0))
    lengths = [sum(map(len, rice_in_plain_python(gaps, parameter))) for parameter in range(12)]
    assert lengths[body[11]] == min(lengths)


TABLE = bytes([1, 0, 0, 0, 0])
VALID = {"kind": "step", "exponent": 0, "size": 2}


def lengths(zeros: int = 1, sizes: int = 1) -> bytes:
    """Of the unary parts of a block."""
    return struct.pack("<II", zeros, sizes)


def test_the_valid_one_of_the_refused() -> None:
    step, _ = decode_step(frames.encode(VALID, lengths() + TABLE + b"\x80" + b"\x00" + b"\x80"), 2)
    assert step.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({}, b""),
        ({}, lengths() + TABLE + b"\x80\x00"),
        ({}, lengths() + TABLE + b"\x80\x00\x80\x00"),
        ({}, lengths() + TABLE + b"\x00\x00\x80"),
        ({}, lengths() + TABLE + b"\xc0\x00\x80"),
        ({}, lengths() + TABLE + b"\x20\x00\x80"),
        ({}, lengths() + b"\x03\x00\x00\x00\x00\xe0\x00\xe0"),
        ({}, lengths() + b"\x01\x00\x1f\x00\x00\x80\x00\x80"),
        ({}, lengths() + b"\x01\x00\x00\x1f\x00\x80\x00\x80"),
        ({}, lengths() + b"\x01\x00\x00\x00\x1f\x80\x00\x80"),
        ({}, lengths() + b"\x01\x00\x1e\x00\x00\x80\x00\x20"),
        ({}, lengths(2) + TABLE + b"\x80\x00\x80"),
        ({}, lengths(1, 2**32 - 1) + TABLE + b"\x80\x00\x80"),
        ({}, lengths(0, 0) + TABLE + b"\x80\x00\x80"),
        ({"size": 3}, lengths() + TABLE + b"\x80\x00\x80"),
        ({"size": 2.0}, lengths() + TABLE + b"\x80\x00\x80"),
        ({"exponent": 61}, lengths() + TABLE + b"\x80\x00\x80"),
        ({"exponent": -41}, lengths() + TABLE + b"\x80\x00\x80"),
        ({"exponent": False}, lengths() + TABLE + b"\x80\x00\x80"),
        ({"kind": "snapshot"}, lengths() + TABLE + b"\x80\x00\x80"),
    ],
)
def test_what_is_no_step_is_refused(change: dict[str, object], body: bytes) -> None:
    with pytest.raises(WireError):
        decode_step(frames.encode({**VALID, **change}, body), 2)


@given(st.binary(max_size=60), st.integers(0, 30), st.integers(0, 30))
def test_any_bytes_are_a_step_or_refused(body: bytes, zeros: int, sizes: int) -> None:
    try:
        step, _ = decode_step(frames.encode({**VALID, "size": 40}, lengths(zeros, sizes) + body), 40)
    except WireError:
        return
    again = decode_step(encode_step(step, 0), 40)[0]
    np.testing.assert_array_equal(again, step)


def test_a_block_ends_where_the_next_begins() -> None:
    rng = np.random.default_rng(3)
    step = np.where(rng.random(2 * BLOCK + 77) < 0.02, rng.integers(-5, 6, 2 * BLOCK + 77) << 7, 0).astype(np.int32)
    step[[0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, -1]] = 1
    data = encode_step(step, 0)
    np.testing.assert_array_equal(decode_step(data, step.size)[0], step)
    alone = [encode_integers(step[start : start + BLOCK]) for start in range(0, step.size, BLOCK)]
    assert bytes(frames.decode(data)[1]) == b"".join(alone)


def test_no_unary_part_is_longer_than_a_reader_takes() -> None:
    """The worst there is: in each section one large number among the smallest, or numbers all over the place."""
    for values in (np.ones(BLOCK, np.int64), np.random.default_rng(0).geometric(1e-4, BLOCK)):
        values[::SECTION] = LARGEST
        step = values.astype(np.int32)
        np.testing.assert_array_equal(decode_step(encode_step(step, 0), step.size)[0], step)
