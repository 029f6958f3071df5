"""The C client, compiled for tests: with sanitizers, without warnings."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import needs
from tests.harness.processes import ROOT

CLIENT = ROOT / "iot_client" / "c"
HERE = Path(__file__).parent
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-ffp-contract=off")
"""Fused multiply-adds would round once where two roundings are meant, and only on some processors."""
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PATIENCE = 300
"""Seconds that a compiler may take on a machine that is busy."""


def compiled(
    target: Path, sources: Sequence[Path], *options: str, compiler: str = "gcc", needed: str = needs.GCC
) -> Path:
    """A program made of these sources; the test that asks is left out where there is no compiler."""
    command = [needs.program(compiler, needed), *STRICT, *options, *map(str, sources), "-lm", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return target


def device(folder: Path, *options: str) -> Path:
    """The ledger's device, over the POSIX port."""
    sources = (CLIENT / "midge.c", CLIENT / "ports" / "posix.c", HERE / "device.c")
    return compiled(folder / "device", sources, *(options or SANITIZED))


class Runner:
    """Runs functions of the client on lines."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0, "a sanitizer found something"

    def ask(self, *words: Any) -> str:
        """The answer to a command; bytes travel as hexadecimal digits."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = " ".join(word.hex() or "-" if isinstance(word, bytes) else str(word) for word in words)
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended at {line[:60]}"
        return answer.rstrip("\n")
