"""How much heap a device takes: boards that learn a small perceptron, on heaps of several sizes."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from midge.broker.local.local_broker import local_broker
from tests.harness.processes import PROGRAM, Actor
from tests.micropython.board import PROGRAMS, code_bytes, command, compiled, environment
from tests.micropython.learning import VARIABLE
from tests.ports import free_port

BOARD = {"inputs": 30, "outputs": 5, "hidden": [111], "task": "classification", "codec": "int8:256"}
"""A perceptron of 4,001 parameters with one hidden layer."""
_LEAST, _MOST, _STEP = 16, 256, 2
"""KiB between which the smallest heap is looked for, and how exactly."""


class TooSmall(Exception):
    """A board ended without its updates."""


async def learn(directory: Path, code: Path, heap: int, updates: int, **model: Any) -> list[list[dict[str, Any]]]:
    """What each of two boards printed; the second one has as much heap as it wants if the first one's is small.

    Raises:
        TooSmall: the first one's heap is; with what it said.
    """
    async with local_broker("mosquitto", directory=directory, port=free_port()) as broker:
        port = broker.endpoint.port
        words = [*PROGRAM, "aggregate", "tests.micropython.learning:app", "--broker", f"mqtt://127.0.0.1:{port}"]
        said = json.dumps({**model, "store": str(directory / "store")})
        server = Actor("aggregator", [*words, "--json"], directory / "aggregator.log", {VARIABLE: said})
        await server.start()
        try:
            rest = (model["inputs"], model["outputs"], model["task"], updates)
            boards = [
                await asyncio.create_subprocess_exec(
                    *command(PROGRAMS / "learn.py", port, f"board-{number}", *rest, heap=heap << 4 * number),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env=environment(code),
                    cwd=directory,
                )
                for number in range(2)
            ]
            said_by = [(await boards[0].communicate())[0].decode()]
            if boards[0].returncode:
                with suppress(ProcessLookupError):
                    boards[1].kill()
            said_by.append((await boards[1].communicate())[0].decode())
            if boards[0].returncode:
                raise TooSmall(said_by[0])
            return [[json.loads(line) for line in text.splitlines()] for text in said_by]
        finally:
            await server.kill()


async def smallest(directory: Path, **model: Any) -> int:
    """The smallest heap in KiB on which a board trains and sends a model, beside its code."""
    code = compiled(directory / "code")
    low, high = _LEAST, _MOST
    while high - low > _STEP:
        middle = (low + high) // 2
        (run := directory / f"heap-{middle}").mkdir()
        try:
            await learn(run, code, 1024 * middle + code_bytes(code), 3, **{**BOARD, **model})
        except TooSmall:
            low = middle
        else:
            high = middle
    return high


if __name__ == "__main__":
    import sys
    import tempfile

    for hidden in (6, 27, 111):
        for codec in ("int8:256", "uq:4|rice"):
            with tempfile.TemporaryDirectory() as folder:
                size = 30 * hidden + hidden + 5 * hidden + 5
                kib = asyncio.run(smallest(Path(folder), hidden=[hidden], codec=codec))
                sys.stdout.write(f"{size} parameters, {codec}: {kib} KiB\n")
