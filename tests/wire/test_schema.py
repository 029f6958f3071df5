"""The schema's order, its hash, its flat vector, and what it refuses."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.schema import MAX_NAME, MAX_PACKED, MAX_PARAMETERS, MAX_SIDES, MAX_TENSORS, ROLES, Role, Schema, Tensor

DTYPES = ["float32", "float64", "int64", "int32", "int8", "uint8", "bool"]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    names = draw(st.lists(st.text(max_size=12), max_size=6, unique=True))
    drawn = []
    for name in names:
        role = draw(st.sampled_from(ROLES))
        dtype = "float32" if role in ("trained", "averaged", "site") else draw(st.sampled_from(DTYPES))
        drawn.append(Tensor(name, draw(SHAPES), dtype, role))
    return drawn


SCHEMAS = tensors().map(Schema)


def filled(schema: Schema, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Parameters of this schema with values that tell them apart."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.integers(0, 2, tensor.shape).astype(tensor.dtype)
        if tensor.dtype == "bool"
        else rng.integers(-100, 100, tensor.shape).astype(tensor.dtype)
        for tensor in schema.tensors
    }


@given(SCHEMAS)
def test_a_schema_comes_back(schema: Schema) -> None:
    back = Schema.unpacked(frames.unpack(frames.pack(schema.packed())))
    assert back.tensors == schema.tensors
    assert back == schema
    assert hash(back) == hash(schema)
    assert len(back.hash) == 16


@given(tensors(), st.data())
def test_the_hash_changes_with_anything(drawn: list[Tensor], data: st.DataObject) -> None:
    original = Schema(drawn).hash
    extra = Tensor("name of its own", (1,), "float32", "trained")
    others = [[*drawn, extra]]
    if drawn:
        index = data.draw(st.integers(0, len(drawn) - 1))
        tensor = drawn[index]
        fresh_role: Role = "local" if tensor.role == "frozen" else "frozen"
        changed = [
            Tensor(tensor.name + "'", tensor.shape, tensor.dtype, tensor.role),
            Tensor(tensor.name, (*tensor.shape, 1), tensor.dtype, tensor.role),
            Tensor(tensor.name, tensor.shape, tensor.dtype, fresh_role),
            Tensor(tensor.name, tensor.shape, "int32" if tensor.dtype != "int32" else "int64", "frozen"),
        ]
        names = {other.name for other in drawn}
        others += [
            [*drawn[:index], new, *drawn[index + 1 :]] for new in changed if new.name not in names - {tensor.name}
        ]
        others.append(drawn[:index] + drawn[index + 1 :])
    if len(drawn) > 1:
        others.append([*drawn[1:], drawn[0]])
    assert original not in [Schema(other).hash for other in others]


@given(SCHEMAS, st.integers(0, 99))
def test_flatten_and_views_are_inverse_and_views_are_views(schema: Schema, seed: int) -> None:
    parameters = filled(schema, seed)
    vector = schema.flatten(parameters)
    assert vector.dtype == np.float32
    assert vector.shape == (schema.size,)
    views = schema.views(vector)
    assert list(views) == [tensor.name for tensor in schema.tensors if tensor.shared]
    for name, view in views.items():
        np.testing.assert_array_equal(view, parameters[name], strict=True)
        assert view.size == 0 or np.shares_memory(view, vector)
    np.testing.assert_array_equal(schema.flatten({**parameters, **views}), vector)
    assert vector.size == 0 or not any(np.shares_memory(vector, array) for array in parameters.values())


@given(SCHEMAS, st.integers(0, 99))
def test_frozen_tensors_thaw_and_local_ones_never_travel(schema: Schema, seed: int) -> None:
    parameters = filled(schema, seed)
    travelling = {name: array for name, array in parameters.items() if role(schema, name) != "local"}
    data = schema.freeze(travelling)  # nothing asks for a local tensor
    thawed = schema.thaw(memoryview(data))
    assert list(thawed) == [tensor.name for tensor in schema.tensors if tensor.role == "frozen"]
    for name, array in thawed.items():
        np.testing.assert_array_equal(array, parameters[name])
        assert not array.flags.writeable
    schema.check(travelling)
    np.testing.assert_array_equal(schema.flatten(travelling), schema.flatten(parameters))
    with pytest.raises(WireError, match="follow"):
        schema.thaw(data + b"\0")
    if data:
        with pytest.raises(WireError, match="cut short"):
            schema.thaw(data[:-1])


def role(schema: Schema, name: str) -> Role:
    return next(tensor.role for tensor in schema.tensors if tensor.name == name)


@given(SCHEMAS, st.data())
def test_covered_places_are_those_of_the_tensors(schema: Schema, data: st.DataObject) -> None:
    shared = {index: place for index, _, place in schema.shared}
    chosen = sorted(data.draw(st.sets(st.sampled_from(sorted(shared))))) if shared else []
    assert list(schema.covered(chosen)) == [shared[index] for index in chosen]
    assert list(schema.covered(None)) == [slice(0, schema.size)]
    ends = [place.stop for place in shared.values()]
    assert [place.start for place in shared.values()] == [0, *ends[:-1]] if ends else schema.size == 0
    foreign = [index for index, tensor in enumerate(schema.tensors) if not tensor.shared]
    for wrong in ([-1], [len(schema.tensors)], foreign[:1], [*chosen, *chosen[:1]], chosen[::-1] if chosen[1:] else []):
        if wrong and wrong != chosen:
            with pytest.raises(WireError, match="cannot be covered"):
                list(schema.covered(wrong))


@given(SCHEMAS)
def test_only_averaged_tensors_are_fine(schema: Schema) -> None:
    averaged = sum(tensor.size for tensor in schema.tensors if tensor.role == "averaged")
    assert (0 if schema.fine is None else int(schema.fine.sum())) == averaged


def test_roles_and_dtypes_of_a_dict_of_arrays() -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "b": np.zeros((2, 3), np.float64),
        "a": np.zeros(4, np.float16),
        "running_mean": np.zeros(4, np.float32),
        "count": np.zeros((), np.int64),
        "private": np.zeros(1, np.float64),
        "table": np.zeros(1, np.float16),
    }
    schema = Schema.of(arrays, {"running_mean": "averaged", "private": "local", "table": "frozen"})
    assert schema.tensors == (
        Tensor("b", (2, 3), "float32", "trained"),
        Tensor("a", (4,), "float32", "trained"),
        Tensor("running_mean", (4,), "float32", "averaged"),
        Tensor("count", (), "int64", "frozen"),
        Tensor("private", (1,), "float64", "local"),
        Tensor("table", (1,), "float32", "frozen"),
    )
    assert schema.size == 6 + 4 + 4


def test_a_role_for_what_is_not_there_and_a_dtype_that_cannot_travel() -> None:
    with pytest.raises(ValueError, match="does not have: bais"):
        Schema.of({"bias": np.zeros(1, np.float32)}, {"bais": "averaged"})
    with pytest.raises(ValueError, match=r"cannot be federated: z: unknown dtype"):
        Schema.of({"z": np.array(["a"])})


def test_what_is_tied_is_one_and_complex_values_are_pairs() -> None:
    arrays: dict[str, Any] = {
        "": np.ones(2, np.float32),
        "e": np.ones((2, 3), np.float32),
        "i": np.arange(3, dtype=np.int16),
    }
    arrays |= {"z": np.ones(2, np.complex128), "h": arrays["e"], "j": arrays["i"]}
    schema = Schema.of(arrays, {"h": "=e", "j": "=i"})
    assert schema.size == 2 + 6 + 4 and schema == Schema.unpacked(schema.packed()) != schema.untied
    assert schema.untied == Schema.of(arrays) and len(schema.freeze(arrays)) == 6
    back = {**schema.views(schema.flatten({**arrays, "z": np.array([1j, 2])})), **schema.thaw(schema.freeze(arrays))}
    assert set(back) == set(arrays) and back["h"].base is not None and back["z"].tolist() == [1j, 2]
    back["e"][:] = 7
    np.testing.assert_array_equal(back["h"], back["e"])
    np.testing.assert_array_equal(back["j"], arrays["i"])
    assert Schema.of(arrays, {"e": "local", "h": "=e"}).tensors[4] == Tensor("h", (2, 3), "float32", "local")
    with pytest.raises(ValueError, match="no such tensor before it"):
        Schema.of(arrays, {"e": "=h"})


@pytest.mark.parametrize(
    "rows",
    [
        [["a", [2], "float32", "trained", "a"]],
        [["b", [2], "float32", "trained", "a"], ["a", [2], "float32", "trained"]],
        [["a", [2], "float32", "trained"], ["b", [3], "float32", "trained", "a"]],
        [["a", [2], "float32", "trained"], ["b", [2], "float32", "averaged", "a"]],
        [["a", [2], "float32", "local"], ["b", [2], "float32", "local", "a"]],
        [["a", [2], "float32", "trained"], ["b", [2], "float32", "trained", 1]],
        [["a", [2], "float32", "trained"], ["b", [2], "float32", "trained", "a", "a"]],
    ],
)
def test_a_tie_to_what_is_not_its_like_is_no_schema(rows: Any) -> None:
    with pytest.raises(WireError):
        Schema.unpacked(rows)


def test_a_model_that_does_not_fit_is_told_all_that_is_wrong() -> None:
    schema = Schema.of({"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"w is \(4,\), not \(2, 2\); b is missing"):
        schema.flatten({"w": np.zeros(4, np.float32)})


def test_models_without_values() -> None:
    for schema in (Schema([]), Schema([Tensor("none", (0, 5), "float32", "trained")])):
        assert schema.size == 0
        assert schema.flatten({"none": np.zeros((0, 5))}).shape == (0,)
        assert schema.fine is None
    scalar = Schema([Tensor("s", (), "float32", "trained")])
    assert scalar.views(np.array([3], np.float32))["s"].shape == ()


@pytest.mark.parametrize(
    "packed",
    [
        None,
        3,
        "abcd",
        b"abcd",
        {"a": 1},
        ["abcd"],
        [["a", [1], "float32"]],
        [["a", [1], "float32", "trained", 1]],
        [[b"a", [1], "float32", "trained"]],
        [["a", "12", "float32", "trained"]],
        [["a", b"12", "float32", "trained"]],
        [["a", 1, "float32", "trained"]],
        [["a", [1.0], "float32", "trained"]],
        [["a", [True], "float32", "trained"]],
        [["a", [float("inf")], "float32", "trained"]],
        [["a", [float("nan")], "float32", "trained"]],
        [["a", [None], "float32", "trained"]],
        [["a", [-1], "float32", "trained"]],
        [["a", [-1, -1], "float32", "trained"]],
        [["a", [1], "float16", "trained"]],
        [["a", [1], "<f4", "trained"]],
        [["a", [1], {"a": 1}, "trained"]],
        [["a", [1], "float32", {"a": 1}]],
        [["a", [1], "float32", "Trained"]],
        [["a", [1], "float64", "trained"]],
        [["a", [1], "int64", "averaged"]],
        [["a", [1], "float32", "trained"], ["a", [2], "float32", "trained"]],
        [["a", [2**31], "float32", "trained"]],
        [["a", [2**31 - 1, 2], "float32", "trained"]],
        [["a", [2**31 - 1], "float32", "trained"], ["b", [1], "float32", "frozen"]],
        [["a", [2**64 - 1] * 32, "float32", "trained"]],
        [["a", [0, 2**63], "float32", "trained"]],
        [["a", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "float64", "frozen"]],
        [["a", [1] * (MAX_SIDES + 1), "float32", "trained"]],
        [["é" * (MAX_NAME // 2 + 1), [1], "float32", "trained"]],
        [[str(number), [1], "float32", "trained"] for number in range(MAX_TENSORS + 1)],
    ],
)
def test_what_is_no_schema_is_refused(packed: object) -> None:
    with pytest.raises(WireError):
        Schema.unpacked(frames.unpack(frames.pack(packed)))


def test_what_the_limits_allow_fits_the_limit_on_bytes() -> None:
    largest = Schema(
        [
            Tensor(f"{number:0{MAX_NAME}}", (1,) * (MAX_SIDES - 1), "float32", "averaged")
            for number in range(MAX_TENSORS)
        ]
    )
    sides = MAX_TENSORS * MAX_SIDES * 5
    assert len(frames.pack(largest.packed())) + sides < MAX_PACKED
    assert Schema([Tensor("a", (MAX_PARAMETERS,), "float32", "trained")]).size == MAX_PARAMETERS


def test_a_bool_that_is_neither_is_refused() -> None:
    schema = Schema([Tensor("mask", (2,), "bool", "frozen")])
    np.testing.assert_array_equal(schema.thaw(b"\x01\x00")["mask"], [True, False])
    with pytest.raises(WireError, match="neither 0 nor 1"):
        schema.thaw(b"\x01\x02")
