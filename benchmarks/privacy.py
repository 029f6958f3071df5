"""Price of privacy: `python -m benchmarks.privacy [--quick] [--data FILE.npz]` prints one JSON line.

Each row is a mode: the model's parameters, updates in a step (`k`), bytes a device sends for each parameter, seconds of
processor time of one step beside what it takes without privacy, the accuracy of the federation and of the same one
without privacy, the ε that one device spends (`epsilon`), and what an attacker shows of it (`epsilon_lower`). The rows
of each mode are in a module of its own.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import privacy_noise

MODES = (privacy_noise.rows,)
"""Functions that measure the rows of their modes, quickly or fully, on digits or on a file of rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes on one core")
    parser.add_argument("--data", default="digits", help="rows to learn from (default: digits)")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = [row for measure in MODES for row in measure(arguments.data, quick=arguments.quick)]
    took = round(time.perf_counter() - began, 1)
    print(json.dumps({"benchmark": "privacy", "quick": arguments.quick, "took": took, "rows": rows}))


if __name__ == "__main__":
    main()
