"""A published model: every way of frames to a version ends in the same bits."""

import hashlib
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from midge.wire import frames, lineage
from midge.wire.errors import WireError
from midge.wire.lineage import Integers, State
from midge.wire.schema import Schema, Tensor

Vector = npt.NDArray[np.float32]
SCHEMA = Schema(
    [
        Tensor("w", (20, 30), "float32", "trained"),
        Tensor("mean", (11,), "float32", "averaged"),
        Tensor("count", (2,), "int64", "frozen"),
        Tensor("b", (), "float32", "trained"),
    ]
)
FROZEN = SCHEMA.freeze({"count": np.array([3, -1])})
LARGEST = 2**31 - 1
VERSIONS = 24


def plain(size: int) -> Schema:
    return Schema([Tensor("w", (size,), "float32", "trained")])


def scattered(size: int, seed: int) -> Vector:
    """Values in −0.5 … 0.5 that are the same in every version of NumPy: no generator, only integers and a division."""
    hashes = (np.arange(size, dtype=np.uint64) + np.uint64(seed)) * np.uint64(2654435761) % np.uint64(2**24)
    return (hashes.astype(np.float32) / np.float32(2**24)) - np.float32(0.5)


@cache
def lineage_of_releases() -> tuple[list[State], list[Integers]]:
    """A model that drifts, as its published states and the steps between them."""
    x = scattered(SCHEMA.size, 1)
    states, steps = [lineage.on_grid(x, SCHEMA, FROZEN)], []
    for version in range(1, VERSIONS + 1):
        x = x + scattered(SCHEMA.size, 1000 * version) * np.float32(1 / 16)
        left = np.rint(np.ldexp(x - states[-1].values(), -states[-1].exponent)).astype(np.int64)
        step = np.where(np.abs(left) < 2**19, 0, left >> 16 << 16).astype(np.int32)
        steps.append(step)
        states.append(states[-1].advance(step))
    return states, steps


def test_a_fixed_model_gives_the_same_bits_for_ever_and_everywhere() -> None:
    states, steps = lineage_of_releases()
    sha = hashlib.sha256()
    for step in steps:
        sha.update(lineage.encode_step(step, states[0].exponent))
    assert states[0].exponent == -24
    assert states[0].digest().hex() == "1874942cda50b734ac27590a3915c6ca"
    assert states[-1].digest().hex() == "2cae3a4c1a729aac3f9916fb39c54e91"
    assert sha.hexdigest()[:32] == "0f959e5f61921f53dd085267c5aa9ec6"
    assert hashlib.sha256(lineage.encode_snapshot(states[-1])).hexdigest()[:32] == "2985a1da311d4e0944cd345b2784e9d9"


@given(st.integers(0, VERSIONS), st.data())
def test_every_way_of_frames_ends_in_the_same_state(start: int, data: st.DataObject) -> None:
    states, steps = lineage_of_releases()
    held = lineage.decode_snapshot(lineage.encode_snapshot(states[start]))
    version = start
    while version < VERSIONS:
        span = data.draw(st.integers(1, VERSIONS - version))
        frame = lineage.encode_step(lineage.merge(steps[version : version + span]), held.exponent)
        step, exponent = lineage.decode_step(memoryview(frame), SCHEMA.size)
        assert exponent == held.exponent
        held = held.advance(step)
        version += span
        assert held.digest() == states[version].digest()
    back = held.advance(-lineage.merge(steps[start:])) if start < VERSIONS else held
    assert back.digest() == states[start].digest()


@given(st.lists(npst.arrays(np.int32, 5, elements=st.integers(-(2**27), 2**27)), min_size=1, max_size=8), st.data())
def test_merging_is_associative_and_exact(steps: list[Integers], data: st.DataObject) -> None:
    whole = lineage.merge(steps)
    assert whole.dtype == np.int32
    assert whole.tolist() == [sum(int(step[index]) for step in steps) for index in range(5)]
    cut = data.draw(st.integers(1, len(steps)))
    left = lineage.merge(steps[:cut])
    assert (lineage.merge([left, *steps[cut:]]) == whole).all()
    state = State(plain(5), np.zeros(5, np.int32), -24, b"")
    once = state.advance(whole)
    for step in steps:
        state = state.advance(step)
    assert state.digest() == once.digest()


def test_what_leaves_the_grid_or_does_not_fit_is_refused() -> None:
    top = np.array([LARGEST, 0, -LARGEST], np.int32)
    state = State(plain(3), top, 0, b"")
    assert state.advance(np.array([-LARGEST, 0, LARGEST], np.int32)).integers.tolist() == [0, 0, 0]
    for step in ([1, 0, 0], [0, 0, -1], [LARGEST, 0, 0]):
        array = np.array(step, np.int32)
        with pytest.raises(WireError, match="leaves the grid"):
            state.advance(array)
        with pytest.raises(WireError, match="do not merge"):
            lineage.merge([top, array])
    one = np.ones(1, np.int32)
    with pytest.raises(WireError, match="cannot advance"):
        state.advance(one)
    with pytest.raises(WireError, match="do not merge"):
        lineage.merge([top, one])
    with pytest.raises(WireError, match="do not merge"):
        lineage.merge([])


def test_the_digest_changes_with_anything() -> None:
    state = lineage_of_releases()[0][3]
    others = [
        State(SCHEMA, state.integers + 1, state.exponent, FROZEN),
        State(SCHEMA, state.integers, state.exponent + 1, FROZEN),
        State(SCHEMA, state.integers, state.exponent, FROZEN[:-1] + b"\0"),
        State(plain(SCHEMA.size), state.integers, state.exponent, FROZEN),
    ]
    assert len({state.digest(), *(other.digest() for other in others)}) == 5


MODELS = npst.arrays(np.float32, 9, elements=st.floats(-1, 1, width=32))


@given(MODELS, st.integers(-149, 84))
def test_a_model_is_on_the_grid_to_half_a_unit_or_to_float32(x: Vector, scale: int) -> None:
    x = np.ldexp(x, scale)
    state = lineage.on_grid(x, plain(9), b"")
    unit = 2.0**state.exponent
    assert np.abs(x.astype(np.float64) - state.values()).max() <= unit / 2
    assert unit <= 2.0**-24 * max(1.0, float(np.abs(x).max()))
    assert np.abs(state.integers.astype(np.int64)).max() <= 2**25
    back = lineage.decode_snapshot(lineage.encode_snapshot(state))
    assert back.digest() == state.digest()
    assert back.values().tobytes() == state.values().tobytes()


def test_models_near_and_beyond_the_limit() -> None:
    below = np.array([np.nextafter(np.float32(2.0**85), np.float32(0)), 0, -1], np.float32)
    state = lineage.on_grid(below, plain(3), b"")
    assert state.exponent == 60
    assert state.values()[0] == below[0]
    for bad in (2.0**85, -(2.0**85), np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match="not finite or are too large"):
            lineage.on_grid(np.array([bad, 0, 0], np.float32), plain(3), b"")


@pytest.mark.parametrize("schema", [Schema([]), plain(0), Schema([Tensor("s", (), "float32", "trained")])])
def test_models_without_values_and_scalars(schema: Schema) -> None:
    state = lineage.decode_snapshot(
        lineage.encode_snapshot(lineage.on_grid(np.ones(schema.size, np.float32), schema, b""))
    )
    step = -state.integers
    moved = state.advance(lineage.decode_step(lineage.encode_step(step, state.exponent), schema.size)[0])
    assert not moved.values().any()
    assert [array.shape for array in moved.parameters().values()] == [tensor.shape for tensor in schema.tensors]
    assert (moved.digest() == state.digest()) == (schema.size == 0)


def test_parameters_of_a_state() -> None:
    parameters = lineage_of_releases()[0][0].parameters()
    assert {name: array.shape for name, array in parameters.items()} == {
        "w": (20, 30),
        "mean": (11,),
        "b": (),
        "count": (2,),
    }
    assert parameters["count"].tolist() == [3, -1]
    assert parameters["w"].flags.writeable
    assert not parameters["count"].flags.writeable


def test_states_are_compared_by_digest() -> None:
    a, b = (lineage.on_grid(scattered(9, 1), plain(9), b"") for _ in range(2))
    assert a != b
    assert a.digest() == b.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "step"},
        {"schema": -1},
        {"schema": 10**6},
        {"schema": 2**63},
        {"schema": 1.0},
        {"schema": None},
        {"schema": True},
        {"frozen": -16},
        {"frozen": 15},
        {"frozen": 17},
        {"filling": 1},
        {"filling": -1},
        {"filling": None},
        {"frozen": 2**63},
        {"frozen": None},
        {"exponent": 61},
        {"exponent": -41},
        {"exponent": "0"},
    ],
)
def test_a_snapshot_with_a_wrong_header_is_refused(change: dict[str, object]) -> None:
    header, body = frames.decode(lineage.encode_snapshot(lineage_of_releases()[0][0]))
    lineage.decode_snapshot(frames.encode(header, body))
    with pytest.raises(WireError):
        lineage.decode_snapshot(frames.encode({**header, **change}, body))


def test_a_snapshot_that_no_step_could_lead_away_from_is_refused() -> None:
    state = State(plain(2), np.array([0, -(2**31)], np.int32), 0, b"")
    with pytest.raises(WireError, match="cannot hold"):
        lineage.decode_snapshot(lineage.encode_snapshot(state))


@given(st.randoms(use_true_random=False))
def test_bodies_of_the_wrong_length_are_refused(random: Random) -> None:
    state = lineage_of_releases()[0][1]
    step = lineage.encode_step(lineage_of_releases()[1][0], state.exponent)
    for frame in (lineage.encode_snapshot(state), step):
        for wrong in (frame[: random.randrange(len(frame))], frame + random.randbytes(random.randint(1, 5))):
            with pytest.raises(WireError):
                _ = lineage.decode_step(wrong, SCHEMA.size) if frame is step else lineage.decode_snapshot(wrong)
