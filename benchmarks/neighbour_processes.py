"""Processes with JSON events and line commands, and a broker with default settings."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import Child, dying_with_parent, free_port
from midge.broker.mqtt.connection import BrokerUnreachable

ROOT = Path(__file__).parents[1]
Event = dict[str, Any]
_REALTIME = ["chrt", "-f", "5"]
"""Linux's SCHED_FIFO: runs until it blocks, before all ordinary processes."""


@asynccontextmanager
async def stock_mosquitto(directory: Path) -> AsyncIterator[tuple[int, int]]:
    """A Mosquitto with default limits; its port and its process.

    Only `set_tcp_nodelay` differs: otherwise Nagle's algorithm delays telemetry by 40 ms, which would mask our effect.

    Raises:
        BrokerUnreachable: it is not installed, or does not start.
    """
    port = free_port()
    lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "persistence false", "set_tcp_nodelay true"]
    lines += ["log_dest stderr", "connection_messages false"]
    if os.geteuid() == 0:
        lines.append("user root")
    path = directory / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n")
    async with mosquitto(path, port, directory / "mosquitto.log", ready=" running") as process:
        yield port, process


@asynccontextmanager
async def mosquitto(configuration: Path, port: int, log: Path, *, ready: str = "") -> AsyncIterator[int]:
    """A Mosquitto with this configuration, which serves a port; its process.

    Raises:
        BrokerUnreachable: it is not installed, or does not start.
    """
    binary = find_mosquitto()
    if binary is None:
        raise BrokerUnreachable("This benchmark needs Mosquitto: apt-get install mosquitto.")
    child = Child(first([str(binary), "-c", str(configuration)]), log, ready=ready)
    try:
        if not await child.serves("127.0.0.1", port):
            raise BrokerUnreachable(f"Mosquitto ended as it started: {child.log_tail()}")
        yield child._process.pid  # noqa: SLF001 - to see what it uses
    finally:
        await child.stop()


def processor_seconds(process: int) -> float:
    """Resources that a process has used so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first(command: list[str]) -> list[str]:
    """Prefix a command so that it runs with real-time priority.

    Otherwise a p99 below a millisecond measures the scheduler and other work. Without the right to (Linux,
    CAP_SYS_NICE) the command is unchanged.
    """
    return [*_REALTIME, *command] if may_go_first() else command


@cache
def may_go_first() -> bool:
    """Whether `first` has any effect."""
    if shutil.which(_REALTIME[0]) is None:
        return False
    return subprocess.run([*_REALTIME, "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0


class Part:
    """A process. Its events are kept in `events`."""

    def __init__(self, process: asyncio.subprocess.Process, seen: Callable[[Event], None] | None = None) -> None:
        self.process = process
        self.events: list[Event] = []
        self._seen = seen
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, module: str, *arguments: object, before_others: bool = False) -> "Part":
        """Start one of our modules."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        command = dying_with_parent(first(command) if before_others else command)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, "PYTHONPATH": str(ROOT)},
            limit=2**20,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith(b"{"):
                self.events.append(json.loads(line))
            else:
                self.events.append({"event": line.decode().strip()})
            self._news.set()
        self._news.set()

    def of(self, event: str, **fields: object) -> list[Event]:
        """All events of a kind so far."""
        return [each for each in self.events if each["event"] == event and fields.items() <= each.items()]

    def last(self, event: str) -> Event:
        """The newest event of a kind; empty if there is none."""
        return next((each for each in reversed(self.events) if each["event"] == event), {})

    async def until(self, so: Callable[["Part"], bool], within: float, what: str) -> None:
        """Wait until a condition holds.

        Raises:
            RuntimeError: the process ended first, or it took too long.
        """
        try:
            async with asyncio.timeout(within):
                while not so(self):
                    if self._reading.done():
                        raise RuntimeError(f"a process ended before {what}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise RuntimeError(f"within {within:g} s there was no {what}: {self.events[-3:]}") from None

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def end(self, within: float = 30.0) -> Event:
        """Close its standard input and wait until it ends; return its last event."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.process.wait()
                await self._reading
        await self.kill()
        return self.last("end")

    async def kill(self) -> None:
        """Kill it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading
