"""Boards learn together: statistics, normalisation and training as Midge's own devices do, on a board's heap."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.micropython.board import HEAP, code_bytes, compiled
from tests.micropython.heap import BOARD, learn
from tests.needs import micropython, mosquitto, mpy_cross

pytestmark = [micropython, mpy_cross, mosquitto]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("code"))


def _losses(said: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in said if "loss" in line]


@pytest.mark.parametrize(
    "case",
    [
        ("classification", 4, [12], "uq:4|rice"),
        ("classification", 3, [], "int8:256"),
        ("regression", 1, [], "uq:4|rice"),
        ("regression", 1, [8, 6], "float32"),
        ("binary", 1, [], "int8:256"),
    ],
)
async def test_the_loss_falls(tmp_path: Path, code: Path, case: tuple[str, int, list[int], str]) -> None:
    task, outputs, hidden, codec = case
    model = {"inputs": 6, "outputs": outputs, "hidden": hidden, "task": task, "codec": codec}
    for said in await learn(tmp_path, code, HEAP + code_bytes(code), 40, **model):
        assert set(said[-1]["verdicts"]) == {"accepted"}
        losses = _losses(said)
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses
        assert not [line for line in said if line.get("event") in ("damaged", "unreachable", "too_large")]


async def test_four_thousand_parameters_and_a_hidden_layer_fit_into_96_kib(tmp_path: Path, code: Path) -> None:
    """Beside the code, which a board has in ROM. Objects of this 64-bit MicroPython are twice those of a board."""
    for said in await learn(tmp_path, code, HEAP + code_bytes(code), 3, **BOARD):
        assert said[-1]["verdicts"] == ["accepted"] * 3
        assert said[-1]["size"] == 4001
    assert sys.maxsize > 2**32
