"""A soak: what grows in a fleet of live devices, and what a year of it would add up to.

    python -m benchmarks.soak [--devices 3000] [--minutes 10] [--quick]

The fleet of `midge broker init` with its Mosquitto (TLS, certificates, ACL), `midge aggregate` in a process with a
store on disk, and real devices in a few processes (`soak_fleet`), one of them alone in its process with its outbox on
disk: the gateway. A device trains once in `3600 / --speed-up` seconds. Meanwhile an application sends its telemetry
through the same broker, on a listener of its own, and through a second, otherwise idle Mosquitto.

| part of the time | event |
|---|---|
| 0.1 | the aggregator's process is killed, and starts again 2 s later |
| 0.2 | it is stopped and started, as for an upgrade; what follows is measured in this process |
| 0.35, 0.65, 0.8 | the links of a tenth of the devices break |
| 0.5 | the broker is stopped and started: the broker's memory is measured from then on |

Until the broker stops, a connection without messages is weighed: what the keep-alive of a gateway costs.

| promise | kept if |
|---|---|
| `memory` | the median of the last fifth is at most 5 % above that of the first: aggregator, broker, gateway |
| `descriptors` | the same medians of open files differ by at most 2, in each process |
| `disk` | the store grows by no more than twice the records that it is to keep: all else in it is removed again |
| `reconnect` | all devices are answered by the aggregator within 120 s of the broker's return |
| `telemetry` | the p99 of all telemetry beside Midge is at most twice that of the telemetry before and after |

`per_hour` and `per_year` of a row are a slope and its interval of 95 % (`soak_judgement`); a year is one of a fleet in
its own time, so of `--speed-up` times fewer hours. A short soak says little about a year: the interval shows it. A
store grows until it has 100,000 records: `bound_mb` is its size then, and `soak_year` runs one beyond. One JSON line,
progress to stderr; exit code 1 if a promise was broken.
"""

import argparse
import asyncio
import getpass
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from benchmarks.hostile_fleet import at
from benchmarks.neighbour_processes import Part, first, may_go_first, stock_mosquitto
from benchmarks.soak_fleet import weighed
from benchmarks.soak_judgement import RECONNECT
from benchmarks.soak_results import Course, Row, Sizes
from benchmarks.soak_sampling import Sampler, Series
from benchmarks.suite import RESULTS, machine
from midge.broker import connector
from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import Child, free_port
from midge.broker.mqtt.connection import BrokerUnreachable, Options
from midge.broker.provisioning.create_fleet import device_names, initialise
from midge.broker.provisioning.fleet_registry import Fleet, present
from midge.sensor_fleet.live.limits import measured as limits_of_this_machine

PARAMETERS = 10_000
FLEETS = 4
"""Processes that share the devices."""
START = 420.0
"""Seconds until all devices of a new fleet must be there."""
DOWN = 2.0
"""Seconds until an aggregator that was killed starts again."""
CUT = 0.1
KEEPALIVE = 30.0
"""Of a device (`DeviceConfig.keepalive`)."""


class Broker:
    """The Mosquitto of a fleet, with one more listener for an application that shares it."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        binary = find_mosquitto()
        if binary is None:
            raise BrokerUnreachable("This benchmark needs Mosquitto: apt-get install mosquitto.")
        self._directory, self.port, self.plain = directory, free_port(), free_port()
        fleet = Fleet(
            name="soak",
            hosts=["localhost"],
            port=self.port,
            broker=f"mqtts://localhost:{self.port}",
            broker_directory=str((directory / "fleet" / "broker").resolve()),
            broker_user=getpass.getuser(),
            days=365,
        )
        initialise(directory / "fleet", fleet, device_names(sizes.devices + 1), present())
        path = directory / "fleet" / "broker" / "mosquitto.conf"
        text = path.read_text().replace("per_listener_settings false", "per_listener_settings true")
        path.write_text(f"{text}\nlistener {self.plain} 127.0.0.1\nallow_anonymous true\n")
        self._command = first([str(binary), "-c", str(path)])
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child._process.pid  # noqa: SLF001 - to see what it uses

    async def start(self) -> None:
        self._child = Child(self._command, self._directory / "mosquitto.log", ready="")
        if not await self._child.serves("127.0.0.1", self.plain):
            raise BrokerUnreachable(f"Mosquitto ended as it started: {self._child.log_tail()}")

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
            self._child = None


class Soak:
    """One soak."""

    def __init__(self, directory: Path, sizes: Sizes, other: int) -> None:
        self._directory, self._sizes, self._other = directory, sizes, other
        self.store = directory / "store"
        self.broker = Broker(directory, sizes)
        self.sampler = Sampler(self.store)
        self.aggregator: Part | None = None
        self.fleets: list[Part] = []
        self.telemetry: list[tuple[Part, Path]] = []
        self.stretches: dict[str, list[tuple[float, float]]] = {"alone": [], "beside": [], "reconnect": []}
        self.notes: Row = {}
        self._began = 0.0
        """When the soak began, and later by as much as it waited for devices."""
        self._placed: dict[str, float] = {}
        """Hour from which all devices were at a process that had been replaced."""

    async def run(self) -> Row:
        """Run it, and return its results."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            await self.broker.start()
            await self._listen(self._other, "other")
            await self._listen(self.broker.plain, "before")
            await self._quiet()
            sampling = asyncio.create_task(self.sampler.run())
            stack.callback(sampling.cancel)
            joined = time.monotonic()
            await self._assemble()
            self.notes["join_s"] = round(time.monotonic() - joined, 1)
            await self._live()
            sampling.cancel()
            self.notes["stop_s"] = round(await self._stop_aggregator(), 1)
            for fleet in self.fleets:
                end = await fleet.end()
                if end.get("failed"):
                    raise RuntimeError(f"{end['failed']} devices ended: {end['why']}")
            await self._quiet()
            for part, _ in self.telemetry:
                await part.end()
            files = [file for _, file in self.telemetry]
            course = Course(self._sizes, self.sampler, self.store, self.notes, self._placed, self.stretches, files)
            return {**course.row(), "refused": self.total("refused")}

    async def _end(self) -> None:
        for part in (self.aggregator, *self.fleets, *(part for part, _ in self.telemetry)):
            if part is not None:
                await part.kill()
        await self.broker.stop()

    # ------------------------------------------------------------------ its parts

    async def _listen(self, port: int, name: str) -> None:
        file = self._directory / f"{name}.npz"
        part = await Part.start("benchmarks.neighbour_telemetry", port, file, before_others=True)
        await part.until(lambda part: bool(part.of("running")), 20, "telemetry")
        self.telemetry.append((part, file))

    async def _aggregate(self) -> None:
        environment = {"SOAK_STORE": self.store, "SOAK_PARAMETERS": PARAMETERS, "SOAK_SPEED_UP": self._sizes.speed_up}
        os.environ.update({name: str(value) for name, value in environment.items()})
        bundle = self._directory / "fleet" / "aggregator"
        self.aggregator = await Part.start("benchmarks.soak_server", "--config", bundle, "--log", "json")
        await self.aggregator.until(lambda part: bool(part.of("connected")), 60, "aggregator that is connected")

    async def _assemble(self) -> None:
        """Start the aggregator and all devices, and wait until they are there."""
        sampler, sizes = self.sampler, self._sizes
        await self._aggregate()
        sampler.pids["broker"] = lambda: self.broker.pid
        sampler.pids["aggregator"] = lambda: None if self.aggregator is None else self.aggregator.process.pid
        folder, url = self._directory / "fleet" / "devices", self._url
        many = sizes.devices - 1
        cuts = [1 + many * number // FLEETS for number in range(FLEETS + 1)]
        (outboxes := self._directory / "outboxes").mkdir()
        parts = [(0, 1, ("--outboxes", outboxes)), *((a, b - a, ()) for a, b in pairwise(cuts))]
        for place, (begin, count, more) in enumerate(parts):
            part = await Part.start("benchmarks.soak_fleet", folder, url, begin, count, sizes.interval, *more)
            self.fleets.append(part)
            name = f"devices {place}" if place else "gateway"
            sampler.pids[name] = lambda part=part: part.process.pid  # type: ignore[misc]
        if await self._all_up(START) is None:
            raise RuntimeError(f"{self.total('up')} of {sizes.devices} devices were there after {START:g} s")

    @property
    def _url(self) -> str:
        return f"mqtts://localhost:{self.broker.port}"

    def total(self, name: str) -> int:
        """The sum of a count over all devices."""
        return sum(int(part.last("count").get(name, 0)) for part in self.fleets)

    async def _all_up(self, within: float) -> float | None:
        """Seconds until all devices are there; None if they were not in time."""
        began = time.monotonic()
        while self.total("up") < self._sizes.devices:
            if time.monotonic() - began > within:
                return None
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    # -------------------------------------------------------------------- its life

    async def _quiet(self) -> None:
        await asyncio.sleep(1.0)
        began = time.monotonic()
        await asyncio.sleep(self._sizes.alone)
        self.stretches["alone"].append((began, time.monotonic()))

    async def _until(self, part: float) -> None:
        """Wait for a part of the soak's time.

        Raises:
            RuntimeError: the aggregator ended meanwhile.
        """
        assert self.aggregator is not None
        ends = asyncio.create_task(self.aggregator.process.wait())
        seconds = self._began + part * self._sizes.seconds - time.monotonic()
        await asyncio.wait({ends}, timeout=max(0.0, seconds))
        if ends.done():
            raise RuntimeError(f"the aggregator ended with {ends.result()}: {self.aggregator.events[-5:]}")
        ends.cancel()
        print(f"  {part:g}: {self.total('up')} up, {self.total('accepted')} accepted", file=sys.stderr)

    async def _live(self) -> None:
        assert self.aggregator is not None
        self.sampler.reset()
        start = self._began = time.monotonic()
        before = {name: self.total(name) for name in ("payload", "wire", "accepted")}
        idle = asyncio.create_task(self._idle())
        await self._until(0.1)
        await self.aggregator.kill()
        await asyncio.sleep(DOWN)
        await self._aggregate()
        self.notes["after_kill_s"] = _rounded(await self._answered())
        await self._until(0.2)
        self.notes["upgrade_s"] = round(await self._stop_aggregator(), 1)
        await self._aggregate()
        self.notes["after_upgrade_s"] = _rounded(await self._answered())
        await self._until(0.35)
        self._cut()
        await self._until(0.5)
        idle.cancel()
        self.stretches["beside"].append((start, time.monotonic()))
        await self._restart_broker()
        again = time.monotonic()
        for part in (0.65, 0.8):
            await self._until(part)
            self._cut()
        await self._until(1.0)
        self.stretches["beside"].append((again, time.monotonic()))
        self.notes["seconds"] = round(time.monotonic() - start, 1)
        self.notes |= {name: self.total(name) - count for name, count in before.items()}

    def _cut(self) -> None:
        for fleet in self.fleets[1:]:
            fleet.tell(f"cut {CUT}")

    async def _answered(self) -> float | None:
        """Seconds until all devices are answered by an aggregator that returned."""
        began = time.monotonic()
        await asyncio.sleep(1.0)  # they see its new status, and greet
        seconds = await self._all_up(RECONNECT)
        self._began += time.monotonic() - began
        self._placed["aggregator"] = time.monotonic() / 3600
        return None if seconds is None else seconds + 1.0

    async def _stop_aggregator(self) -> float:
        """Stop the aggregator as systemd does; return how long it took."""
        assert self.aggregator is not None
        began = time.monotonic()
        self.aggregator.process.terminate()
        async with asyncio.timeout(60):
            await self.aggregator.process.wait()
        if self.aggregator.process.returncode != 0:
            raise RuntimeError(f"the aggregator ended with {self.aggregator.process.returncode}")
        return time.monotonic() - began

    async def _restart_broker(self) -> None:
        """Stop and start the broker, and see its clients return; the telemetry ends before and begins again."""
        await self.telemetry[1][0].end()
        await self.broker.stop()
        async with asyncio.timeout(30):
            while self.total("up"):  # noqa: ASYNC110 - counts of other processes
                await asyncio.sleep(0.1)
        await self.broker.start()
        back = time.monotonic()
        await self._listen(self.broker.plain, "after")
        began = time.monotonic()
        times: dict[float, float] = {}
        while (up := self.total("up")) < self._sizes.devices and time.monotonic() < back + 2 * RECONNECT:
            for share in (0.5, 0.99):
                if up >= share * self._sizes.devices:
                    times.setdefault(share, time.monotonic() - back)
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - back if up == self._sizes.devices else None
        self.stretches["reconnect"].append((began, time.monotonic()))
        self._began += time.monotonic() - back
        self._placed["broker"] = time.monotonic() / 3600
        self.notes["reconnect"] = {
            "devices": up,
            "half_s": _rounded(times.get(0.5, seconds)),
            "p99_s": _rounded(times.get(0.99, seconds)),
            "all_s": _rounded(seconds),
        }
        print(f"  the broker was restarted: {self.notes['reconnect']}", file=sys.stderr)

    async def _idle(self) -> None:
        """Weigh a connection without messages, which keeps itself alive, until cancelled."""
        folder = self._directory / "fleet" / "devices" / device_names(self._sizes.devices + 1)[-1]
        bundle = at(folder, self._url)
        async with connector(bundle.endpoint)(Options(bundle.name, keepalive=round(KEEPALIVE))) as connection:
            began, before = time.monotonic(), weighed(connection)
            while True:
                await asyncio.sleep(1.0)
                self.notes["idle"] = (weighed(connection) - before) / (time.monotonic() - began)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


async def soak(sizes: Sizes) -> tuple[Row, dict[str, Series]]:
    """A soak in a temporary folder, beside an idle broker; its results, and all samples."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "idle").mkdir()
        async with stock_mosquitto(directory / "idle") as (other, _):
            one = Soak(directory, sizes, other)
            found = await one.run()
    return found, {"store": one.sampler.store, **one.sampler.series}


def main() -> int:
    """Run a soak; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 devices for 24 seconds: no judgement of memory")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--minutes", type=float, help="of the soak itself, without its preparations")
    parser.add_argument("--speed-up", type=float, help="times faster than a fleet that trains each hour")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write all samples to this file, as JSON")
    parser.add_argument("--store", action="store_true", help="store the result in benchmarks/results/soak.json")
    options = parser.parse_args()
    quick = options.quick
    sizes = Sizes(
        devices=options.devices or (60 if quick else 3000),
        minutes=options.minutes or (0.4 if quick else 10.0),
        speed_up=options.speed_up or (600.0 if quick else 30.0),
        alone=3.0 if quick else 20.0,
    )
    limits_of_this_machine()  # raises the limit of open files
    load, began = os.getloadavg()[0], time.monotonic()
    found, series = asyncio.run(soak(sizes))
    if options.keep is not None:
        options.keep.write_text(json.dumps({name: asdict(each) for name, each in series.items()}))
    about = {"devices": sizes.devices, "minutes": sizes.minutes, "speed_up": sizes.speed_up}
    line = {"benchmark": "soak", "quick": quick, **about, "realtime": may_go_first(), **found}
    if options.store:
        kept = {"seconds": round(time.monotonic() - began, 1), "load_before": round(load, 2), "found": line}
        text = json.dumps({"benchmark": "soak", "machine": machine(), **kept}, indent=1)
        (RESULTS / "soak.json").write_text(text + "\n")
    print(json.dumps(line))
    judged = {name: kept for name, kept in line["promises"].items() if not quick or name in ("disk", "reconnect")}
    return int(not all(judged.values()))


if __name__ == "__main__":
    sys.exit(main())
