"""The aggregator's process as a child: start, kill, restart on the same store, stop."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MODULE = "midge.sensor_fleet.live.server"
_LIBRARIES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_STOP_TIMEOUT = 60.0
"""Timeout for writing its checkpoint and the model, in seconds."""
_LONGEST_EVENT = 2**20
"""Maximum bytes of one event."""


class DemoError(Exception):
    """The run cannot continue; the message says why."""


class AggregatorProcess:
    """`python -m midge.sensor_fleet.live.server`, or another module, as a child that ends when its input closes."""

    def __init__(
        self,
        task: Mapping[str, Any],
        log: Path,
        on_event: Callable[[dict[str, Any]], None],
        *,
        module: str = MODULE,
        name: str = "aggregator",
    ) -> None:
        self._module, self._name = module, name
        self._task = json.dumps(dict(task)).encode() + b"\n"
        self._log = log
        self._on_event = on_event
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._wanted = False
        """False once it was killed or asked to stop."""
        self._lock = asyncio.Lock()
        """Serialises start and stop: the user may restart it while the run ends."""
        self._stopped = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets a DemoError if the process ends by itself."""

    @property
    def running(self) -> bool:
        return self._wanted and self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it on the existing store, unless it is running or was stopped."""
        async with self._lock:
            await self._wait_for_end()
            if not self._stopped and not self.running:
                await self._spawn()

    async def _spawn(self) -> None:
        with self._log.open("ab") as log:  # not the terminal, which a live view may use
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a file of the user's in this directory must not shadow our modules
                "-m",
                self._module,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                env={**os.environ, **dict.fromkeys(_LIBRARIES, "1")},
                limit=_LONGEST_EVENT,
            )
        self._wanted = True
        assert self._process.stdin is not None
        self._process.stdin.write(self._task)
        self._reading = asyncio.create_task(self._read(self._process))

    def kill(self) -> None:
        """Kill it with SIGKILL: like a power failure, without a checkpoint."""
        self._wanted = False
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Have it write a checkpoint and the model, and end for good; kill it on timeout."""
        async with self._lock:
            self._wanted, self._stopped = False, True
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT):
                    await self._wait_for_end()
            except TimeoutError:
                self.kill()
                await self._wait_for_end()

    async def _wait_for_end(self) -> None:
        """If it is to end, wait until it has and all its events have been read."""
        if self._wanted:
            return
        if self._process is not None and self._reading is not None:
            await self._process.wait()
            await asyncio.wait({self._reading})
            self._reading.result()
            self._reading = None

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        why = f"The {self._name}'s process ended unexpectedly; its output is in {self._log}."
        async for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed while writing an event
            event = json.loads(line)
            if event["event"] == "failed":
                why = event["why"]
            else:
                self._on_event(event)
        if self._wanted and not self.failure.done():
            self.failure.set_exception(DemoError(why))
