"""Chunks in any order, twice, of the wrong length, of the wrong bytes."""

import hashlib
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire import chunks
from midge.wire.chunks import Assembly
from midge.wire.errors import WireError

LIMIT = 1 << 20
DATA = st.binary(max_size=200)
SIZES = st.integers(1, 60)


def assembly(data: bytes, chunk: int) -> Assembly:
    return Assembly(len(data), chunk, hashlib.sha256(data).digest(), limit=LIMIT)


@given(DATA, SIZES)
def test_the_pieces_make_the_whole(data: bytes, chunk: int) -> None:
    pieces = list(chunks.cut(data, chunk))
    assert b"".join(pieces) == data
    assert len(pieces) == chunks.count(len(data), chunk) >= 1
    assert all(len(piece) == chunk for piece in pieces[:-1])
    assert all(piece.obj is data for piece in pieces)


@given(DATA, SIZES, st.randoms(use_true_random=False))
def test_any_order_with_duplicates_makes_the_whole(data: bytes, chunk: int, random: Random) -> None:
    pieces = list(enumerate(chunks.cut(data, chunk)))
    arriving = pieces + random.choices(pieces, k=5)
    random.shuffle(arriving)
    whole = assembly(data, chunk)
    seen: set[int] = set()
    for part, piece in arriving:
        assert whole.add(part, piece) == (part not in seen)
        seen.add(part)
        missing = whole.missing()
        assert set(missing) == set(range(whole.parts)) - seen
        assert all(a < b for a, b in pairwise(missing))
        assert whole.missing(2) == missing[:2]
        assert whole.complete == (not missing)
    assert whole.complete
    assert whole.finish() == data
    assert whole.size == len(data)


@given(st.binary(min_size=1, max_size=200), SIZES, st.data())
def test_a_part_of_another_length_or_number_changes_nothing(data: bytes, chunk: int, draw: st.DataObject) -> None:
    whole = assembly(data, chunk)
    pieces = list(chunks.cut(data, chunk))
    part = draw.draw(st.integers(0, len(pieces) - 1))
    length = draw.draw(st.integers(0, 80).filter(lambda length: length != len(pieces[part])))
    with pytest.raises(WireError, match=f"part {part} has {length} bytes"):
        whole.add(part, bytes(length))
    for number in (-1, len(pieces), 2**32 - 1):
        with pytest.raises(WireError, match=f"part {number} of"):
            whole.add(number, pieces[0])
    assert len(whole.missing()) == whole.parts
    with pytest.raises(WireError, match="missing"):
        whole.finish()


def test_a_wrong_byte_makes_all_parts_missing_again() -> None:
    data = bytes(range(10))
    whole = assembly(data, 4)
    for part, piece in enumerate(chunks.cut(b"\xff" + data[1:], 4)):
        whole.add(part, piece)
    with pytest.raises(WireError, match="checksum"):
        whole.finish()
    assert whole.missing() == (0, 1, 2)
    for part, piece in enumerate(chunks.cut(data, 4)):
        assert whole.add(part, piece)
    assert whole.finish() == data


def test_nothing_is_one_empty_part() -> None:
    whole = assembly(b"", 4)
    assert not whole.complete
    assert whole.add(0, b"")
    assert bytes(whole.finish()) == b""


def test_a_size_over_the_limit_is_refused_before_room_is_made() -> None:
    with pytest.raises(WireError, match="over the limit"):
        Assembly(2**40, 256, b"", limit=LIMIT)


def test_chunks_fit_what_a_broker_names_and_what_a_service_means() -> None:
    assert chunks.fitting(256 * 1024, None) == 256 * 1024
    assert chunks.fitting(256 * 1024, 10 * 2**20) == 256 * 1024
    assert chunks.fitting(256 * 1024, 149_504 - 1024) == chunks.CLOUD
    assert chunks.fitting(64 * 1024, 149_504) == 64 * 1024
    assert chunks.fitting(256 * 1024, 50_000) == 50_000
    assert chunks.fitting(256 * 1024, 10) == 1024
    assert chunks.CLOUD + 1024 < 131_073
