"""Latency of a release, from the update that completes a step until the devices hold the new version, and its cost.

    python -m benchmarks.release [--quick] [--parameters 100000] [--devices 100] [--byte-rate 0]

A real Mosquitto with default limits, a real aggregator with a store, and `neighbour_fleet`: real devices in one process
except for their work and their disks. Two of them send an update, which makes a step and a release; the others wait for
it. Time counts from the journaling of the second update until a device has checked the frames. Each row is the median
of several releases; `bytes` is the traffic to a device for one, `cpu_ms` a process's time for one: `server` counts from
the request for the updates, so it includes their decoding and the step.

With the default byte rate, devices of a large fleet fetch in turn; rows with the rate 0 show the time without it. One
JSON line, progress to stderr.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.neighbour_processes import Part, may_go_first, processor_seconds, stock_mosquitto

Row = dict[str, Any]
PATIENCE = 120.0


async def holding(fleet: Part, devices: int, version: int) -> list[float]:
    """When each device held a version, once all do."""

    def times(part: Part) -> dict[str, float]:
        return {event["device"]: event["at"] for event in part.of("holds") if event["version"] >= version}

    await fleet.until(lambda part: len(times(part)) >= devices, PATIENCE, f"version {version} everywhere")
    return list(times(fleet).values())


async def measured(devices: int, parameters: int, rate: float | None, times: int) -> Row:
    """Several releases to a number of devices."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        async with stock_mosquitto(Path(name)) as (port, broker):
            url = f"mqtt://127.0.0.1:{port}"
            spend = [] if rate is None else ["--byte-rate", rate]
            server = await Part.start("benchmarks.neighbour_server", url, f"{name}/store", parameters, *spend)
            fleet = await Part.start("benchmarks.neighbour_fleet", url, devices)
            try:
                await holding(fleet, devices, 1)
                for version in range(2, 2 + times):
                    await asyncio.sleep(1.0)
                    found.append(await one(server, fleet, broker, devices, version))
            finally:
                await fleet.kill()
                await server.kill()
    middle = {key: round(statistics.median(each[key] for each in found), 3) for key in found[0]}
    about = {"params": parameters, "devices": devices, "byte_rate": 8e6 if rate is None else rate}
    return {**about, **middle, "load": round(os.getloadavg()[0], 2)}


async def one(server: Part, fleet: Part, broker: int, devices: int, version: int) -> Row:
    """One release."""
    processes = {"server": server.process.pid, "broker": broker, "fleet": fleet.process.pid}
    before = {name: processor_seconds(process) for name, process in processes.items()}
    bytes_before, seen = fleet.last("count")["bytes_down"], len(server.of("update"))
    fleet.tell("contribute 2")
    await server.until(lambda part: len(part.of("update")) >= seen + 2, PATIENCE, "two updates")
    began = server.of("update")[seen + 1]["at"]
    took = sorted(at - began for at in await holding(fleet, devices, version))
    await asyncio.sleep(0.3)  # until the fleet has counted
    used = {f"{name}_cpu_ms": 1000 * (processor_seconds(processes[name]) - before[name]) for name in processes}
    released = next(event["at"] for event in server.of("release") if event["version"] == version)
    return {
        "release_ms": 1000 * (released - began),
        "p50_ms": 1000 * statistics.median(took),
        "last_ms": 1000 * took[-1],
        "bytes": (fleet.last("count")["bytes_down"] - bytes_before) / devices,
        **used,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 and 50 devices, one size")
    parser.add_argument("--data", help="ignored: the bytes are random")
    parser.add_argument("--devices", type=int, action="append")
    parser.add_argument("--parameters", type=int, action="append")
    parser.add_argument("--byte-rate", type=float, action="append", help="of the whole federation; 0 sets no limit")
    parser.add_argument("--times", type=int, help="releases for each row")
    options = parser.parse_args()
    times = options.times or (2 if options.quick else 5)
    rows = []
    for parameters in options.parameters or ([10_000] if options.quick else [10_000, 100_000]):
        for devices in options.devices or ([10, 50] if options.quick else [10, 100, 1000]):
            for rate in options.byte_rate or ([None] if options.quick else [None, 0.0]):
                print(f"{parameters} parameters, {devices} devices, rate {rate}", file=sys.stderr)
                rows.append(asyncio.run(measured(devices, parameters, rate, times)))
                print(f"  {rows[-1]}", file=sys.stderr)
    about = {"benchmark": "release", "quick": options.quick, "cores": os.cpu_count(), "realtime": may_go_first()}
    print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
