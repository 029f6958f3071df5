"""Cost of a crash: `python -m benchmarks.recovery [--quick]` prints one JSON line. A full run takes three minutes.

- `replay`: seconds until a store of 1,000 parameters serves again, by the number of records after its checkpoint:
  with a release for each update, and with few releases.
- `memory`: resident MiB of an aggregator by the number of updates, with the usual checkpoints.
- `drain_virtual`: 1,000 simulated devices with 8 updates each when the aggregator returns after three hours.
- `drain_live`: 200 devices with 8 updates each, over a broker on this machine.
"""

import argparse
import asyncio
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from midge.aggregator.config import CHECKPOINT_RECORDS, AggregatorConfig  # noqa: E402
from midge.aggregator.core.presets import fedasync  # noqa: E402
from midge.aggregator.core.staleness import constant  # noqa: E402
from midge.aggregator.core.strategy import Strategy  # noqa: E402
from midge.aggregator.federation import FederationRuntime  # noqa: E402
from midge.aggregator.publish.outlet import Outlet  # noqa: E402
from midge.aggregator.publish.publish_queue import Post  # noqa: E402
from midge.aggregator.store.store import Store  # noqa: E402
from midge.broker import Endpoint, connector  # noqa: E402
from midge.broker.local.local_broker import local_broker  # noqa: E402
from midge.broker.mqtt.connection import Delivery  # noqa: E402
from midge.iot_client.state.outbox import Outbox  # noqa: E402
from midge.wire import frames  # noqa: E402
from midge.wire.messages import AggregatorState, Update  # noqa: E402
from midge.wire.schema import Schema  # noqa: E402
from midge.wire.topics import Topics  # noqa: E402
from tests.federation.kernel import Faults, Kernel  # noqa: E402
from tests.federation.network import Network  # noqa: E402
from tests.federation.participant import Ledger, Participant  # noqa: E402
from tests.federation.server import Server  # noqa: E402
from tests.harness.ledger import Books, audit  # noqa: E402
from tests.harness.processes import aggregator, fleet  # noqa: E402

RECORDS = (1_000, 10_000, 100_000)
PARAMETERS = 1000
MEMORY_AT = (20_000, 60_000, 100_000)
HELD = 8
RELEASE_INTERVAL = 1.0
"""Release interval of a large fleet in seconds: every device receives every announcement."""
DOWN = 3 * 3600.0
BATCH = 64


def strategy(release_interval: float = 0.0) -> Strategy:
    """Nothing is too stale: by default the last of 1,000 returning devices would be."""
    return fedasync(
        1.0,
        constant(),
        max_staleness=10**6,
        norm_limit=None,
        release_floor=1,
        release_interval=release_interval,
        form="delta",
        bounded=False,
    )


def update(lineage: bytes, schema: Schema, *, outbox: int, seq: int, base: int, body: bytes, first: int) -> Update:
    return Update(
        outbox=outbox,
        first=first,
        seq=seq,
        lineage=lineage,
        generation=0,
        base=base,
        schema_hash=schema.hash,
        codec="float32",
        size=len(body),
        sha256=hashlib.sha256(body).digest(),
    )


class Mill:
    """A federation that is fed with updates of twenty devices, as fast as it accepts them."""

    def __init__(self, directory: Path, *, checkpoint_records: int, release_interval: float) -> None:
        parameters = {"x": np.zeros(PARAMETERS, np.float32)}
        self.schema, self.topics = Schema.of(parameters), Topics("f")
        self.withdrawn: list[tuple[int, int]] = []
        self.seq = [0] * 20
        self.now = 0.0
        self.config = AggregatorConfig(
            connector=connector(Endpoint.parse("mqtt://localhost")),  # never connected
            federation="f",
            initial=parameters,
            store=directory,
            strategy=replace(strategy(release_interval), byte_rate=0.0),
            memory=2**20,
            checkpoint_records=checkpoint_records,
        )

    def open(self) -> None:
        """Recover from the store."""
        self.federation = FederationRuntime(self.config, Outlet(self._put, lambda *_, **__: None), 0.0)

    def _put(self, post: Post) -> None:
        if post.withdraws is not None:
            self.withdrawn.append(post.withdraws)

    def feed(self, count: int, rng: np.random.Generator) -> None:
        deliveries = []
        core = self.federation.core
        for number in range(count):
            device = number % 20
            self.seq[device] += 1
            seq = self.seq[device]
            body = rng.normal(0, 0.01, PARAMETERS).astype("<f4").tobytes()
            header = update(core.lineage, self.schema, outbox=1, seq=seq, base=core.version, body=body, first=seq)
            deliveries.append(Delivery(self.topics.update(f"d{device}"), frames.encode(header, body), 1, False))
        self.now += 0.001 * count
        self.federation.process(deliveries, self.now)
        gone, self.withdrawn = self.withdrawn, []
        for frame in gone:
            self.federation.withdrawn(frame, self.now)


def replay(records: str, release_interval: str) -> dict[str, float]:
    """Fill a journal with a number of records, and open it again."""
    with tempfile.TemporaryDirectory() as directory:
        mill = Mill(Path(directory), checkpoint_records=10**9, release_interval=float(release_interval))
        mill.open()
        mill.federation.begin(0.0)
        rng = np.random.default_rng(0)
        began = time.perf_counter()
        while mill.federation.core.lsn < int(records):
            mill.feed(min(BATCH, int(records)), rng)
        filled = time.perf_counter() - began
        digest, lsn = mill.federation.engine.model.digest(), mill.federation.core.lsn
        mill.federation.store.close()
        again = Mill(Path(directory), checkpoint_records=10**9, release_interval=float(release_interval))
        began = time.perf_counter()
        again.open()
        seconds = time.perf_counter() - began
        assert again.federation.engine.model.digest() == digest
        again.federation.store.close()
    return {"records": lsn, "seconds": round(seconds, 3), "updates_per_second_before": round(sum(mill.seq) / filled)}


def memory() -> dict[str, float]:
    """Resident memory along the way."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        mill = Mill(Path(directory), checkpoint_records=CHECKPOINT_RECORDS, release_interval=0.02)
        mill.open()
        mill.federation.begin(0.0)
        rng = np.random.default_rng(0)
        for mark in MEMORY_AT:
            while sum(mill.seq) < mark:
                mill.feed(BATCH, rng)
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found[str(mark)] = round(pages * 4096 / 2**20, 1)
        mill.federation.close()
    return found


def drain_virtual(devices: str, delay: str) -> dict[str, float]:
    """Simulated devices, each with its outbox half full, and an aggregator that returns.

    With a delay, messages of one device overtake each other, which MQTT excludes, and many are sent again.
    """
    kernel = Kernel(0, Faults(delay=float(delay)))
    network, ledger = Network(kernel), Ledger()
    ledger.training = False
    parameters = {"x": np.zeros(64, np.float32)}
    schema = Schema.of(parameters)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(kernel, network, Path(directory), strategy(RELEASE_INTERVAL), parameters, chunk=256 * 1024)
        kernel.run(1.0)
        assert server.rig is not None
        lineage = server.rig.core.lineage
        network.disconnect("aggregator")
        network.publish("midge/1/f/aggregator", server._status(AggregatorState.LOST), retain=True)  # noqa: SLF001
        server.rig.close()
        server.rig = None
        participants = [Participant(kernel, network, f"d{number}", ledger) for number in range(int(devices))]
        body = np.ones(64, "<f4").tobytes()
        for each in participants:
            for seq in range(1, HELD + 1):
                each.outbox.store(
                    update(lineage, schema, outbox=each.outbox.identity, seq=seq, base=1, body=body, first=1), body
                )
            each.boot()
        kernel.run(DOWN)
        back, began = kernel.now, time.perf_counter()
        server.boot()

        def drained() -> bool:
            return server.rig is not None and server.rig.core.step >= HELD * int(devices)

        assert kernel.run(back + 3600, drained)
        decided, seconds = kernel.now - back, time.perf_counter() - began
        assert kernel.run(back + 7200, lambda: all(each.session.holding == 0 for each in participants))
        assert server.rig is not None
        assert (server.rig.model.x == HELD * int(devices)).all()
        server.rig.close()
    settled = kernel.now - back
    return {
        "devices": int(devices),
        "updates": HELD * int(devices),
        "virtual_seconds_until_applied": round(decided, 2),
        "virtual_seconds_until_settled": round(settled, 2),
        "cpu_seconds": round(seconds, 1),
    }


def drain_live(devices: str) -> dict[str, Any]:
    """The same with processes and a broker."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_drain_live(int(devices), Path(directory)))


async def _drain_live(devices: int, directory: Path) -> dict[str, Any]:
    books = Books(devices=devices, updates=HELD, federation="drain", pause=int(1000 * RELEASE_INTERVAL))
    async with local_broker("auto", directory=directory) as broker:
        url = str(broker.endpoint)
        server, members = aggregator(books, url, directory), fleet(books, url, directory, range(devices))
        try:
            await server.start()
            while b'"release"' not in server.log.read_bytes():  # noqa: ASYNC110 - written by another process
                await asyncio.sleep(0.05)
            await server.kill()
            with Store(directory / "store") as store:
                lineage, schema = store.lineage, store.schema
            assert schema is not None
            for number in range(devices):
                _fill(directory / "devices" / f"device-{number}.outbox", lineage, schema, books, number)
            await members.start()
            await asyncio.sleep(devices / 20)  # they connect, and find no aggregator
            began = time.perf_counter()
            await server.start()
            assert await members.ended() == 0, members.tail()
            seconds = time.perf_counter() - began
            server.send(15)
            assert await server.ended() == 0
        finally:
            await server.kill()
            await members.kill()
        found = audit(directory / "model.safetensors", directory / "devices")
        return {"broker": broker.kind, "devices": devices, "seconds": round(seconds, 2), **found._asdict()}


def _fill(path: Path, lineage: bytes, schema: Schema, books: Books, number: int) -> None:
    with Outbox(path) as outbox:
        for seq in range(1, HELD + 1):
            delta = np.zeros(books.places, "<f4")
            delta[number * books.updates + seq - 1] = 1
            body = delta.tobytes()
            outbox.store(update(lineage, schema, outbox=outbox.identity, seq=seq, base=1, body=body, first=1), body)


STAGES = {each.__name__: each for each in (replay, memory, drain_virtual, drain_live)}


def stage(name: str, *arguments: str) -> Any:
    """Run one stage in its own process."""
    command = [sys.executable, __file__, name, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Measure all, or one stage in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short journals, 100 simulated and 20 live devices")
    parser.add_argument("--data", help="ignored: what updates hold does not matter here")
    parser.add_argument("stage", nargs="*", help="one stage and its arguments (internal)")
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(STAGES[options.stage[0]](*options.stage[1:])))
        return
    few, many = (RECORDS[:1], RECORDS[:1]) if options.quick else (RECORDS[:2], RECORDS)
    simulated, live = ("100", "20") if options.quick else ("1000", "200")
    rows = [{"measure": "replay", **stage("replay", str(records), "0")} for records in few]
    rows += [{"measure": "replay with few releases", **stage("replay", str(records), "0.02")} for records in many]
    if not options.quick:
        rows.append({"measure": "memory", "mib_at": stage("memory")})
    rows.append({"measure": "drain, simulated", **stage("drain_virtual", simulated, "0")})
    rows.append({"measure": "drain, simulated, overtaking", **stage("drain_virtual", simulated, "0.05")})
    rows.append({"measure": "drain, live", **stage("drain_live", live)})
    print(json.dumps({"benchmark": "recovery", "quick": options.quick, "rows": rows}))


if __name__ == "__main__":
    main()
