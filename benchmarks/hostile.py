"""Damage by one malicious device: a fleet of `midge broker init`, and one valid device that attacks it.

    python -m benchmarks.hostile [--quick] [--attack bombs] [--broker generated] [--ratio 0.9]

Twenty honest devices and a real aggregator on the Mosquitto that `midge broker init` configures, and one more device of
the same fleet that performs each attack (`hostile_attacks`) at the full rate that it is allowed; the first attack does
nothing. Honest work is counted before and during each attack. A ratio that misses its goal by at most three times its
standard error is counted again, before and during in turns, so that other load of the machine affects both. The peak
memory of aggregator and broker is the kernel's count from the start of the attack. The aggregator reaches the broker
over a link, which in the fetch flood carries 2 MB/s. If the system permits it (Linux, CAP_SYS_NICE), all of it runs
with priority over other work of the machine.

The same on a Mosquitto without ACL, passwords and limits: there the aggregator's memory must be bounded, and honest
work must recover within 30 s of the end.

| row | |
|---|---|
| `honest_before`, `honest_during` | honest updates accepted per second; without an ACL, `during` is afterwards |
| `ratio` | of the two, at most 9.99 |
| `spread` | of the ratio: its standard error, from how unevenly trainings end |
| `aggregator_mb`, `broker_mb` | peak during the attack, above the value at its beginning |
| `model_moved` | root mean square distance of the model from the honest devices' optimum |
| `recovery_s` | without an ACL: seconds after the end until honest work has recovered |
| `pass` | ratio 0.9 or more (`--ratio`), 64 MB or less on either side, the model within 0.1 |

One JSON line, progress to stderr; exit code 1 if a row does not pass.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tests.harness

from benchmarks.hostile_attacks import ATTACKS, Attacker, attack  # noqa: E402
from benchmarks.hostile_fleet import at  # noqa: E402
from benchmarks.neighbour_processes import Part, may_go_first, mosquitto, stock_mosquitto  # noqa: E402
from midge.broker import connector  # noqa: E402
from midge.broker.local.process import free_port  # noqa: E402
from midge.broker.mqtt.connection import Options  # noqa: E402
from midge.broker.provisioning.create_fleet import device_names  # noqa: E402
from midge.wire import messages  # noqa: E402
from midge.wire.schema import Schema  # noqa: E402
from tests.broker.fleets import make_fleet  # noqa: E402
from tests.harness.proxy import Proxy, Weather  # noqa: E402

Row = dict[str, Any]
HONEST = 20
LINK = 2e6
"""Bytes per second between aggregator and broker in the fetch flood."""
MEGABYTES, MOVED = 64.0, 0.1
"""Limits for a pass. The noise of its devices moves a converged model by 0.01 or less."""
RECOVERY = 30.0
"""Seconds after an attack without an ACL until honest work must have recovered."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the measurements."""

    parameters: int
    pace: float
    """Duration of an honest training in seconds."""
    base: float
    """Seconds of honest work alone behind each ratio."""
    rest: float
    """Seconds of them before each attack; earlier ones complete the base."""
    during: float
    recovering: float
    """Seconds of one measurement after an attack without an ACL."""
    ratio: float = 0.9
    """Share of honest work that an attack must leave."""


QUICK = Sizes(100_000, 1.0, 3.0, 1.0, 2.3, 0.8)
FULL = Sizes(1_500_000, 3.0, 15.0, 10.0, 15.0, 0.8)
ROUNDS = 6
"""Maximum number of measurements of an attack."""
UNEVEN, EDGE = 0.231**2, 1 / 6
"""Growth over time of the variance of a renewal count for trainings that take 0.6 to 1.4 of their mean, uniformly (Cox,
Renewal Theory, 1962, section 4.2), and what the ends of a window add."""
Counted = list[tuple[int, float]]
"""Honest updates and seconds of measurement windows."""


@dataclass
class Scene:
    """An aggregator and honest devices on one broker."""

    directory: Path
    port: int
    broker: int
    """The broker's process."""
    scheme: str
    sizes: Sizes
    proxy: Proxy
    parts: list[Part] = field(default_factory=list)
    rests: Counted = field(default_factory=list)
    """For each window without an attack."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def aggregator(self) -> Part:
        return self.parts[0]

    @property
    def devices(self) -> Part:
        return self.parts[1]

    async def begin(self) -> None:
        """Start an aggregator and its devices, and wait until they work."""
        store, link = self.directory / "store", f"{self.scheme}://127.0.0.1:{self.proxy.port}"
        module, fleet = "benchmarks.hostile_fleet", self.directory / "fleet"
        self.parts = [
            await Part.start(
                module, "aggregator", fleet / "aggregator", link, store, self.sizes.parameters, before_others=True
            ),
            await Part.start(
                module, "devices", fleet / "devices", self.url, HONEST, self.sizes.pace, before_others=True
            ),
        ]
        await self.devices.until(lambda part: part.last("count").get("accepted", 0) >= 3 * HONEST, 60, "honest work")
        await self.rest(self.sizes.base)

    async def end(self) -> None:
        for part in self.parts:
            await part.kill()
        self.parts = []

    async def rest(self, seconds: float) -> Counted:
        """Measure without an attack: this window, and earlier ones up to `sizes.base` seconds."""
        self.rests.append(await self.counted(seconds))
        found: Counted = []
        for window in reversed(self.rests):
            found.append(window)
            if sum(took for _, took in found) >= self.sizes.base:
                break
        return found

    def spread(self, *sides: Counted) -> float:
        """The relative standard error of a ratio of rates."""
        found = 0.0
        for windows in sides:
            count = sum(count for count, _ in windows)
            variance = sum(HONEST * (EDGE + UNEVEN * took / self.sizes.pace) for _, took in windows)
            found += variance / max(count, 1) ** 2
        return found**0.5

    async def counted(self, seconds: float) -> tuple[int, float]:
        """Count accepted updates of honest devices over the next seconds."""
        began, before = time.monotonic(), self.accepted
        await asyncio.sleep(seconds)
        return self.accepted - before, time.monotonic() - began

    @property
    def expected(self) -> float:
        """The rate of honest devices on an idle machine, less five percent for their fetches."""
        return 0.95 * HONEST / self.sizes.pace

    @property
    def accepted(self) -> int:
        return int(self.devices.last("count").get("accepted", 0))

    @property
    def moved(self) -> float:
        return float(self.devices.last("count").get("off", 0.0))

    async def attacked(self, name: str, bad: str, seconds: float, *, free: bool) -> None:
        """Run the attack with one device of the fleet."""
        bundle = at(self.directory / "fleet" / "devices" / bad, self.url)
        schema = Schema.of({"w": np.zeros(self.sizes.parameters, np.float32)}, {"w": "trained"})
        async with connector(bundle.endpoint)(Options(f"bad-{bad}")) as connection:
            await connection.subscribe(bundle.topics.announcement(), bundle.topics.receipt(bad))
            async for delivery in connection.messages():
                connection.ack(delivery)
                if delivery.topic == bundle.topics.announcement():
                    break
            announcement = messages.decode_announcement(delivery.payload)
            one = Attacker(connection, bundle.topics, bad, announcement, schema, free)
            await attack(name, one, seconds)
        told = Counter(event["verdict"] for event in self.devices.of("refused"))
        print(f"    {len(self.aggregator.of('release'))} releases so far", file=sys.stderr)
        print(f"    honest devices were told so far: {dict(told)}", file=sys.stderr)
        print(f"    {one.sent} messages sent, {one.refused} refused by the broker", file=sys.stderr)


class Memory:
    """Peak memory of a process above its current memory, in MB (Linux)."""

    def __init__(self, process: int) -> None:
        self._folder = Path(f"/proc/{process}")
        (self._folder / "clear_refs").write_text("5")  # resets the peak
        self._began = self._read("VmRSS")

    def _read(self, name: str) -> float:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6

    @property
    def more(self) -> float:
        return round(self._read("VmHWM") - self._began, 1)


async def measured(scene: Scene, name: str, bad: str, *, acl: bool) -> Row:
    """Measure one attack."""
    sizes = scene.sizes
    if name == "fetch flood" and acl:
        scene.proxy.change(Weather(bandwidth=LINK))
    resting = await scene.rest(sizes.rest if acl else sizes.rest / 2)
    memory = Memory(scene.aggregator.process.pid), Memory(scene.broker)
    counted: Counted = []
    recovery, ratio, spread = None, 0.0, 0.0
    for turn in range(ROUNDS if acl else 1):
        if turn:
            resting += (await scene.rest(sizes.rest))[:1]
        if acl:
            window, _ = await asyncio.gather(
                scene.counted(sizes.during), scene.attacked(name, bad, sizes.during, free=False)
            )
            counted.append(window)
        else:
            await scene.attacked(name, bad, sizes.during / 3, free=True)
            counted, recovery = await recovered(scene)
        # More than devices can train is a backlog, from after an attack or from waiting for a version.
        before, during = (min(rate(windows), HONEST / sizes.pace) for windows in (resting, counted))
        ratio = round(min(9.99, during / before), 2) if before else 0.0
        spread = round(ratio * scene.spread(resting, counted), 3)
        if not sizes.ratio - 3 * spread <= ratio < sizes.ratio:
            break  # the result is clear
    mega = [each.more for each in memory]
    scene.proxy.change(Weather())
    moved = round(scene.moved, 3)
    held = ratio >= sizes.ratio and max(mega) <= MEGABYTES and moved <= MOVED
    if not acl:
        held = recovery is not None and mega[0] <= MEGABYTES
    passed = held and before >= scene.expected / 2  # otherwise damage of an earlier attack would count for this one
    return {
        "attack": name,
        "broker": "generated" if acl else "without ACL",
        "honest_before": round(before, 1),
        "honest_during": round(during, 1),
        "ratio": ratio,
        "spread": spread,
        "aggregator_mb": mega[0],
        "broker_mb": mega[1],
        "model_moved": moved,
        **({} if acl else {"recovery_s": recovery}),
        "pass": passed,
    }


def rate(windows: Counted) -> float:
    """Updates per second."""
    return sum(count for count, _ in windows) / sum(took for _, took in windows)


async def recovered(scene: Scene) -> tuple[Counted, float | None]:
    """Honest work after an attack, and the seconds until it recovered; None if not in time.

    The backlog arrives at once and says nothing of the rate: recovered means that the last two measurements suffice,
    neither is half as much again as expected, and there is a new version.
    """
    began, looks, wanted = time.monotonic(), [], scene.sizes.ratio * scene.expected
    while True:
        released = len(scene.aggregator.of("release"))
        looks.append(await scene.counted(scene.sizes.recovering))
        seconds, last = time.monotonic() - began, looks[-2:]
        enough = sum(min(rate([look]), 1.5 * wanted) for look in last) >= 2 * wanted
        if enough and len(scene.aggregator.of("release")) > released:
            return last, round(seconds, 1)
        if seconds >= RECOVERY:
            return last, None


@asynccontextmanager
async def generated(directory: Path) -> AsyncIterator[tuple[int, int]]:
    """The fleet of `midge broker init` and its broker: a port and a process."""
    port = free_port()
    make(directory / "fleet", port)
    configuration = directory / "fleet" / "broker" / "mosquitto.conf"
    async with mosquitto(configuration, port, directory / "mosquitto.log") as process:
        yield port, process


@asynccontextmanager
async def without_acl(directory: Path) -> AsyncIterator[tuple[int, int]]:
    """The same fleet on a broker without access control."""
    make(directory / "fleet", 8883)
    async with stock_mosquitto(directory) as found:
        yield found


def make(directory: Path, port: int) -> None:
    """Honest devices, and a separate malicious one for each attack, since strikes would carry over."""
    make_fleet(directory, name="bench", port=port, names=device_names(HONEST + len(ATTACKS)))


async def on(broker: str, sizes: Sizes, wanted: list[str]) -> list[Row]:
    """All attacks on one kind of broker; what an attack has broken is restarted."""
    rows: list[Row] = []
    if broker != "generated":
        wanted = [name for name in wanted if name != "nothing"]
    while len(rows) < len(wanted):
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            port, process = await stack.enter_async_context(BROKERS[broker](directory))
            proxy = await stack.enter_async_context(Proxy(port, Random(1)).serving())
            scheme = "mqtts" if broker == "generated" else "mqtt"
            scene = Scene(directory, port, process, scheme, sizes, proxy)
            stack.push_async_callback(scene.end)
            await scene.begin()
            for name in wanted[len(rows) :]:
                bad = device_names(HONEST + len(ATTACKS))[HONEST + list(ATTACKS).index(name)]
                print(f"{name}, {broker}", file=sys.stderr)
                rows.append(await measured(scene, name, bad, acl=broker == "generated"))
                print(rows[-1], file=sys.stderr)
                if not rows[-1]["pass"]:
                    break
    return rows


BROKERS = {"generated": generated, "without ACL": without_acl}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, and seconds for each attack")
    parser.add_argument("--data", help="ignored: nothing is learned")
    parser.add_argument("--attack", choices=ATTACKS, help="only this one")
    parser.add_argument("--broker", choices=BROKERS, help="only on this one")
    parser.add_argument("--ratio", type=float, default=0.9, help="share of honest work that an attack must leave")
    options = parser.parse_args()
    if may_go_first():
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
    sizes = replace(QUICK if options.quick else FULL, ratio=options.ratio)
    wanted = list(ATTACKS) if options.attack is None else [options.attack]
    rows: list[Row] = []
    for broker in BROKERS if options.broker is None else (options.broker,):
        rows += asyncio.run(on(broker, sizes, wanted))
    about = {"benchmark": "hostile", "quick": options.quick, "cores": os.cpu_count(), "realtime": may_go_first()}
    print(json.dumps({**about, "rows": rows}))
    sys.exit(0 if all(row["pass"] for row in rows) else 1)


if __name__ == "__main__":
    main()
