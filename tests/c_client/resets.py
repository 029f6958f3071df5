"""Resets of a device of the C client at random moments, over Mosquitto: how many updates were lost, how many doubled.

    python -m tests.c_client.resets --updates 1000 --resets 1000

prints one line of JSON, and ends with 1 if one was lost or doubled, or is missing. Also what the client takes on a
Cortex-M4, where arm-none-eabi-gcc is installed.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.c_client.compiled import CLIENT, device
from tests.c_client.federation import played
from tests.harness.ledger import Books

PACE, LIFE = 80, 0.15
"""Milliseconds of a training, seconds of a device's life on average: an update takes more than one life."""
AT_ONCE = 4
"""Devices that share updates and resets, on one machine."""


def size() -> dict[str, int]:
    """Bytes of code and of memory on a Cortex-M4; nothing without the compiler."""
    if shutil.which("arm-none-eabi-gcc") is None:
        return {}
    done = subprocess.run(["sh", str(CLIENT / "size.sh")], capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(updates: int, resets: int, *, seed: int = 1, devices: int = AT_ONCE) -> dict[str, Any]:
    """Play it, and audit the books."""
    each = -(-updates // devices)
    books = Books(devices=devices, updates=each, codec="int8:256")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = device(folder, "-O2", "-g")
        found, fleet = asyncio.run(
            played(program, folder, books, resets=resets, pause=LIFE, seed=seed, options=[f"pace={PACE}"])
        )
    sizes = size()
    return {
        "benchmark": "micro",
        "client": "c",
        "updates": found.applied,
        "resets": fleet.resets,
        "lost": found.lost + books.devices * each - found.applied,
        "doubled": found.doubled,
        "c_text_bytes": sizes.get("c_text_bytes"),
        "c_ram_bytes": sizes.get("c_ram_bytes"),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--updates", type=int, default=1000, help="of all devices together")
    parser.add_argument("--resets", type=int, default=1000, help="of all devices together, at least")
    parser.add_argument("--devices", type=int, default=AT_ONCE)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    line = measured(options.updates, options.resets, seed=options.seed, devices=options.devices)
    print(json.dumps(line))  # noqa: T201 - it is what the command is for
    return 1 if line["lost"] or line["doubled"] or line["resets"] < options.resets else 0


if __name__ == "__main__":
    sys.exit(main())
