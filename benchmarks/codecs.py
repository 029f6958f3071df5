"""Cost of codecs: `python -m benchmarks.codecs [--quick] [--data FILE.npz]` prints one JSON line.

Each row is a codec on one vector: nanoseconds of processor time per parameter for encoding and decoding, bytes per
parameter, and the share of the energy that is lost. A copy of the same vector in the same run is the reference. The
vector is heavy-tailed, as deltas are; `--data` is accepted and ignored, since all benchmarks take it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from midge.wire import codecs
from midge.wire.errors import WireError
from midge.wire.schema import Schema, Tensor

NAMES = (
    "float32", "bf16", "int8:256", "int8:256:random", "int4:128", "int4:128:random", "sign:1024", "eden:1", "eden:2",
    "eden:4", "eden:1:least", "topk:0.1|int8:256", "topk:0.01|int8:256", "stc:0.05", "stc:0.01", "randk:0.1|float32",
    "randk:0.25|eden:1", "uq:1|rice", "uq:3|rice", "uq:4|rice", "uq:5|rice", "uq:8|rice", "uq:3|zstd",
)  # fmt: skip


def fastest(work: Callable[[], Any], times: int) -> float:
    """Processor time of this thread in seconds, the minimum of several tries: the machine may have other work."""
    found = []
    for _ in range(times):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


def row(name: str, vector: npt.NDArray[np.float32], schema: Schema, times: int) -> dict[str, Any]:
    body = codecs.encode_delta(vector, schema, name, seed=1)
    decoded = codecs.decode_delta(body, schema, name)
    error = np.square(vector - decoded, dtype=np.float64).sum() / np.square(vector, dtype=np.float64).sum()
    per_value = 1e9 / vector.size
    return {
        "codec": name,
        "parameters": vector.size,
        "encode_ns": round(per_value * fastest(lambda: codecs.encode_delta(vector, schema, name, seed=1), times), 2),
        "decode_ns": round(per_value * fastest(lambda: codecs.decode_delta(body, schema, name), times), 2),
        "bytes": round(len(body) / vector.size, 5),
        "ratio": round(4 * vector.size / len(body), 1),
        "left_out": round(float(error), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data")
    arguments = parser.parse_args()
    size, times = (100_000, 5) if arguments.quick else (1_000_000, 9)
    rng = np.random.default_rng(0)
    vector = (rng.laplace(size=size) * np.abs(rng.normal(size=size)) * 1e-3).astype(np.float32)
    schema = Schema([Tensor("w", (size,), "float32", "trained")])
    rows = []
    for name in NAMES:
        try:
            rows.append(row(name, vector, schema, times))
        except WireError as error:
            print(f"{name}: {error}", file=sys.stderr)
    copy = 1e9 / size * fastest(vector.copy, 5 * times)
    print(json.dumps({"benchmark": "codecs", "quick": arguments.quick, "memcpy_ns": round(copy, 3), "rows": rows}))


if __name__ == "__main__":
    main()
