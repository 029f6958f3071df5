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
| `epsilon`, `epsilon_lower` | the accounted ε, and the lower bound of an audit of the same releases; null without it |

One JSON line, progress to stderr; the rows are made by a process on each core. `--quick` is for testing the benchmark:
digits only, one seed, and fewer steps.
`--store` writes `benchmarks/results/privacy.json`, from which `python docs/privacy.py` makes the page's tables.
"""

import benchmarks.one_thread  # noqa: F401, I001 - before NumPy

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import privacy_noise, privacy_robust, privacy_secure
from benchmarks.suite import machine

Row = dict[str, Any]
Job = Callable[[], list[Row]]
RESULTS = Path(__file__).parent / "results" / "privacy.json"
SETS = ("digits", "spsw_har.npz", "fashion_mnist.npz", "cmapss_fd001.npz")


def secure_jobs(data: str, seeds: Sequence[int], quick: bool) -> list[Job]:
    """Rows of secure aggregation, of each set; `data` is measured in place of the sets that have a name."""
    folder = os.environ.get("MIDGE_DATA", "")
    names = SETS[: 1 if quick else None] if data == SETS[0] else (data,)
    sets = [name if "." not in name else os.path.join(folder, name) for name in names]  # noqa: PTH118
    steps = 50 if quick else privacy_secure.STEPS
    return [partial(privacy_secure.accuracies, each, steps, seeds) for each in sets]


def robust_jobs(data: str, seeds: Sequence[int], quick: bool) -> list[Job]:
    """Rows of secure aggregation with liars, of each kind, on the first seed."""
    kinds = privacy_robust.KINDS[:2] if quick else privacy_robust.KINDS
    return [partial(privacy_robust.rows, data, seeds[:1], kind, quick=quick) for kind in kinds]


def noise_jobs(data: str, seeds: Sequence[int], quick: bool) -> list[Job]:
    """Rows of differential privacy: noise of the aggregator, and of the devices."""
    cases = (privacy_noise.LINEAR, privacy_noise.PERCEPTRON, privacy_noise.SMALL_GROUPS)[: 1 if quick else None]
    return [
        partial(privacy_noise.shared_rows, data, seeds, quick=quick),
        *(partial(privacy_noise.central_rows, data, seeds, case, quick=quick) for case in cases),
    ]


def measured(jobs: Sequence[Job]) -> list[Row]:
    """The rows of all jobs, in their order; made by a process on each core."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        places = {pool.submit(job): place for place, job in enumerate(jobs)}
        found: dict[int, list[Row]] = {}
        for done in as_completed(places):
            found[places[done]] = done.result()
            for row in done.result():
                print(row, file=sys.stderr, flush=True)
    return [row for place in sorted(found) for row in found[place]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits only, and fewer steps")
    parser.add_argument("--data", default=SETS[0], help="rows to learn from (default: digits)")
    parser.add_argument("--seeds", default="1,2,3", help="of each row, such as 1,2,3,4,5 (default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="store the results in benchmarks/results/privacy.json")
    args = parser.parse_args()
    seeds = [1] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    began = time.perf_counter()
    rows = privacy_secure.costs(repeats=3 if args.quick else 9)  # alone: its seconds are a result
    sources = (noise_jobs, secure_jobs, robust_jobs)  # the longest first, so that no core waits at the end
    rows += measured([job for jobs in sources for job in jobs(args.data, seeds, args.quick)])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = round(time.perf_counter() - began, 1)
    found = {"benchmark": "privacy", "quick": args.quick, "seeds": seeds, "seconds": seconds, "rows": rows}
    found["processor_seconds"] = round(sum(each.ru_utime + each.ru_stime for each in used), 1)
    if args.store:
        RESULTS.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
