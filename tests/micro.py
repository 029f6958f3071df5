"""Microcontrollers under resets: the MicroPython and the C client, each in a federation whose books must balance.

`python -m tests.micro`: one JSON line. Each client has a program of its own, `tests.micropython.resets` and
`tests.c_client.resets`, which takes `--updates` and `--resets` and prints one such line; one that is not there is left
out. What can be added is added, and each client's own figures are beside.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from typing import Any

CLIENTS = {"micropython": ("tests.micropython.resets", "--heap"), "c": ("tests.c_client.resets",)}
QUICK = {"micropython": (100, 10), "c": (100, 100)}
"""Updates and resets."""
FULL = {"micropython": (1000, 100), "c": (1000, 1000)}
ADDED = ("updates", "resets", "lost", "doubled")
OF_ONE = ("heap_kib", "c_text_bytes", "c_ram_bytes")


def play(client: str, updates: int, resets: int) -> tuple[dict[str, Any] | None, bool]:
    """The figures of a client, and whether it kept its promises; no figures if it is not there."""
    module, *options = CLIENTS[client]
    if importlib.util.find_spec(module.rpartition(".")[0]) is None or importlib.util.find_spec(module) is None:
        return None, True
    words = [sys.executable, "-m", module, "--updates", str(updates), "--resets", str(resets), *options]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {}, done.returncode == 0


def main() -> int:
    """Print the line; 1 if a client lost or doubled an update."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    args = parser.parse_args()
    found: dict[str, Any] = {"benchmark": "micro", "quick": args.quick, **dict.fromkeys(ADDED, 0)}
    found.update(dict.fromkeys(OF_ONE))
    rows, well = [], True
    for client, (updates, resets) in (QUICK if args.quick else FULL).items():
        row, kept = play(client, updates, resets)
        well = well and kept
        if row is None:
            continue
        rows.append({"client": client, **row})
        for name in ADDED:
            found[name] += row.get(name, 0)
        found.update({name: row[name] for name in OF_ONE if name in row})
    sys.stdout.write(json.dumps({**found, "rows": rows}) + "\n")
    return 0 if well and rows and not found["lost"] and not found["doubled"] else 1


if __name__ == "__main__":
    sys.exit(main())
