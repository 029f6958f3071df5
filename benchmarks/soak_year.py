"""A year of a federation in virtual time: what its store, its journal and its memory grow to.

    python -m benchmarks.soak_year [--days 365] [--devices 12] [--quick] [--trace]

The whole of an aggregator below its connection (`FederationRuntime`: ingress checks, core, model, publisher, upkeep)
with its store on disk, only without waiting for the disk, and devices with real sessions, on the virtual clock and the
network of the tests (`tests.federation`). Devices train once an hour from six to ten, each in a time zone of its own;
what they learn drifts with the season. Links break, devices reboot, are away for a week, and every ten days one is
replaced by one of another name. In the first two thirds of the year the aggregator is stopped and started each week, as
for an upgrade, killed each month, and every other month its broker returns without its memory. In the last third it
runs on, so that its memory shows.

| field | |
|---|---|
| `disk_mb` | all files of the store at the end, and its largest |
| `records`, `frames`, `retained` | records of the journal, frames in the store, messages that the broker retains |
| `blocks` | blocks that Python has allocated, of this process: aggregator, devices and network |
| `a_month` | growth in the last fifth, as a slope and its interval of 95 %, in the field's unit |
| `bounded` | whether the level rises by at most 5 % in the last fifth: by then the store has all 100,000 records |

`--trace` prints which lines hold what was allocated in the last third. One JSON line; exit code 1 if something grows.
"""

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for tests.federation

from benchmarks.soak_judgement import MEMORY, MONTH, Growth, bounded, last  # noqa: E402
from benchmarks.soak_sampling import disk, resident  # noqa: E402
from benchmarks.suite import RESULTS, machine  # noqa: E402
from midge.aggregator.config import AggregatorConfig  # noqa: E402
from midge.aggregator.core.participation_controller import Pace  # noqa: E402
from midge.aggregator.core.presets import balanced  # noqa: E402
from midge.aggregator.federation import FederationRuntime  # noqa: E402
from midge.aggregator.publish.announcement_signer import AnnouncementSigner  # noqa: E402
from midge.aggregator.publish.dating import Dating  # noqa: E402
from midge.aggregator.publish.outlet import Outlet  # noqa: E402
from midge.aggregator.publish.publish_queue import Post  # noqa: E402
from midge.broker import Endpoint, connector  # noqa: E402
from midge.broker.mqtt.connection import Delivery  # noqa: E402
from midge.iot_client.session import events as ev  # noqa: E402
from midge.iot_client.training.update_encoder import update_of  # noqa: E402
from midge.wire import frames  # noqa: E402
from midge.wire.codecs import encode_delta  # noqa: E402
from midge.wire.messages import AggregatorState, AggregatorStatus, Announcement, DeviceState, Hello, Plan  # noqa: E402
from tests.aggregator.rig import TOPICS, QuickStore  # noqa: E402
from tests.federation.kernel import Faults, Kernel  # noqa: E402
from tests.federation.network import Network  # noqa: E402
from tests.federation.participant import Ledger, Participant  # noqa: E402

HOUR, DAY = 3600.0, 86_400.0
EPOCH = 1.8e9
"""Seconds since 1970 at which the year begins."""
PARAMETERS = 1000
MORNING, EVENING = 6.0, 22.0
"""Hours of the day at which devices connect and disconnect."""
ZONES = 4
LOOK = 300.0
"""Seconds between two looks of an idle aggregator; a real one takes five, which changes nothing but the run's time."""
BREAKS, REBOOTS, AWAY = 2 * DAY, 14 * DAY, 90 * DAY
"""Mean seconds between two breaks of a device's link, two reboots, and two weeks of absence."""
TURNOVER = 10 * DAY
UPGRADES, KILLS, FORGETS = 7, 30, 60
"""Days between two of them."""
UNSETTLED = 2 / 3
"""Part of the year with restarts."""
TRAINING = 60.0
MEMORY_DISK = Path("/dev/shm")
Row = dict[str, Any]


class Nothing(dict[Any, Any]):
    """Keeps nothing of what every device was told in a year."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Forget it."""

    def setdefault(self, key: Any, default: Any = None) -> Any:  # noqa: ARG002 - of dict
        return default


class YearLedger(Ledger):
    """Counts verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.told, self.digests = Nothing(), Nothing(), Nothing()


class YearDevice(Participant):
    """A device that sleeps at night, whose link breaks, and whose data drift."""

    def __init__(self, kernel: Kernel, network: Network, name: str, ledger: Ledger) -> None:
        rng = np.random.default_rng(list(name.encode()))
        self._rng, self._zone = rng, int(rng.integers(ZONES))
        self._own = rng.normal(0, 0.1, PARAMETERS).astype(np.float32)
        self._codec, self._trainings = "", 0
        self.gone = False
        super().__init__(kernel, network, name, ledger)
        for mean, work in ((BREAKS, self.lose_link), (REBOOTS, self._reboot), (AWAY, self._stay_away)):
            self._repeat(mean, work)

    def _repeat(self, mean: float, work: Any) -> None:
        def again() -> None:
            if not self.gone:
                work()
                self._repeat(mean, work)

        self.kernel.after(self.kernel.random.expovariate(1 / mean), again)

    def leave(self) -> None:
        """Leave for good, as a device that is replaced."""
        self._disconnect()
        self.gone, self.alive = True, False

    def _dark(self) -> float:
        """Seconds until the morning; 0 by day."""
        hour = (self.kernel.now / HOUR + self._zone) % 24
        return 0.0 if MORNING <= hour < EVENING else ((MORNING - hour) % 24) * HOUR

    def _connect(self) -> None:
        if self.gone or self.connected:
            return
        if seconds := self._dark():
            self._later(seconds + 600 * self.kernel.random.random(), self._connect)
            return
        super()._connect()
        hour = (self.kernel.now / HOUR + self._zone) % 24
        self._later((EVENING - hour) * HOUR + 600 * self.kernel.random.random(), self.lose_link)

    def _disconnect(self) -> None:
        """Lose the link: the broker publishes the Last Will."""
        if self.connected:
            self.connected = False
            self.network.disconnect(self.name)
            will = Hello(state=DeviceState.LOST, outbox=self.session.outbox, first=1, next=1)
            self.network.publish(TOPICS.status(self.name), frames.encode(will), retain=True)
            if self.alive:
                self._later(0.0, partial(self._event, ev.Disconnected()))

    def lose_link(self, absence: float = HOUR) -> None:
        """Lose the link for some time."""
        self._disconnect()
        self._later(1 + absence * self.kernel.random.random(), self._connect)

    def _stay_away(self) -> None:
        self.lose_link(14 * DAY)

    def _reboot(self) -> None:
        self._disconnect()
        self.boot()

    def train(self, announcement: Announcement, plan: Plan) -> None:
        self._codec = plan.codec
        self._later(TRAINING * (0.5 + self.kernel.random.random()), partial(self._train, announcement))

    def _train(self, announcement: Announcement) -> None:
        """A fifth of the way to its own optimum of the season, with noise."""
        if self.state is None:
            self._event(ev.NothingToSend("no model"))
            return
        schema, values = self.state.schema, self.state.values()
        season = math.sin(2 * math.pi * self.kernel.now / (365 * DAY))
        delta = 0.2 * (season + self._own - values) + self._rng.normal(0, 0.05, values.size)
        body = encode_delta(delta.astype(np.float32), schema, self._codec)
        update = update_of(announcement, self._codec, body, examples=32, steps=10, schema_hash=schema.hash)
        self._trainings += 1
        self.bodies[self._trainings] = self._trainings, body
        self._event(ev.Trained(update, self._trainings))


class YearServer:
    """An aggregator that lives and dies over one store."""

    def __init__(self, kernel: Kernel, network: Network, directory: Path) -> None:
        self.kernel, self.network, self.directory = kernel, network, directory
        strategy = balanced(
            pace=Pace(interval=HOUR),
            release_interval=900.0,
            deadline=900.0,
            plan=Plan(codec="int8:256", feedback=False),
        )
        self._config = AggregatorConfig(
            connector=connector(Endpoint.parse("mqtt://localhost")),  # never connected
            federation=TOPICS.federation,
            initial={"w": np.zeros(PARAMETERS, np.float32)},
            store=directory,
            strategy=strategy,
        )
        self.events: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.lives, self._due = 0, 0.0
        self._inbox: list[Delivery] = []
        self.runtime = self._open()

    def _open(self) -> FederationRuntime:
        self.lives += 1
        self._inbox = []
        kernel = self.kernel
        issuer = AnnouncementSigner(TOPICS, clock=lambda: EPOCH + kernel.now)
        issuer.dating = Dating(lambda: EPOCH + kernel.now, lambda: kernel.now)
        outlet = Outlet(self._put, self._tell)
        runtime = self.runtime = FederationRuntime(
            self._config, outlet, kernel.now, issuer=issuer, store=QuickStore(self.directory)
        )
        runtime.begin(kernel.now)
        self._publish_everything()
        self._listen()
        self._look(self.lives)
        return runtime

    def _publish_everything(self) -> None:
        for post in self.runtime.everything():
            self._put(post)
        status = AggregatorStatus(state=AggregatorState.READY, boot=self.lives, lineage=self.runtime.core.lineage)
        self.network.publish(TOPICS.aggregator, frames.encode(status), retain=True)

    def _listen(self) -> None:
        own = tuple(topic.split("+")[0] for topic in TOPICS.from_devices)
        self.network.connect("aggregator", own, partial(self._hear, self.lives))
        self.runtime.connected(self.kernel.now)

    def restart(self, *, clean: bool) -> None:
        """Stop it, or kill it, and start the next process."""
        self.network.disconnect("aggregator")
        if clean:
            self.runtime.close()
        else:
            self.runtime.store.close()
        self.runtime = self._open()

    def broker_restarts(self) -> None:
        """The broker has forgotten everything, and all connect again."""
        self.network.disconnect("aggregator")
        self.network.retained.clear()
        self._publish_everything()
        self._listen()

    def _tell(self, event: str, **fields: Any) -> None:
        self.events[event] += 1
        if event == "update":
            self.verdicts[fields["verdict"]] += 1

    def _hear(self, life: int, topic: str, payload: bytes, retain: bool) -> None:
        self._inbox.append(Delivery(topic, payload, 1, retain))
        if len(self._inbox) == 1:
            self.kernel.after(0.01, partial(self._work, life))

    def _work(self, life: int) -> None:
        if life != self.lives:
            return
        batch, self._inbox = self._inbox, []
        self.runtime.process(batch, self.kernel.now)
        if (deadline := self.runtime.core.deadline) is not None and deadline != self._due:
            self._due = deadline
            self.kernel.after(deadline - self.kernel.now, partial(self._work, life))

    def _look(self, life: int) -> None:
        """Pass on the time."""
        if life == self.lives:
            self._work(life)
            self.kernel.after(LOOK, partial(self._look, life))

    def _put(self, post: Post) -> None:
        self.network.publish(post.topic, post.payload, retain=post.retain)
        if post.withdraws is not None:
            self.kernel.after(0.1, partial(self._withdraw, self.lives, post.withdraws))

    def _withdraw(self, life: int, frame: tuple[int, int]) -> None:
        if life == self.lives:
            self.runtime.withdrawn(frame, self.kernel.now)


@dataclass(slots=True)
class Samples:
    """One value a day of each measure."""

    days: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, day: float, **values: float) -> None:
        self.days.append(day)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def row(self, name: str, unit: float) -> Row:
        """A measure over the year, and its growth in the last fifth."""
        values, third = self.values[name], len(self.days) // 3
        growth = Growth.of([24 * day for day in last(self.days)], last(values))
        months = [
            round(each * MONTH / unit, 4) for each in (growth.slope.per_hour, growth.slope.low, growth.slope.high)
        ]
        return {
            "measure": name,
            "first": round(values[0] / unit, 3),
            "at_a_third": round(values[third] / unit, 3),
            "at_two_thirds": round(values[-third] / unit, 3),
            "last": round(values[-1] / unit, 3),
            "most": round(max(values) / unit, 3),
            "growth": round(growth.share, 4),
            "a_month": months,
            "bounded": bounded(self.days, values, MEMORY),
        }


UNITS = {"disk": 1e6, "records": 1.0, "frames": 1.0, "retained": 1.0, "blocks": 1.0, "rss": 1e6}


class Year:
    """A federation, and what it is measured by."""

    def __init__(self, directory: Path, devices: int, days: int, *, trace: bool) -> None:
        self.kernel = Kernel(1, Faults(delay=0.2))
        self.network = Network(self.kernel)
        self.days, self._trace = days, trace
        self._snapshot: tracemalloc.Snapshot | None = None
        self.server = YearServer(self.kernel, self.network, directory)
        self.ledger, self.samples = YearLedger(), Samples()
        self._names = 0
        self.devices = [self._new() for _ in range(devices)]

    def _new(self) -> YearDevice:
        self._names += 1
        return YearDevice(self.kernel, self.network, f"d{self._names}", self.ledger)

    def run(self) -> None:
        """Live all days."""
        self.kernel.after(TURNOVER, self._turn_over)
        began = time.perf_counter()
        for day in range(1, self.days + 1):
            self.kernel.run(day * DAY)
            self._measure(day)
            if day < UNSETTLED * self.days:
                self._disturb(day)
            elif self._trace and self._snapshot is None:
                tracemalloc.start(8)
                self._snapshot = tracemalloc.take_snapshot()
            if day % 30 == 0:
                took, updates = time.perf_counter() - began, sum(self.server.verdicts.values())
                print(f"  day {day}: {updates} updates, {self._now()}, {took:.0f} s", file=sys.stderr)
        if self._snapshot is not None:
            for line in tracemalloc.take_snapshot().compare_to(self._snapshot, "lineno")[:25]:
                print(line, file=sys.stderr)

    def _turn_over(self) -> None:
        """One device is replaced by another one."""
        self.devices.pop(0).leave()
        self.devices.append(self._new())
        self.kernel.after(TURNOVER, self._turn_over)

    def _disturb(self, day: int) -> None:
        if day % KILLS == 0:
            self.server.restart(clean=False)
        elif day % UPGRADES == 0:
            self.server.restart(clean=True)
        if day % FORGETS == 0:
            self.server.broker_restarts()
            for device in self.devices:
                device.lose_link()

    def _now(self) -> str:
        return ", ".join(f"{name} {values[-1] / UNITS[name]:,.1f}" for name, values in self.samples.values.items())

    def _measure(self, day: int) -> None:
        store = self.server.runtime.store
        ((records,),) = store.query("SELECT count(*) FROM journal")
        gc.collect()
        self.samples.add(
            day,
            disk=disk(store.directory),
            records=records,
            frames=len(store.published()),
            retained=len(self.network.retained),
            blocks=sys.getallocatedblocks(),
            rss=resident(os.getpid()),
        )

    def found(self) -> Row:
        """The results."""
        core, samples = self.server.runtime.core, self.samples
        rows = [samples.row(name, unit) for name, unit in UNITS.items()]
        return {
            "rows": rows,
            "names": self._names,
            "updates": sum(self.server.verdicts.values()),
            "verdicts": dict(self.server.verdicts),
            "versions": core.version,
            "steps": core.step,
            "lives": self.server.lives,
            "erased": self.server.events["silent"],
            "bounded": {row["measure"]: row["bounded"] for row in rows},
        }


def main() -> int:
    """Live a year; 1 if something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 days of 6 devices: too few records for a judgement")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--days", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--store", action="store_true", help="store the result in benchmarks/results/soak_year.json")
    options = parser.parse_args()
    devices, days = options.devices or (6 if options.quick else 12), options.days or (30 if options.quick else 365)
    load, began = os.getloadavg()[0], time.monotonic()
    # The store's witness waits for the disk at each commit, which takes most of the time.
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as name:
        year = Year(Path(name) / "store", devices, days, trace=options.trace)
        year.run()
        found = year.found()
    about = {"devices": devices, "days": days, "parameters": PARAMETERS}
    line = {"benchmark": "soak_year", "quick": options.quick, **about, **found}
    if options.store:
        kept = {"seconds": round(time.monotonic() - began, 1), "load_before": round(load, 2), "found": line}
        text = json.dumps({"benchmark": "soak_year", "machine": machine(), **kept}, indent=1)
        (RESULTS / "soak_year.json").write_text(text + "\n")
    print(json.dumps(line))
    return int(not options.quick and not all(line["bounded"].values()))


if __name__ == "__main__":
    sys.exit(main())
