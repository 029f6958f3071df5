"""Ingest rate of one aggregator: updates per second that are journaled, receipted and applied, and their cost.

    python -m benchmarks.ingest [--quick] [--json PATH] [--peers DIR [--flower PYTHON] [--appfl PYTHON]]

A real Mosquitto, the real aggregator with its store on disk in its own process, and publishers in another process that
replay prepared updates over real connections and wait for the receipts. In the same run: a bare subscriber on the same
connection that only counts the same messages from the same publishers (`bare_per_s`, `ratio`), the machine's limits,
and other systems if their environments are given, at float32 and the same number of parameters.

The default strategy and its limits apply; releases are spaced by `release_interval_s`, as in a busy federation. A row
`rate` is an open loop: updates are due at that rate, with latencies from when each was due; its p99 is set by the disk,
so the median of several runs is given (`p99_of_runs_ms` has all). `--data` is accepted and ignored: only the size of a
delta matters here. One JSON line.
"""

import argparse
import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from midge.broker.local.local_broker import LocalBroker, local_broker

DEFAULT = "uq:4|rice"
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
_TICKS = os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Process:
    """A child process, its events, and its resource usage."""

    def __init__(self, child: asyncio.subprocess.Process, name: str) -> None:
        self._child, self._name = child, name

    @classmethod
    async def start(cls, module: str, what: dict[str, Any]) -> "Process":
        arguments = (sys.executable, "-P", "-m", module, json.dumps(what))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, env=_ENVIRONMENT)
        return cls(child, module)

    async def line(self, seconds: float) -> Any:
        """The next event."""
        assert self._child.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended by itself")
        return json.loads(line)

    async def last(self) -> Any:
        """Close its input and return its last event."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        return await self.line(120)

    async def end(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()
        with suppress(ProcessLookupError):
            self._child.kill()
        await self._child.wait()

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, name: str = "VmHWM") -> float:
        """Peak or current memory (VmRSS) in megabytes."""
        lines = Path(f"/proc/{self._child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@asynccontextmanager
async def running(module: str, what: dict[str, Any]) -> AsyncIterator[Process]:
    process = await Process.start(f"benchmarks.{module}", what)
    try:
        yield process
    finally:
        await process.end()


class Ground:
    """A broker, a directory, and the settings that all rows share."""

    def __init__(self, broker: LocalBroker, directory: Path, warm: float) -> None:
        self.broker, self.directory, self.warm = broker, directory, warm

    def _what(self, row: dict[str, Any], **more: Any) -> dict[str, Any]:
        params = row["params"]
        window = row.get("window") or max(1, min(8, 128 // row["devices"], 4 * 10**6 // params))
        return {
            "url": f"mqtt://127.0.0.1:{self.broker.endpoint.port}",
            "port": self.broker.endpoint.port,
            "federation": f"ingest-{secrets.token_hex(4)}",
            "params": params,
            "codec": row["codec"],
            "devices": row["devices"],
            "connections": row.get("connections", 1000),
            "window": window,
            "seconds": row["seconds"],
            "updates": row.get("updates", 0),
            "rate": row.get("rate", 0),
            "warm": self.warm,
            "counter": str(self.directory / "counter"),
            "release_interval": max(1.0, params / 1e5),
            "shards": row.get("shards", 0),
            **more,
        }

    async def midge(self, row: dict[str, Any]) -> dict[str, Any]:
        """Measure the ingest rate; raise if an update is not accepted."""
        name = secrets.token_hex(4)
        what = self._what(row, role="aggregator", bare=False, store=str(self.directory / f"store-{name}"))
        async with running("ingest_servers", what) as server, running("ingest_publishers", what) as publishers:
            assert await publishers.line(200) == "begin"
            cpu, memory, watching = server.cpu(), [], None
            if row.get("updates"):
                watching = asyncio.create_task(_watch(server, memory))
            assert await publishers.line(row["seconds"] + 100) == "end"
            cpu, peak = server.cpu() - cpu, server.memory()
            if watching is not None:
                watching.cancel()
            found = await publishers.line(200)
            done = await server.last()
        if found["verdicts"] != {"accepted": found["sent"]} or done["applied"] != found["sent"]:
            raise RuntimeError(f"not all were accepted: {found} {done}")
        rate = found["updates_per_s"]
        return {
            "updates_per_s": round(rate, 1),
            "mb_per_s": round(rate * found["bytes"] / 1e6, 2),
            "receipt_p50_ms": round(found["p50_ms"], 2),
            "receipt_p99_ms": round(found["p99_ms"], 2),
            "cpu_ms_per_update": round(1000 * cpu / (rate * found["seconds"]), 3),
            "peak_mb": round(peak),
            "bytes": found["bytes"],
            "sent": found["sent"],
            "releases": done["version"],
            "steps": done["step"],
            "window": what["window"],
            "release_interval_s": what["release_interval"],
            **({"memory_mb": memory} if memory else {}),
        }

    async def bare(self, row: dict[str, Any], role: str) -> float:
        """Updates per second of a subscriber that only counts them."""
        what = self._what(row, role=role, bare=True, rate=0, updates=0)
        async with running("ingest_servers", what) as server:
            assert await server.line(20) == "ready"
            async with running("ingest_publishers", what) as publishers:
                assert await publishers.line(100) == "begin"
                assert await publishers.line(row["seconds"] + 100) == "end"
                found = await publishers.line(200)
        return float(found["updates_per_s"])


async def _watch(server: Process, memory: list[float]) -> None:
    """Sample the memory at least ten times during a long row."""
    while True:
        memory.append(round(server.memory("VmRSS"), 1))
        await asyncio.sleep(2)


def loopback(seconds: float = 0.5) -> float:
    """Megabytes per second through one bare loopback socket, read into the same memory."""
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender, suppress(OSError):
            data = bytes(2**20)
            while True:
                sender.sendall(data)

    threading.Thread(target=send, daemon=True).start()
    connection, _ = listener.accept()
    buffer, taken, began = bytearray(2**20), 0, time.perf_counter()
    with connection, listener:
        while time.perf_counter() < began + seconds:
            taken += connection.recv_into(buffer)
        return taken / (time.perf_counter() - began) / 1e6


def memcpy() -> float:
    """Gigabytes per second of a copy of 40 MB into allocated memory."""
    source, target, best = np.ones(10**7, np.float32), np.ones(10**7, np.float32), float("inf")
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return source.nbytes / best / 1e9


def rows_of(arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """All rows, by size."""
    if arguments.quick:
        seconds = 2.0
        yield {"params": 10_000, "codec": "float32", "devices": 8, "seconds": seconds}
        yield {"params": 100_000, "codec": "int8:256", "devices": 100, "seconds": seconds}
        yield {"params": 20_000, "codec": "int8:256", "devices": 100, "rate": 500.0, "seconds": 3.0, "times": 3}
        return
    seconds = arguments.seconds
    for params in (10_000, 100_000, 1_000_000, 10_000_000):
        for codec in ("float32", "int8:256", DEFAULT):
            for devices in (8, 100, 1000):
                if params * devices <= 10**9:
                    yield {"params": params, "codec": codec, "devices": devices, "seconds": seconds}
    yield {"params": 20_000, "codec": "int8:256", "devices": 100, "rate": 500.0, "seconds": 15.0, "times": 3}
    for devices in (10, 100, 1000, 10_000):  # cost of an update by number of devices, at one rate
        yield {"params": 10_000, "codec": DEFAULT, "devices": devices, "rate": 500.0, "seconds": 20.0, "bare": False}
    yield {"params": 10_000, "codec": DEFAULT, "devices": 100, "updates": 100_000, "seconds": 600.0, "bare": False}


async def measured(arguments: argparse.Namespace, wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for each in wanted:
        row = {"seconds": 2.5, **each}
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            async with local_broker("mosquitto", directory=Path(name)) as broker:
                ground = Ground(broker, Path(name), 0.7 if arguments.quick else 2.0)
                found: dict[str, Any] = {"connection": "paho", "load1": round(os.getloadavg()[0], 1)}
                others = [] if arguments.quick or row["params"] >= 10**7 else ["paho"]
                for role in ["counter", *others]:
                    if row.get("bare", True) and "rate" not in row:
                        bare = await ground.bare({**row, "seconds": min(row["seconds"], 5.0)}, role)
                        found["bare_per_s" if role == "counter" else "paho_per_s"] = round(bare, 1)
                runs = [await ground.midge(row) for _ in range(row.get("times", 1))]
                found |= sorted(runs, key=lambda run: float(run["receipt_p99_ms"]))[len(runs) // 2]
                if len(runs) > 1:
                    found["p99_of_runs_ms"] = [run["receipt_p99_ms"] for run in runs]
        if "bare_per_s" in found:
            found["ratio"] = round(found["updates_per_s"] / found["bare_per_s"], 3)
        shown = {name: row[name] for name in ("params", "codec", "devices", "rate") if name in row}
        rows.append({**shown, **found})
        say(json.dumps(rows[-1]))
    return rows


def peer(system: str, python: str, harness: Path, params: int, *options: str) -> dict[str, Any]:
    """Run another system's benchmark; return its JSON line under our name for it."""
    command = [python, str(harness / f"bench_{system}.py"), "ingest", "--params", str(params), *options]
    done = subprocess.run(command, cwd=harness, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}
    return {"system": system, "params": params, "codec": "float32", "mode": " ".join(options), **found}


def peers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Other systems, each in its best mode."""
    rows = []
    for params in (10_000, 1_000_000):
        if arguments.flower:
            options = ("--mode", "thin-fast", "--clients", "8", "--seconds", "12")
            rows.append(peer("flower", arguments.flower, arguments.peers, params, *options))
        if arguments.appfl:
            options = ("--clients", "4", "--seconds", "12", "--lean", "1")
            rows.append(peer("appfl", arguments.appfl, arguments.peers, params, *options))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rows, in less than a minute")
    parser.add_argument("--data", help="ignored: a delta's values make no difference here")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the line to this file")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row that has no number of its own")
    parser.add_argument("--directory", type=Path, help="where stores go: a disk, not memory; the temporary directory")
    parser.add_argument("--only", metavar="ROW", help='one row instead, as JSON: {"params": 10000, ...}')
    parser.add_argument("--peers", type=Path, metavar="DIR", help="the harness of the other systems")
    parser.add_argument("--flower", metavar="PYTHON")
    parser.add_argument("--appfl", metavar="PYTHON")
    arguments = parser.parse_args()
    wanted = [json.loads(arguments.only)] if arguments.only else rows_of(arguments)
    limits = {"loopback_mb_per_s": round(loopback()), "memcpy_gb_per_s": round(memcpy(), 2), "cpus": os.cpu_count()}
    rows = asyncio.run(measured(arguments, wanted))
    if arguments.peers and not arguments.quick:
        rows += peers(arguments)
    line = json.dumps({"benchmark": "ingest", "quick": arguments.quick, "limits": limits, "rows": rows})
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
