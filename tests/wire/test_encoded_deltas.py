"""Deltas of several devices are encoded together as each would be by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.wire import codecs
from midge.wire.codecs import EncodedDeltas, NonFinite, decode_delta, encode_delta
from midge.wire.schema import Schema, Tensor, Vectors
from tests.wire.test_codec_chains import NAMES, SCHEMA

SHAPES = {
    "of all kinds": SCHEMA,
    "one tensor": Schema([Tensor("w", (300,), "float32", "trained")]),
    "small tensors": Schema([Tensor("a", (3, 5), "float32", "trained"), Tensor("b", (), "float32", "trained")]),
    "no large tensor": Schema([Tensor("a", (20, 10), "float32", "trained"), Tensor("b", (99,), "float32", "trained")]),
    # A scale each is more than they are: coded, they would be longer than float32.
    "many scalars": Schema([Tensor(f"s{n}", (), "float32", "trained") for n in range(400)]),
    "a large tensor beside them": Schema(
        [*(Tensor(f"s{n}", (), "float32", "trained") for n in range(900)), Tensor("w", (257,), "float32", "trained")]
    ),
}
NOT_FINITE = ("nan", "inf", "beyond float32")


def drawn(kind: str, size: int, rng: np.random.Generator) -> Vectors:
    """One row. A step is halved seldom for some kinds, once for others, and to the last for `alike`."""
    match kind:
        case "normal":
            return rng.normal(size=size).astype(np.float32)
        case "heavy":
            return (rng.standard_t(2, size) * 1e-3).astype(np.float32)
        case "alike":
            return np.full(size, rng.normal(), np.float32)
        case "zeros":
            return np.zeros(size, np.float32)
        case "tiny":
            return (rng.normal(size=size) * 1e-40).astype(np.float32)
        case "beyond float32":
            return np.where(rng.random(size) < 0.9, 0, np.float32(3.4e38)).astype(np.float32)
    row = rng.normal(size=size).astype(np.float32)
    row[rng.integers(size)] = np.nan if kind == "nan" else -np.inf
    return row


@pytest.mark.parametrize("name", [*NAMES, "float32", "int8:64", "uq:4|rice", "uq:0.05|rice|zstd"])
@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.lists(st.sampled_from(["normal", "heavy", "alike", "zeros", "tiny", *NOT_FINITE]), min_size=1, max_size=6),
    st.integers(0, 2**32),
)
def test_a_stack_of_rows_is_encoded_as_each_of_them(name: str, shape: str, kinds: list[str], seed: int) -> None:
    """Bytes and values; and what a reader refuses is not finite, and touches no neighbour.

    Seen to fail where a step was halved in all rows for one of them, where integers of other rows were rounded again,
    where no tensor is large, and where values were given without asking whether the body would be coded at all.
    """
    schema, rng = SHAPES[shape], np.random.default_rng(seed)
    rows = np.stack([drawn(kind, schema.size, rng) for kind in kinds])
    seeds = [seed + number for number in range(len(rows))]
    together = EncodedDeltas(rows, schema, name, seeds=seeds)
    values = together.values
    for number, row in enumerate(rows):
        body = encode_delta(row, schema, name, seed=seeds[number])
        assert together.body(number) == body
        try:
            read = decode_delta(body, schema, name)
        except NonFinite:
            assert not np.isfinite(values[number]).all()
        else:
            np.testing.assert_array_equal(values[number], read)


def test_values_are_had_without_bytes_where_bytes_are_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(3, SCHEMA.size)).astype(np.float32)
    monkeypatch.setattr(EncodedDeltas, "body", None)
    together = EncodedDeltas(rows, SCHEMA, "uq:4|rice", seeds=[0, 1, 2])
    assert together.rice_coded and together.values.shape == rows.shape
    assert not EncodedDeltas(rows, SCHEMA, "int8:256", seeds=[0, 1, 2]).rice_coded


@pytest.mark.parametrize("tensors", [(0,), (2, 4), (1, 5)])
def test_rows_cover_some_tensors_only(tensors: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).normal(size=(3, SCHEMA.size)).astype(np.float32)
    together = codecs.EncodedDeltas(rows, SCHEMA, "uq:3|rice", tensors, seeds=[0, 1, 2])
    for number, row in enumerate(rows):
        body = encode_delta(row, SCHEMA, "uq:3|rice", tensors)
        assert together.body(number) == body
        np.testing.assert_array_equal(together.values[number], decode_delta(body, SCHEMA, "uq:3|rice", tensors))
