"""The core on a Cortex-M4, in QEMU: the same bits as on the host. And its size."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from midge.iot_client.training.numpy_models import MLP
from midge.wire.lineage import encode_snapshot, on_grid
from midge.wire.schema import Schema
from tests import needs
from tests.c_client.compiled import CLIENT, HERE, SANITIZED, compiled

BOARD = ("-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-ffunction-sections")
LINKED = ("-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections", "-Wno-pedantic")
PATIENCE = 120
"""Seconds that the emulator may take on a machine that is busy."""

MOST_TEXT, LEAST_TEXT = 20_000, 15_600
"""Bytes of code and constants without SHA-256 and CRC-32: of everything, and without training and the codec uq."""


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    """The folder of `core.h`, which holds the model as a snapshot."""
    model = MLP(inputs=12, hidden=(16,), outputs=4)
    parameters = model.initial(3)
    schema = Schema.of(parameters, {"input_mean": "frozen", "input_scale": "frozen"})
    state = on_grid(schema.flatten(parameters), schema, schema.freeze(parameters))
    numbers = ", ".join(map(str, encode_snapshot(state)))
    (tmp_path / "core.h").write_text(f"static const unsigned char core_snapshot[] = {{{numbers}}};\n")
    return tmp_path


def on_host(folder: Path, *options: str) -> list[str]:
    sources = [HERE / "core.c", HERE / "core_host.c"]
    program = compiled(folder / "core", sources, f"-I{folder}", *options)
    done = subprocess.run([program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout.splitlines()


def test_a_cortex_m4_comes_to_the_bits_of_the_host(problem: Path) -> None:
    qemu = needs.program("qemu-system-arm", needs.QEMU)
    image = compiled(
        problem / "core.elf",
        [HERE / "core.c", HERE / "core_board.c"],
        f"-I{problem}",
        *BOARD,
        *LINKED,
        f"-T{HERE / 'core.ld'}",
        compiler="arm-none-eabi-gcc",
        needed=needs.ARM,
    )
    command = [qemu, "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = (done.stdout + done.stderr).splitlines()
    assert said == on_host(problem, *SANITIZED)
    assert [line.split()[0] for line in said] == [
        "state",
        *["weights", "loss", "uq:4|rice"] * 2,
        "weights",
        "loss",
        "int8:256",
    ]
    assert said == on_host(problem, "-O3", "-funroll-loops")


def test_the_state_is_that_of_python(problem: Path) -> None:
    """And so a training begins from the same bits."""
    model = MLP(inputs=12, hidden=(16,), outputs=4)
    parameters = model.initial(3)
    schema = Schema.of(parameters, {"input_mean": "frozen", "input_scale": "frozen"})
    state = on_grid(schema.flatten(parameters), schema, schema.freeze(parameters))
    import hashlib

    assert on_host(problem, "-O2")[0] == "state " + hashlib.sha256(state.digest()).hexdigest()[:32]
    assert np.isfinite(state.values()).all()


@pytest.mark.parametrize(
    ("options", "most"), [((), MOST_TEXT), (("-DMIDGE_UNIFORM=0", "-DMIDGE_TRAINING=0"), LEAST_TEXT)]
)
def test_code_and_memory_stay_within_what_a_small_board_has(options: tuple[str, ...], most: int) -> None:
    needs.program("arm-none-eabi-gcc", needs.ARM)
    command = ["sh", str(CLIENT / "size.sh"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["c_ram_bytes"] <= 8192
    assert found["c_text_bytes"] <= most
