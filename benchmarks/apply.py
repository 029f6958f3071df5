"""Cost of one update in the aggregator: decoding, combining and applying, in nanoseconds per parameter.

    python -m benchmarks.apply [--quick] [--json PATH]

Each row is a codec and a size: processor time of this thread, the median of several tries, each with its own body that
was just read into memory. `decode_ns` is decoding a body into a vector, with the finiteness check and the norm;
`combine_ns` is the step, divided by its K updates; `apply_ns` is both. For comparison, in the same run and at the same
size: a copy of the payload, a copy of the model, one pass `g += a * d`, the checksum that identifies an update, and the
journal's checksum. `within` is apply_ns relative to the machine's limit: a copy of the payload plus that pass. Rows
`receipt` are the costs that do not depend on the size (header, decision, journal row and receipt): microseconds for an
update of ten values.

`--data` is accepted and ignored: the deltas are heavy-tailed random numbers.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced
from midge.aggregator.core.records import StepRecord
from midge.aggregator.federation import FederationRuntime
from midge.aggregator.ingress.rate_limits import IngressLimits
from midge.aggregator.model.model import Model
from midge.aggregator.model.reducer import Contribution
from midge.aggregator.publish.outlet import Outlet
from midge.broker import Endpoint, connector
from midge.broker.mqtt.connection import Delivery
from midge.wire import codecs, frames
from midge.wire.messages import DeviceState, Hello, Plan
from midge.wire.schema import Schema
from midge.wire.topics import Topics

CODECS = ("float32", "bf16", "int8:256", "int4:128", "uq:4|rice", "topk:0.01|int8:256", "stc:0.01", "eden:1")
K = 10
"""Updates of a step."""


def spent(work: Callable[[], Any], times: int) -> float:
    """Processor time of this thread in nanoseconds, the median of several tries."""
    found = []
    for _ in range(times):
        began = time.thread_time_ns()
        work()
        found.append(time.thread_time_ns() - began)
    return median(found)


def limits(size: int, times: int) -> dict[str, float]:
    """The machine's limits for float32 values, in nanoseconds per value."""
    g, d, scratch = (np.ones(size, np.float32) for _ in range(3))
    raw = d.tobytes()

    def axpy() -> None:
        np.multiply(np.float32(0.5), d, out=scratch)
        np.add(g, scratch, out=g)

    found = {
        "memcpy_ns": spent(lambda: np.copyto(g, d), times),
        "fresh_copy_ns": spent(d.copy, times),
        "axpy_ns": spent(lambda: np.add(g, np.float32(0.5) * d, out=g), times),
        "axpy_in_place_ns": spent(axpy, times),
        "sha256_ns": spent(lambda: hashlib.sha256(raw).digest(), times),
        "crc32_ns": spent(lambda: zlib.crc32(raw), times),
    }
    return {name: round(value / size, 3) for name, value in found.items()}


def step_of(count: int) -> StepRecord:
    updates = tuple((number, 1.0 + number / 7) for number in range(count))
    return StepRecord(lsn=1, step=1, updates=updates, rate=0.3, form="delta", normalise="weight")


def applied(size: int, codec: str, times: int, copy_ns: float, pass_ns: float) -> dict[str, Any]:
    initial = {"w": np.zeros(size, np.float32)}
    schema = Schema.of(initial)
    model = Model.of(initial, schema)
    rng = np.random.default_rng(0)
    delta = (rng.laplace(size=size) * np.abs(rng.normal(size=size)) * 1e-3).astype(np.float32)
    body = codecs.encode_delta(delta, schema, codec, seed=1)
    together = min(K, max(2, 4 * 10**7 // size))
    bodies = [bytes(bytearray(body)) for _ in range(together)]
    decoding, found = [], []
    for _ in range(-(-times // together)):
        for each in bodies:
            began = time.thread_time_ns()
            vector, _ = codecs.decode_measured(memoryview(each), schema, codec)
            decoding.append(time.thread_time_ns() - began)
            found = [*found[-together + 1 :], vector]
    contributions = [Contribution(vector, None, 0, str(number)) for number, vector in enumerate(found)]
    record = step_of(len(contributions))
    combining = spent(lambda: model.apply(record, contributions), max(3, times // together)) / len(contributions)
    payload_ns = copy_ns * len(body) / (4 * size)
    decode_ns, combine_ns = median(decoding) / size, combining / size
    return {
        "params": size,
        "codec": codec,
        "bytes": round(len(body) / size, 4),
        "decode_ns": round(decode_ns, 3),
        "combine_ns": round(combine_ns, 3),
        "apply_ns": round(decode_ns + combine_ns, 3),
        "machine_ns": round(payload_ns + pass_ns, 3),
        "within": round((decode_ns + combine_ns) / (payload_ns + pass_ns), 2),
    }


def receipts(codec: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure `FederationRuntime.process` for small updates on a real disk, without a network."""
    initial = {"w": np.zeros(10, np.float32)}
    schema, topics = Schema.of(initial), Topics("apply")
    with tempfile.TemporaryDirectory() as directory:
        config = AggregatorConfig(
            connector=connector(Endpoint.parse("mqtt://localhost")),  # never connected
            federation="apply",
            initial=initial,
            store=directory,
            strategy=balanced(release_interval=1.0, max_staleness=10**6, plan=Plan(codec=codec, feedback=False)),
            limits=IngressLimits(rate=1e6, burst=1e6, fleet_rate=1e6, fleet_burst=1e6),
        )
        federation = FederationRuntime(config, Outlet(lambda _: None, lambda *_, **__: None), time.monotonic())
        federation.begin(time.monotonic())
        body = codecs.encode_delta(np.full(10, 1e-3, np.float32), schema, codec, seed=1)
        names = [f"d{number}" for number in range(batch)]
        for number, name in enumerate(names):
            status = frames.encode(Hello(state=DeviceState.TRAINING, outbox=number + 1))
            federation.process([Delivery(topics.status(name), status, 1, retain=False)], time.monotonic())
        spans, walls = [], []
        for seq in range(1, rounds + 1):
            deliveries = []
            for number, name in enumerate(names):
                header = {
                    "kind": "update",
                    "outbox": number + 1,
                    "first": seq,
                    "seq": seq,
                    "lineage": federation.core.lineage,
                    "generation": 0,
                    "base": federation.core.version,
                    "schema_hash": schema.hash,
                    "codec": codec,
                    "size": len(body),
                    "sha256": hashlib.sha256(body).digest(),
                    "examples": 100,
                    "steps": 10,
                }
                deliveries.append(Delivery(topics.update(name), frames.encode(header, body), 1, retain=False))
            began, wall = time.process_time_ns(), time.perf_counter_ns()
            federation.process(deliveries, time.monotonic())
            spans.append((time.process_time_ns() - began) / batch)
            walls.append((time.perf_counter_ns() - wall) / batch)
        accepted = federation.core.counts["accepted"]
        federation.close()
    if accepted != batch * rounds:
        raise RuntimeError(f"{accepted} of {batch * rounds} updates were accepted")
    about = {"codec": codec, "batch": batch, "cpu_us": round(median(spans) / 1e3, 1)}
    return {"row": "receipt", **about, "wall_us": round(median(walls) / 1e3, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", help="ignored")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the line to this file")
    arguments = parser.parse_args()
    sizes = (10_000, 1_000_000) if arguments.quick else (10_000, 100_000, 1_000_000, 10_000_000)
    rows: list[dict[str, Any]] = []
    machine = {}
    for size in sizes:
        times = max(5, min(200, (10**7 if arguments.quick else 5 * 10**7) // size))
        machine[str(size)] = here = limits(size, times)
        for codec in CODECS:
            if not (arguments.quick and codec in {"eden:1", "stc:0.01", "int4:128"}):
                rows.append(applied(size, codec, times, here["memcpy_ns"], here["axpy_ns"]))
                print(json.dumps(rows[-1]), file=sys.stderr)
    for batch in (1, 16) if arguments.quick else (1, 16, 128):
        rows.append(receipts("float32", batch, max(10, 1600 // batch)))
        print(json.dumps(rows[-1]), file=sys.stderr)
    found = {"quick": arguments.quick, "load1": round(os.getloadavg()[0], 1), "k": K, "limits": machine}
    line = json.dumps({"benchmark": "apply", **found, "rows": rows})
    if arguments.json:
        arguments.json.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
