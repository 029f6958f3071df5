"""Large models both ways over a slow link that breaks: seconds, repeated bytes, and memory at both ends.

A device in its own process reaches a real Mosquitto through a proxy that limits the bandwidth and resets the connection
at intervals; the aggregator is another process, next to the broker. The model is fetched as a snapshot of exact random
weights, which hardly compress, and returned as one float32 update, the largest possible one. For comparison: a copy of
the same bytes through the same proxy without breaks.

    python -m benchmarks.transfer [--quick] [--megabytes 30] [--bandwidth 2e6]
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from midge.broker.local.local_broker import local_broker
from tests.harness.proxy import Proxy, Weather

CHILD = """
import asyncio, json, resource, sys
import numpy as np
from dataclasses import replace
from midge.aggregator.config import AggregatorConfig
from midge.aggregator.service import Aggregator
from midge.aggregator.core.presets import fedbuff
from midge.broker import Endpoint, connector
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit
from midge.wire.messages import Plan

role, url, path, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def tell(event):
    if event["event"] not in ("device", "stored", "settled"):
        print(json.dumps({**event, "rss": peak()}, default=str), flush=True)

if role == "aggregator":
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(size=size).astype(np.float32)}
    strategy = replace(fedbuff(1), release_floor=1, plan=Plan(codec="float32", feedback=False))
    config = AggregatorConfig(connector=connector(Endpoint.parse(url)), federation="f", initial=model,
                              strategy=strategy, roles={"w": "averaged"}, store=path, on_event=tell)
    Aggregator(config).run()
else:
    async def train(parameters, plan):
        if train.done:
            await asyncio.Event().wait()
        train.done = True
        return Fit({"w": parameters["w"] + np.float32(1e-3)}, examples=1)
    train.done = False
    Device(DeviceConfig(connector=connector(Endpoint.parse(url)), federation="f", name="d", train=train, outbox=path,
                        on_event=tell, keepalive=20)).run()
"""


async def child(role: str, url: str, path: Path, size: int) -> asyncio.subprocess.Process:
    """One end: a process that prints events as JSON lines."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = (sys.executable, "-P", "-c", CHILD, role, url, str(path), str(size))
    return await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE, env=environment)


class Ends:
    """The events of both ends."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended: str | None = None
        self._news = asyncio.Event()

    async def read(self, role: str, process: asyncio.subprocess.Process) -> None:
        """Record a process's events until it ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            self.events.append({"role": role, "at": time.perf_counter(), **json.loads(line)})
            self._news.set()
        self.ended = role
        self._news.set()

    async def first(self, role: str, event: str, **fields: object) -> dict[str, Any]:
        """The first event of a kind."""
        while True:
            for each in self.events:
                if each["role"] == role and each["event"] == event and fields.items() <= each.items():
                    return each
            if self.ended is not None:
                raise RuntimeError(f"the {self.ended} ended by itself")
            self._news.clear()
            await self._news.wait()

    def rss(self, role: str, until: float) -> float:
        """Peak memory of a process in megabytes."""
        return max((event["rss"] for event in self.events if event["role"] == role and event["at"] <= until), default=0)


async def measured(megabytes: float, bandwidth: float, every: int | None) -> list[dict[str, Any]]:
    """Both directions under one weather: a row each."""
    size, ends = int(megabytes * 250_000), Ends()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with local_broker("mosquitto", directory=directory) as broker:
            proxy = Proxy(broker.endpoint.port, Random(0))
            proxy.change(Weather(bandwidth=bandwidth, reset_after=every))
            async with proxy.serving():
                server = await child("aggregator", str(broker.endpoint), directory / "store", size)
                reading = [asyncio.create_task(ends.read("aggregator", server))]
                await ends.first("aggregator", "release")
                await asyncio.sleep(2 + megabytes / 20)  # until it is at the broker
                began = time.perf_counter()
                device = await child("device", f"mqtt://127.0.0.1:{proxy.port}", directory / "d.outbox", size)
                reading.append(asyncio.create_task(ends.read("device", device)))
                rows = []
                try:
                    trained = await ends.first("device", "training")
                    rows.append({**row(ends, "down", began, trained["at"], proxy.passed[1]), "breaks": proxy.breaks})
                    up, breaks = proxy.passed[0], proxy.breaks
                    taken = await ends.first("aggregator", "update", verdict="accepted")
                    up, breaks = proxy.passed[0] - up, proxy.breaks - breaks
                    rows.append({**row(ends, "up", trained["at"], taken["at"], up), "breaks": breaks})
                finally:
                    for process in (device, server):
                        with suppress(ProcessLookupError):
                            process.kill()
                        await process.wait()
                    await asyncio.gather(*reading, return_exceptions=True)
    for each in rows:
        each |= {"model_mb": megabytes, "copy_seconds": round(await copied(each["body_bytes"], bandwidth), 1)}
    return rows


async def copied(size: int, bandwidth: float) -> float:
    """Seconds for a plain copy of this many bytes through such a proxy."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(size)
        writer.write(b"!")

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], Random(0))
    proxy.change(Weather(bandwidth=bandwidth))
    async with server, proxy.serving():
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began = time.perf_counter()
        writer.write(bytes(size))
        await reader.readexactly(1)
        writer.close()
        return time.perf_counter() - began


def row(ends: Ends, way: str, began: float, ended: float, passed: int) -> dict[str, Any]:
    """One direction. `bytes` went through the proxy, with repetitions and MQTT's overhead."""
    progress = [event for event in ends.events if event["event"] == "progress" and event["way"] == way]
    total = max((event["total"] for event in progress), default=0)
    return {
        "direction": way,
        "body_bytes": total,
        "bytes": passed,
        "seconds": round(ended - began, 1),
        "resent_bytes": max(0, passed - total),
        "peak_rss_mb_device": round(ends.rss("device", ended)),
        "peak_rss_mb_aggregator": round(ends.rss("aggregator", ended)),
        "progress_events": len(progress),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 MB instead of 30")
    parser.add_argument("--data", help="ignored")
    parser.add_argument("--megabytes", type=float)
    parser.add_argument("--bandwidth", type=float, default=2e6, help="bytes per second")
    arguments = parser.parse_args()
    megabytes = arguments.megabytes or (3 if arguments.quick else 30)
    rows = []
    for every in (None, int(megabytes * 1e6 / 5)):
        print(f"{megabytes} MB, a break after each {every} bytes", file=sys.stderr)
        rows += asyncio.run(measured(megabytes, arguments.bandwidth, every))
    print(json.dumps({"benchmark": "transfer", "rows": rows}))


if __name__ == "__main__":
    main()
