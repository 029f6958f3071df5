"""Interference with other users of the broker: the latency of a telemetry load next to a federation's heaviest load.

    python -m benchmarks.neighbour [--quick] [--case drain] [--byte-rate 8e6]

Fifty publishers send small messages through a Mosquitto with default limits, and their end-to-end latency is measured
in a separate process. Meanwhile a real aggregator with a store and many devices (`neighbour_fleet`: real sessions,
connections, fetchers and outboxes; no arithmetic, no disk, at a lower priority) do this:

- `release`: a first model of 10 MB in float32 is released to devices that hold nothing;
- `reconnect`: all connections break at once while the next version is released, and every device fetches it;
- `drain`: the aggregator returns to full outboxes, of 50 KB each. The length of the downtime makes no difference:
  devices stop training when their outboxes are full.

The same telemetry runs through a second, otherwise idle Mosquitto at the same time: `p99_other_ms` is the influence of
the machine itself, with all of Midge running on it.

`lost` counts failures: devices without the model, updates that are not applied exactly once, and lost telemetry
messages. `drain_s` is the time until everything is done. One JSON line, progress to stderr.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.neighbour_processes import Part, may_go_first, stock_mosquitto

Row = dict[str, Any]
Stretch = tuple[float, float]
Times = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""When each message was sent, and when it arrived."""
Outcome = tuple[Stretch, Stretch, int]
"""A period of telemetry alone, one next to a case, and the number of losses of the case."""


class Scene:
    """A broker, and the parts of Midge started so far."""

    def __init__(self, directory: Path, port: int, options: argparse.Namespace) -> None:
        self.directory, self.port, self.options = directory, port, options
        self.parts: list[Part] = []

    async def aggregator(self, parameters: int, *more: object) -> Part:
        rate = [] if self.options.byte_rate is None else ["--byte-rate", self.options.byte_rate]
        arguments = (self.url, self.directory / "store", parameters, *rate, *more)
        return await self._start("benchmarks.neighbour_server", *arguments)

    async def fleet(self, devices: int) -> Part:
        return await self._start("benchmarks.neighbour_fleet", self.url, devices)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def _start(self, module: str, *arguments: object) -> Part:
        part = await Part.start(module, *arguments)
        self.parts.append(part)
        return part

    async def quiet(self) -> Stretch:
        """Let the telemetry run alone for a while."""
        await asyncio.sleep(1.0)
        began = time.monotonic()
        await asyncio.sleep(self.options.before)
        return began, time.monotonic()


async def fetched(scene: Scene, devices: int, parameters: int) -> dict[str, Outcome]:
    """A new model for waiting devices; then all lose their connections, and the next version is released."""
    fleet = await scene.fleet(devices)
    await fleet.until(lambda part: part.last("count").get("connects", 0) >= devices, 120, "fleet that is connected")
    before = await scene.quiet()
    began = time.monotonic()
    server = await scene.aggregator(parameters)
    held = await _hold(scene, fleet, devices, 1)
    release = before, (began, time.monotonic()), devices - held
    before = await scene.quiet()
    fleet.tell("contribute 2")
    await server.until(lambda part: len(part.of("update")) >= 1, 60, "update")
    began = time.monotonic()
    fleet.tell("cut")
    held = await _hold(scene, fleet, devices, 2)
    await fleet.until(lambda part: part.last("count")["up"] >= devices, 60, "fleet that is back")
    return {"release": release, "reconnect": (before, (began, time.monotonic()), devices - held)}


async def _hold(scene: Scene, fleet: Part, devices: int, version: int) -> int:
    """Wait until all hold a version or a later one; return how many do."""

    def holding(part: Part) -> int:
        return len({event["device"] for event in part.of("holds") if event["version"] >= version})

    try:
        await fleet.until(lambda part: holding(part) >= devices, scene.options.patience, f"version {version}")
    except RuntimeError as error:
        print(error, file=sys.stderr)
    return holding(fleet)


async def drained(scene: Scene, devices: int, parameters: int) -> dict[str, Outcome]:
    """An update in each outbox, and an aggregator that returns."""
    server = await scene.aggregator(parameters, "--codec", "float32", "--buffer", 50)
    fleet = await scene.fleet(devices)
    await fleet.until(lambda part: len(part.of("holds")) >= devices, 600, "fleet that has come up")
    await asyncio.sleep(2)
    await server.end()
    fleet.tell(f"contribute {devices}")
    await fleet.until(lambda part: part.last("count").get("holding", 0) >= devices, 240, "full outboxes")
    fleet.tell("rest")
    before = await scene.quiet()
    began = time.monotonic()
    again = await scene.aggregator(parameters, "--codec", "float32", "--buffer", 50)
    try:
        settled = lambda part: part.last("count")["holding"] == 0  # noqa: E731
        await fleet.until(settled, scene.options.patience, "empty outboxes")
    except RuntimeError as error:
        print(error, file=sys.stderr)
    during = began, time.monotonic()
    await asyncio.sleep(0.5)
    accepted = len({event["device"] for event in again.of("update", verdict="accepted")})
    repeats = len(again.of("repeat"))
    print(f"  {accepted} accepted, {repeats} came twice and counted once", file=sys.stderr)
    return {"drain": (before, during, devices - accepted)}


CASES = {"fetch": fetched, "drain": drained}


async def measured(case: str, devices: int, parameters: int, options: argparse.Namespace) -> list[Row]:
    """A case on a broker of its own."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "other").mkdir()
        async with stock_mosquitto(directory) as (port, _), stock_mosquitto(directory / "other") as (other, _):
            files = directory / "telemetry.npz", directory / "other.npz"
            telemetry = [
                await Part.start("benchmarks.neighbour_telemetry", at, file, before_others=True)
                for at, file in zip((port, other), files, strict=True)
            ]
            scene = Scene(directory, port, options)
            try:
                for part in telemetry:
                    await part.until(lambda part: bool(part.of("running")), 20, "telemetry")
                outcomes = await CASES[case](scene, devices, parameters)
                await asyncio.sleep(1)
                last = [await part.end() for part in scene.parts]
                for part in telemetry:
                    await part.end()
            finally:
                for part in (*scene.parts, *telemetry):
                    await part.kill()
            loads = [_load(file) for file in files]
    sent, came = loads[0]
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {name: [*before, *during] for name, (before, during, _) in outcomes.items()}
        arrays |= {"sent": sent, "came": came, "other_sent": loads[1][0], "other_came": loads[1][1]}
        np.savez(options.keep / f"{case}-{devices}.npz", **arrays)
        (options.keep / f"{case}-{devices}.json").write_text(json.dumps([part.events for part in scene.parts]))
    about = {
        **({} if options.byte_rate is None else {"byte_rate": options.byte_rate}),
        "telemetry_lost": int(np.isnan(came).sum()),
        "bytes_mb": round(sum(each.get("down", 0) + each.get("up", 0) for each in last) / 1e6, 1),
        "load": round(os.getloadavg()[0], 2),
    }
    model = round(parameters * 4e-6, 2)
    return [
        {"case": name, "devices": devices, "model_mb": model, **row(loads, *outcome), **about}
        for name, outcome in outcomes.items()
    ]


def _load(file: Path) -> Times:
    with np.load(file) as times:
        return times["sent"], times["came"]


def row(loads: list[Times], before: Stretch, during: Stretch, lost: int) -> Row:
    """The telemetry in both periods, and on the other broker in the second one."""
    quiet, busy, other = window(*loads[0], before), window(*loads[0], during), window(*loads[1], during)
    return {
        "p50_before_ms": percentile(quiet, 50),
        "p99_before_ms": percentile(quiet, 99),
        "p50_during_ms": percentile(busy, 50),
        "p99_during_ms": percentile(busy, 99),
        "p99_other_ms": percentile(other, 99),
        "worst_before_ms": percentile(quiet, 100),
        "worst_during_ms": percentile(busy, 100),
        "drain_s": round(during[1] - during[0], 1),
        "lost": lost,
        "messages": len(busy),
    }


def window(sent: npt.NDArray[Any], came: npt.NDArray[Any], stretch: Stretch) -> npt.NDArray[Any]:
    """Latency in seconds of the messages sent in a period."""
    chosen = (sent >= stretch[0]) & (sent <= stretch[1]) & ~np.isnan(came)
    delays: npt.NDArray[Any] = (came - sent)[chosen]
    return delays


def percentile(seconds: npt.NDArray[Any], share: float) -> float:
    """In milliseconds."""
    return round(1000 * float(np.percentile(seconds, share)), 2) if len(seconds) else float("nan")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 MB, 30 devices and 200 outboxes")
    parser.add_argument("--data", help="ignored: the bytes are random")
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--megabytes", type=float)
    parser.add_argument("--byte-rate", type=float, help="bytes per second of the whole federation; 0 sets no limit")
    parser.add_argument("--before", type=float, help="seconds of telemetry alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write all times and events to this directory")
    parser.add_argument("--patience", type=float, help="timeout of a case in seconds")
    options = parser.parse_args()
    options.before = options.before or (2.0 if options.quick else 10.0)
    options.patience = options.patience or (30.0 if options.quick else 240.0)
    megabytes = options.megabytes or (2.0 if options.quick else 10.0)
    sizes: dict[str, tuple[int, ...]] = {"fetch": (30,), "drain": (200,)}
    if not options.quick:
        sizes = {"fetch": (100, 300), "drain": (3000,)}
    rows = []
    for case in CASES if options.case is None else (options.case,):
        for devices in sizes[case] if options.devices is None else (options.devices,):
            print(f"{case}, {devices} devices", file=sys.stderr)
            parameters = 12_500 if case == "drain" else round(megabytes * 250_000)
            new = asyncio.run(measured(case, devices, parameters, options))
            rows += new
            print(*new, sep="\n", file=sys.stderr)
    about = {"benchmark": "neighbour", "quick": options.quick, "cores": os.cpu_count(), "realtime": may_go_first()}
    print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
