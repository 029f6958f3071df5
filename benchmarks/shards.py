"""Ingest with shards: what more processes take in, from frames in memory and end to end beside the broker.

    python -m benchmarks.shards [--quick] [--json PATH]

`decode_and_sum`: prepared updates go through the production ingress of one shard with all slots, and of two shards with
half of them each: header, decoding, journal on disk, and the sums that the root would get. There is no broker, and all
processes begin at the same moment. `cpu_ratio` compares the processor time of one process with that of the busier of
two: on a machine that is busy with other things it shows what free processors would do, but for the disk. `end_to_end`:
as `benchmarks.ingest`, with `--shards 2`, beside the broker and the publishers on the same processors. Ratios are the
medians of alternating runs. One JSON line.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.ingest import DEFAULT, Ground, Process, say
from midge.broker.local.local_broker import local_broker

_BATCH = 64
"""Messages of one batch: as many as a broker has in flight to an aggregator."""


def work(what: dict[str, Any]) -> None:
    """One shard: prepare its frames, wait for a line, process them, and print the seconds."""
    import numpy as np  # noqa: PLC0415 - of a worker

    from benchmarks.ingest_publishers import BODIES, schema_of  # noqa: PLC0415
    from benchmarks.ingest_servers import settings  # noqa: PLC0415
    from midge.broker.mqtt.connection import Delivery  # noqa: PLC0415
    from midge.gateway.shard import Shard  # noqa: PLC0415
    from midge.gateway.shard_aggregator import ShardPlace  # noqa: PLC0415
    from midge.wire import codecs, frames, messages  # noqa: PLC0415
    from midge.wire.messages import Announcement, DeviceState, Hello  # noqa: PLC0415

    config, lineage = settings(what), bytes(range(16))
    place = ShardPlace(what["index"], what["shards"], lineage)
    shard = Shard(config, place)
    shard.config.directory.mkdir(parents=True)
    shard.begin_store()
    lower = shard.lower
    lower.open()
    site, topics = lower.site, config.topics
    plan = config.strategy.plan
    version = Announcement(
        federation=config.federation,
        lineage=lineage,
        generation=0,
        version=1,
        step=0,
        phase="training",
        schema_hash=config.schema.hash,
        digest=bytes(16),
        plan=plan,
    )
    site.follow_version(version, messages.encode_announcement(version), time.monotonic())
    schema, params, bodies = schema_of(what["params"]), what["params"], []
    for seed in range(BODIES):
        rng = np.random.default_rng(seed)
        delta = (rng.laplace(size=params) * np.abs(rng.normal(size=params)) * 1e-3).astype(np.float32)
        body = codecs.encode_delta(delta, schema, what["codec"], seed=seed)
        bodies.append((body, sha256(body).digest()))
    names = [name for name in (f"d{number}" for number in range(what["devices"])) if place.takes(name)]
    rounds = what["updates"] // what["devices"]
    deliveries = []
    for name in names:
        hello = Hello(state=DeviceState.TRAINING, outbox=1)
        site.process([Delivery(topics.status(name), frames.encode(hello), 1, True)], time.monotonic())
    for seq in range(1, rounds + 1):
        for number, name in enumerate(names):
            body, digest = bodies[(number + seq) % len(bodies)]
            header = {
                "kind": "update",
                "outbox": 1,
                "first": seq,
                "seq": seq,
                "lineage": lineage,
                "generation": 0,
                "base": 1,
                "schema_hash": schema.hash,
                "codec": what["codec"],
                "size": len(body),
                "sha256": digest,
                "examples": 100,
                "steps": 10,
                "seconds": 1.0,
            }
            deliveries.append(Delivery(topics.update(name), frames.encode(header, body), 1, False))
    above: Any = SimpleNamespace(
        sums=0,
        session=SimpleNamespace(announcement=version),
        parts=SimpleNamespace(
            outbox=SimpleNamespace(residual=lambda: None),
            identity=SimpleNamespace(to_be_sealed=lambda update, _announcement: update),
        ),
        give=lambda _made, _number, _now: True,
    )
    share = max(1, config.strategy.size(what["devices"]) // what["shards"])
    print('"ready"', flush=True)
    sys.stdin.readline()
    began, busy = time.perf_counter(), time.process_time()
    for start in range(0, len(deliveries), _BATCH):
        site.process(deliveries[start : start + _BATCH], time.monotonic())
        if site.core.buffered >= share:
            while shard._send(site, above, time.monotonic()):  # noqa: SLF001
                above.sums += 1
    while shard._send(site, above, time.monotonic()):  # noqa: SLF001
        above.sums += 1
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    accepted = site.core.counts["accepted"]
    assert accepted == len(deliveries), (dict(site.core.counts), len(deliveries))
    lower.close()
    print(json.dumps({"seconds": seconds, "cpu": busy, "updates": accepted, "sums": above.sums}), flush=True)


async def decode_and_sum(row: dict[str, Any], shards: int, directory: Path) -> dict[str, Any]:
    """Updates per second of this number of processes together."""
    whats = [
        {
            **row,
            "role": "work",
            "url": "mqtt://127.0.0.1:1",
            "federation": "shards",
            "release_interval": 1.0,
            "store": str(directory / f"{shards}-{time.monotonic_ns()}"),
            "shards": shards,
            "index": index,
        }
        for index in range(shards)
    ]
    workers = [await Process.start("benchmarks.shards", what) for what in whats]
    try:
        for worker in workers:
            assert await worker.line(200) == "ready"
        for worker in workers:
            child = worker._child  # noqa: SLF001
            assert child.stdin is not None
            child.stdin.write(b"\n")
        found = [await worker.line(200) for worker in workers]
    finally:
        for worker in workers:
            await worker.end()
    updates = sum(each["updates"] for each in found)
    seconds = max(each["seconds"] for each in found)
    cpu = max(each["cpu"] for each in found)
    return {"per_s": updates / seconds, "per_cpu_s": updates / cpu, "sums": sum(each["sums"] for each in found)}


async def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows."""
    times, rows = (1, 1) if arguments.quick else (3, 3), []
    for params, updates in ((10_000, 10_000), (100_000, 2_000), (1_000_000, 400)):
        row = {"params": params, "codec": DEFAULT, "devices": 100, "updates": updates // (4 if arguments.quick else 1)}
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
            for _ in range(times[0]):
                for shards, found in runs.items():
                    found.append(await decode_and_sum(row, shards, Path(name)))
        one, two = (statistics.median(each["per_s"] for each in runs[shards]) for shards in (1, 2))
        ratios = [b["per_s"] / a["per_s"] for a, b in zip(runs[1], runs[2], strict=True)]
        by_cpu = [b["per_cpu_s"] / a["per_cpu_s"] for a, b in zip(runs[1], runs[2], strict=True)]
        rows.append(
            {
                "measure": "decode_and_sum",
                "params": params,
                "one_per_s": round(one, 1),
                "two_per_s": round(two, 1),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 2) for ratio in ratios],
                "cpu_ms_per_update": round(1000 / statistics.median(each["per_cpu_s"] for each in runs[1]), 3),
                "cpu_ratio": round(statistics.median(by_cpu), 3),
                "sums": runs[2][-1]["sums"],
            }
        )
        say(json.dumps(rows[-1]))
    for params in (10_000, 100_000):
        row = {"params": params, "codec": DEFAULT, "devices": 100, "seconds": 3.0 if arguments.quick else 8.0}
        found: dict[int, list[float]] = {0: [], 2: []}
        for _ in range(times[1]):
            for shards, rates in found.items():
                with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
                    async with local_broker("mosquitto", directory=Path(name)) as broker:
                        ground = Ground(broker, Path(name), 3.0)
                        rates.append((await ground.midge({**row, "shards": shards}))["updates_per_s"])
        ratios = [two / one for one, two in zip(found[0], found[2], strict=True)]
        rows.append(
            {
                "measure": "end_to_end",
                "params": params,
                "none_per_s": statistics.median(found[0]),
                "two_shards_per_s": statistics.median(found[2]),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 2) for ratio in ratios],
            }
        )
        say(json.dumps(rows[-1]))
    return {"benchmark": "shards", "quick": arguments.quick, "cpus": os.cpu_count(), "rows": rows}


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        work(json.loads(sys.argv[1]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run of each")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the line to this file")
    parser.add_argument("--directory", type=Path, help="where stores go: a disk, not memory; the temporary directory")
    arguments = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    line = json.dumps({**asyncio.run(measured(arguments)), "load1_before": load})
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
