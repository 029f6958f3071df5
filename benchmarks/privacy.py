"""The price of privacy: bytes, seconds and accuracy of secure aggregation, and the ε of differential privacy.

    python -m benchmarks.privacy [--quick] [--seeds 1,2,3] [--data FILE.npz] [--store]

| row | |
|---|---|
| `mode` | `secure` masks updates, by `slices=4` a quarter of each; `central` adds noise to steps, `shared` to updates |
| `params`, `k` | parameters of the model; devices in a sum |
| `bytes_per_param` | bytes of an update's whole payload per parameter, with header, entry, seals and signatures |
| `step_seconds` | processor seconds, median: the helper verifies K tickets and sums masks, the aggregator opens it |
| `accuracy`, `float32_accuracy` | after the same number of steps, mean of the last ten; for regression the RMSE |
| `…_range` | of a median over the seeds: the least and the largest |
| `epsilon`, `epsilon_lower` | the accounted ε, and the lower bound that an audit finds; null without noise |

One JSON line, progress to stderr. `--quick` is for testing the benchmark: digits only, one seed, and fewer steps.
`--store` writes `benchmarks/results/privacy.json`, from which `python docs/privacy.py` makes the page's tables.
"""

import benchmarks.one_thread  # noqa: F401, I001 - before NumPy

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import privacy_noise, privacy_robust, privacy_secure
from benchmarks.suite import machine

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "privacy.json"
SETS = ("digits", "spsw_har.npz", "fashion_mnist.npz", "cmapss_fd001.npz")


def secure_rows(data: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """Rows of secure aggregation; `data` is measured in place of the sets that have a name."""
    yield from privacy_secure.costs(repeats=3 if quick else 9)
    folder = os.environ.get("MIDGE_DATA", "")
    names = SETS[: 1 if quick else None] if data == SETS[0] else (data,)
    sets = [name if "." not in name else os.path.join(folder, name) for name in names]  # noqa: PTH118
    steps = 100 if quick else privacy_secure.STEPS
    yield from privacy_secure.accuracies(sets, steps, seeds, privacy_secure.MASKED)


def robust_rows(data: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """Rows of secure aggregation with liars."""
    yield from privacy_robust.rows(data, seeds, quick=quick)


def noise_rows(data: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """Rows of differential privacy: noise of the aggregator, and of the devices."""
    yield from privacy_noise.rows(data, seeds, quick=quick)
    yield from privacy_noise.shared_rows(data, seeds, quick=quick)


SOURCES: tuple[Callable[[str, Sequence[int], bool], Iterator[Row]], ...] = (secure_rows, robust_rows, noise_rows)
"""Each makes the rows of one kind of protection."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits only, and fewer steps")
    parser.add_argument("--data", default=SETS[0], help="rows to learn from (default: digits)")
    parser.add_argument("--seeds", default="1,2,3", help="of each row, such as 1,2,3,4,5 (default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="store the results in benchmarks/results/privacy.json")
    args = parser.parse_args()
    seeds = [1] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    rows: list[Row] = []
    began = time.perf_counter()
    for source in SOURCES:
        for row in source(args.data, seeds, args.quick):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    seconds = round(time.perf_counter() - began, 1)
    found = {"benchmark": "privacy", "quick": args.quick, "seeds": seeds, "seconds": seconds, "rows": rows}
    if args.store:
        RESULTS.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
