"""Traffic and quality by codec: `python -m benchmarks.bytes [--quick] [--data FILE.npz]` prints one JSON line.

`rows`: for each data set and codec the model's quality, and the bytes on the wire for each accepted update. The quality
comes from simulated federations on a virtual clock, in an adverse world, with the same seeds for all codecs. The bytes
come from a live federation of the same data: real devices and a real broker, with a counting TCP proxy between them. So
they include MQTT's headers, greetings, statistics, receipts, announcements and reconnections, but neither TCP's own
headers nor TLS.

- `bytes_up`, `bytes_down`: of all devices, for each accepted update. Joining is left out: counting begins once the
  number of accepted updates equals the number of devices.
- `ratio_up`: the trained tensors as float32, over `bytes_up`. `ratio_down`: the whole model as float32 for each
  training that began, over the bytes that devices received.
- `raw_bytes`: the training rows of one device as stored; `updates_for_raw` updates have the same size.

`downlink`: the same live measurement by the number of devices per update of a release, which is the number of versions
and announcements between two trainings of a device. Counting begins at three updates per device and lasts for ten: most
late and slow devices have fetched their first snapshot by then.

Without `--quick`, results are kept in `benchmarks/results/bytes.json` codec by codec, so that an interrupted run can be
resumed; `python docs/compression.py` generates the page's tables and picture from them.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.demo import demo_fleet
from midge.sensor_fleet.live.aggregator_process import AggregatorProcess
from midge.sensor_fleet.live.fleet import LiveFleet
from midge.sensor_fleet.models import FleetModel, model_for
from midge.sensor_fleet.progress import Progress
from midge.sensor_fleet.setting import BrokerAddress, Setting
from midge.sensor_fleet.simulation.simulate import simulate
from midge.sensor_fleet.world import World
from midge.wire.messages import Plan

DEFAULT = Plan().codec
EXTREME = "uq:5|rice"
CODECS = (
    "float32", DEFAULT, EXTREME, "uq:3|rice", "stc:0.05", "stc:0.02", "int8:256", "int4:128:random", "eden:1",
    "randk:0.25|eden:1", "topk:0.01|int8:256", "bf16",
)  # fmt: skip
QUICK = ("float32", DEFAULT, EXTREME)
FIRST = (*QUICK, "stc:0.02", "randk:0.25|eden:1")
"""The codecs of most interest, measured on all data sets before the others."""
SETS = {"digits": (40.0, 5), "spsw_har": (40.0, 5), "cmapss_fd001": (40.0, 3), "fashion_mnist": (40.0, 3)}
"""Virtual seconds of a run, in which the median device trains in half a second; and seeds."""
CURVES = ("digits", "spsw_har")
PER_UPDATE = (1, 2, 5, 10, 20)
"""Devices per update of a release, for the curves."""
LIVE = 240
"""Updates over which bytes are counted."""
PATIENCE = 120.0
WHEEL = 20
"""Evaluations whose mean is the quality: the last fifth of a run."""
RESULTS = Path(__file__).with_name("results") / "bytes.json"


class Counter:
    """A TCP proxy to a local port that counts the bytes it carries."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = self.up = self.down = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Counter"]:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pump(reader, there, up=True), self._pump(back, writer, up=False))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass(frozen=True)
class Wire:
    """The traffic of a live run."""

    accepted: int
    trainings: int
    up: int
    down: int


async def live(setting: Setting, data: FleetData, model: FleetModel, updates: int, settled: int = 1) -> Wire:
    """Run a federation until this many updates per device are accepted beyond `settled`, or for two minutes."""
    progress = Progress(target=None)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with local_broker("auto", directory=directory) as broker:
            address = BrokerAddress(str(broker.endpoint))
            async with Counter(broker.endpoint.port).serving() as counter:
                task = {"setting": setting.packed(), "broker": asdict(address), "directory": str(directory)}
                server = AggregatorProcess(task, directory / "log", progress.add)
                await server.start()
                connect = connector(replace(broker.endpoint, port=counter.port))
                fleet = demo_fleet(setting, data, model, connect)
                serving = asyncio.create_task(fleet.serve())
                began = await _accepted(progress, settled * len(data.devices), fleet, counter)
                ended = await _accepted(progress, began.accepted + updates, fleet, counter)
                fleet.stop()
                await serving
                await server.stop()
                server.failure.cancel()
                return Wire(*(there - here for here, there in zip(astuple(began), astuple(ended), strict=True)))


async def _accepted(progress: Progress, updates: int, fleet: LiveFleet, counter: Counter) -> Wire:
    """Wait until this many updates are accepted, or time runs out; return the traffic so far."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while progress.updates["accepted"] < updates:  # noqa: ASYNC110 - counted in another process
                await asyncio.sleep(0.05)
    return Wire(progress.updates["accepted"], fleet.trainings, counter.up, counter.down)


def quality(data: FleetData, model: FleetModel, codec: str, seed: int, seconds: float) -> tuple[str, float]:
    """The metric of a simulated run: its mean over the last fifth."""
    strategy = Setting(seed=seed, codec=codec).make_strategy(len(data.devices))
    found = simulate(model, data=data, strategy=strategy, seed=seed, seconds=seconds, world=World(seed=seed))
    ((metric, values),) = found.metrics.items()
    return metric, float(np.mean(values[-WHEEL:]))


def rows_of(
    name: str, source: str, codecs: tuple[str, ...], *, seeds: int, span: float, wire: int
) -> Iterator[dict[str, Any]]:
    data = load(source)
    model = model_for(data)
    trained = 4 * sum(array.size for key, array in model.initial.items() if model.roles[key] == "trained")
    whole = 4 * sum(array.size for array in model.initial.values())
    raw = sum(rows.x.nbytes + rows.y.nbytes for rows in data.devices.values()) / len(data.devices)
    for codec in codecs:
        began = time.perf_counter()
        setting = Setting(data=source, codec=codec)
        carried = asyncio.run(live(setting, data, model, wire))
        up, down = carried.up / carried.accepted, carried.down / carried.accepted
        for seed in range(seeds):
            again = load(source, seed=seed)
            metric, value = quality(again, model_for(again, seed=seed), codec, seed, span)
            yield {
                "dataset": name,
                "codec": codec,
                "default": codec == DEFAULT,
                "seed": seed,
                metric: round(value, 5),
                "parameters": trained // 4,
                "devices": len(data.devices),
                "bytes_up": round(up),
                "bytes_down": round(down),
                "ratio_up": round(trained / up, 2),
                "ratio_down": round(whole * carried.trainings / carried.down, 2),
                "accepted": carried.accepted,
                "raw_bytes": round(raw),
                "updates_for_raw": round(raw / up, 1),
            }
            print(
                f"{name} {codec} {seed}: {value:.4f}, {up:.0f} B up, {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )


def downlink(name: str, source: str, per_update: int) -> Iterator[dict[str, Any]]:
    """Bytes down by the number of devices per update of a release."""
    data = load(source)
    model = model_for(data)
    whole = 4 * sum(array.size for array in model.initial.values())
    size = max(1, round(len(data.devices) / per_update))
    setting = Setting(data=source, buffer_size=size, codec=DEFAULT, release_interval=0.0)
    carried = asyncio.run(live(setting, data, model, 10 * len(data.devices), settled=3))
    yield {
        "dataset": name,
        "devices_per_buffer": round(len(data.devices) / size, 1),
        "buffer_size": size,
        "bytes_down": round(carried.down / carried.accepted),
        "ratio_down": round(whole * carried.trainings / carried.down, 2),
        "accepted": carried.accepted,
    }


class Kept:
    """Results by part, saved as soon as they are measured."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.parts: dict[str, list[dict[str, Any]]] = {}
        if path is not None and path.exists():
            self.parts = json.loads(path.read_text())

    def make(self, key: str, work: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Measure the missing parts."""
        if key in self.parts:
            return
        self.parts[key] = list(work())
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            fresh = self._path.with_suffix(".new")
            lines = (f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in self.parts.items())
            fresh.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            fresh.replace(self._path)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [row for key, rows in self.parts.items() if key.startswith(kind) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one data set, three codecs, one seed: under a minute")
    parser.add_argument("--data", help="a data set instead of ours")
    parser.add_argument("--set", choices=SETS, help="one of ours only")
    parser.add_argument("--seeds", type=int, help="other than ours, which are five of small sets and three of large")
    arguments = parser.parse_args()
    folder = os.environ.get("MIDGE_DATA")
    here = {"digits": "digits"} | (
        {name: f"{folder}/{name}.npz" for name in SETS if name != "digits"} if folder else {}
    )
    if arguments.data:
        here = {Path(arguments.data).stem: arguments.data}
    elif arguments.set or arguments.quick:
        here = {name: here[name] for name in [arguments.set or "digits"]}
    kept = Kept(None if arguments.quick or arguments.data or arguments.seeds else RESULTS)

    def measure(codecs: tuple[str, ...]) -> None:
        for name, source in here.items():
            span, seeds = (15.0, 1) if arguments.quick else SETS.get(name, (40.0, 5))
            wire = 30 if arguments.quick else LIVE
            for codec in codecs:
                work = partial(rows_of, name, source, (codec,), seeds=arguments.seeds or seeds, span=span, wire=wire)
                kept.make(f"rows {name} {codec}", work)

    if arguments.quick:
        measure(QUICK)
    else:
        measure(FIRST)
        for name in (each for each in CURVES if each in here):
            for per_update in PER_UPDATE:
                kept.make(f"downlink {name} {per_update}", partial(downlink, name, here[name], per_update))
        measure(CODECS)
    found = {"rows": kept.of("rows"), "downlink": kept.of("downlink")}
    print(json.dumps({"benchmark": "bytes", "quick": arguments.quick, "default": DEFAULT, **found}))


if __name__ == "__main__":
    main()
