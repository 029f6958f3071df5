"""The codecs of the MicroPython client give the bytes of Midge's own encoder, error feedback included."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from midge.iot_client.training.update_encoder import encode
from midge.wire.schema import Schema, Tensor
from tests.micropython.board import ask
from tests.needs import micropython
from tests.wire.test_golden import DELTA, LARGE, LARGE_DELTA, SCHEMA

pytestmark = micropython
ALL_LARGE = Schema([Tensor("w", (30, 40), "float32", "trained")])
SMALL = Schema([Tensor("w", (100,), "float32", "trained")])


def _deltas(seed: int, size: int, count: int) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_t(3, size) * 10.0 ** rng.integers(-6, 2)).astype(np.float32) for _ in range(count)]


CASES: list[tuple[str, Schema, str, list[Any]]] = [
    ("float32", SCHEMA, "float32", [DELTA]),
    ("int8", SCHEMA, "int8:16", [DELTA]),
    ("blocks", LARGE, "int8:256", [LARGE_DELTA]),
    ("steps", LARGE, "uq:4|rice", [LARGE_DELTA]),
    ("fewer", LARGE, "uq:3|rice", [LARGE_DELTA]),
    ("no large tensor", SMALL, "uq:4|rice", _deltas(1, 100, 3)),
    ("one large tensor", ALL_LARGE, "uq:4|rice", _deltas(2, 1200, 8)),
    ("feedback", LARGE, "uq:4|rice", _deltas(3, LARGE.size, 12)),
    ("alike", ALL_LARGE, "uq:4|rice", [np.full(1200, 0.125, np.float32)] * 2),
    ("nothing", ALL_LARGE, "uq:4|rice", [np.zeros(1200, np.float32)]),
    ("one value", ALL_LARGE, "uq:4|rice", [np.eye(1, 1200, 777, dtype=np.float32)[0]]),
    ("few values", SCHEMA, "uq:4|rice", [DELTA]),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    question = [
        {
            "tensors": [[tensor.role, tensor.size] for _, tensor, _ in schema.shared],
            "codec": codec,
            "deltas": [np.asarray(delta, "<f4").tobytes().hex() for delta in deltas],
        }
        for _, schema, codec, deltas in CASES
    ]
    found = ask("encode.py", question, tmp_path_factory.mktemp("codecs"))
    return {case[0]: answer for case, answer in zip(CASES, found, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_bodies_are_those_of_the_reference(case: Any, answers: dict[str, tuple[str, list[str]]]) -> None:
    name, schema, codec, deltas = case
    assert answers[name][0] == codec
    left: bytes | None = None
    for number, delta in enumerate(deltas):
        rows = np.asarray(delta, np.float32)[None]
        coded, (left,) = encode(rows, codec, bytes(16), schema, feedback=True, left=[left], seeds=[0])
        assert answers[name][1][number] == coded.body(0).hex(), f"update {number}"


def test_an_unknown_codec_is_answered_with_int8(tmp_path: Path) -> None:
    delta = DELTA.astype("<f4").tobytes().hex()
    codecs = ["eden:1", "uq:4", "uq:|rice", "int8:8", "topk:0.01|int8:256"]
    question = [{"tensors": [["trained", 24]], "codec": codec, "deltas": [delta]} for codec in codecs]
    assert [codec for codec, _ in ask("encode.py", question, tmp_path)] == ["int8:256"] * len(codecs)
