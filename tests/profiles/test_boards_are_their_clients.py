"""What a profile says of a microcontroller is what Midge's clients take: memory, and flash."""

import json
import subprocess
from pathlib import Path

import pytest

from midge.sensor_fleet.profiles.board import Board
from tests import needs
from tests.c_client.compiled import HERE, SANITIZED
from tests.c_client.compiled import compiled as compiled_c
from tests.micropython.board import PROGRAMS, code_bytes, compiled, run
from tests.micropython.heap import BOARD, TooSmall, learn

STACK = 2048
FROZEN = 240
"""Bytes of mean and scale of thirty inputs."""


@pytest.mark.parametrize("parameters", [600, 3800, 4001, 12_000])
def test_the_c_client_runs_in_what_its_formula_says_and_erases_as_many_sectors(tmp_path: Path, parameters: int) -> None:
    """Its outbox over flash as NOR flash is. A slot has more sectors than are written: those are not erased."""
    options = (*SANITIZED, f"-DPARAMETERS={parameters}")
    program = compiled_c(tmp_path / "power", [HERE / "power.c"], *options)
    done = subprocess.run([program, "measure"], capture_output=True, text=True, timeout=100, check=True)
    found, board = json.loads(done.stdout), Board()
    assert board.ram(parameters, 64) == found["arena"] + STACK
    assert len(found["updates"]) == 6
    for size, erased in found["updates"]:
        assert size > parameters
        assert board.update_erases(size) == erased


@needs.micropython
@pytest.mark.parametrize("parameters", [221, 977, 4001])
def test_the_micropython_client_erases_as_many_sectors_of_littlefs(parameters: int) -> None:
    """With a header and a schema, 4,001 parameters take five sectors: four would hold 4,096."""
    found = json.loads(run(PROGRAMS / "wear.py", parameters, heap=2**25).stdout)
    board = Board(client="micropython")
    update, model = board.update_erases(found["body"]), board.model_erases(parameters, FROZEN)
    assert update == pytest.approx(found["update"], abs=0.05) and model == pytest.approx(found["model"], abs=0.05)
    assert update + model == pytest.approx(found["update"] + found["model"], abs=0.02)


@needs.micropython
@needs.mpy_cross
@needs.mosquitto
async def test_the_micropython_client_federates_on_the_heap_that_its_formula_says_and_not_on_much_less(
    tmp_path: Path,
) -> None:
    """A perceptron of 4,001 parameters, beside the code, which a board has in ROM."""
    code = compiled(tmp_path / "code")
    heap = Board(client="micropython").ram(4001, FROZEN) + code_bytes(code)
    (enough := tmp_path / "enough").mkdir()
    for said in await learn(enough, code, heap, 3, **BOARD):
        assert said[-1]["verdicts"] == ["accepted"] * 3
    (less := tmp_path / "less").mkdir()
    with pytest.raises(TooSmall):
        await learn(less, code, heap - 12 * 1024, 3, **BOARD)
