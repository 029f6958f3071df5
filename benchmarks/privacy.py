"""The price of privacy: bytes, seconds and accuracy of secure aggregation, and the ε of differential privacy.

    python -m benchmarks.privacy [--quick] [--data FILE.npz]

| row | |
|---|---|
| `mode` | `secure` masks updates, by `slices=4` a quarter of each; `central` adds noise to steps, `shared` to updates |
| `params`, `k` | parameters of the model; devices in a sum |
| `bytes_per_param` | bytes of an update's whole payload per parameter, with header, entry, seals and signatures |
| `step_seconds` | processor seconds, median: the helper verifies K tickets and sums masks, the aggregator opens it |
| `accuracy`, `float32_accuracy` | after the same number of steps, mean of the last ten; for regression the RMSE |
| `epsilon`, `epsilon_lower` | the accounted ε, and the lower bound that an audit finds; null without noise |

One JSON line, progress to stderr. `--quick` is for testing the benchmark: digits only, and fewer steps.
"""

import benchmarks.one_thread  # noqa: F401, I001 - before NumPy

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import privacy_noise, privacy_robust, privacy_secure

Row = dict[str, Any]
SETS = ("digits", "spsw_har.npz", "fashion_mnist.npz", "cmapss_fd001.npz")


def secure_rows(data: str, quick: bool) -> Iterator[Row]:
    """Rows of secure aggregation; `data` is measured in place of the sets that have a name."""
    yield from privacy_secure.costs(repeats=3 if quick else 9)
    folder = os.environ.get("MIDGE_DATA", "")
    names = SETS[: 1 if quick else None] if data == SETS[0] else (data,)
    sets = [name if "." not in name else os.path.join(folder, name) for name in names]  # noqa: PTH118
    seeds = (1,) if quick else (1, 2, 3)
    steps = 100 if quick else privacy_secure.STEPS
    yield from privacy_secure.accuracies(sets, steps, seeds, privacy_secure.MASKED)


def robust_rows(data: str, quick: bool) -> Iterator[Row]:
    """Rows of secure aggregation with liars."""
    yield from privacy_robust.rows(data, quick=quick)


def noise_rows(data: str, quick: bool) -> Iterator[Row]:
    """Rows of differential privacy: noise of the aggregator, and of the devices."""
    yield from privacy_noise.rows(data, quick=quick)
    yield from privacy_noise.shared_rows(data, quick=quick)


SOURCES: tuple[Callable[[str, bool], Iterator[Row]], ...] = (secure_rows, robust_rows, noise_rows)
"""Each makes the rows of one kind of protection."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits only, and fewer steps")
    parser.add_argument("--data", default=SETS[0], help="rows to learn from (default: digits)")
    args = parser.parse_args()
    rows: list[Row] = []
    for source in SOURCES:
        for row in source(args.data, args.quick):
            print(row, file=sys.stderr)
            rows.append(row)
    print(json.dumps({"benchmark": "privacy", "quick": args.quick, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
