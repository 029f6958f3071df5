"""A standby in numbers: how long a federation is without an aggregator, and what `--sync` costs.

`python -m benchmarks.standby` prints one JSON line. Real processes and a real broker on this machine: the aggregator
that serves is killed while devices train, and the clock runs from there to the first update that the standby accepts.
The other host then returns as the standby, and the next kill is that of the new one. Receipts per second are those of
devices that train in no time, without a standby, with one, and with receipts that wait for it.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.federation.pair import of, pair

KILLS, QUICK = 10, 3
SECONDS = 20.0


async def failover(directory: Path, kills: int, takeover: float, *, sync: bool) -> list[float]:
    """Seconds from each kill to the first update that the other host has accepted."""
    took = []
    async with pair(directory, sync=sync, updates=4000, pace=0.5, takeover=takeover) as cast:
        await cast.serve_and_follow("one", "two")
        cast.follows_from_now("one")
        await cast.devices_start()
        await cast.accepted("one")
        serving, other = "one", "two"
        for _ in range(kills):
            await cast.accepted(serving, 3)
            began = time.time()
            await cast.hosts[serving].kill()
            took.append(await cast.accepted(other) - began)
            await cast.starts(serving)
            await cast.following(serving)
            serving, other = other, serving
    return took


async def receipts(directory: Path, seconds: float, *, standby: bool, sync: bool) -> float:
    """Accepted updates per second."""
    async with pair(directory, sync=sync, devices=8, updates=2000, pace=0.0) as cast:
        if standby:
            await cast.serve_and_follow()
        else:
            await cast.starts("one")
            await cast.until("one", "connected")
        await cast.devices_start()
        await cast.accepted("one", 20)
        began, before = time.monotonic(), len(of(cast.hosts["one"], "update", verdict="accepted"))
        await asyncio.sleep(seconds)
        accepted = len(of(cast.hosts["one"], "update", verdict="accepted")) - before
        return accepted / (time.monotonic() - began)


async def measure(kills: int, seconds: float, takeover: float) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory(prefix="midge-standby-") as place:
        folder = Path(place)
        took = await failover(folder / "failover", kills, takeover, sync=True)
        rates = {
            name: round(await receipts(folder / name, seconds, standby=standby, sync=sync), 1)
            for name, standby, sync in (("alone", False, False), ("async", True, False), ("sync", True, True))
        }
    return {
        "kills": len(took),
        "takeover_after": takeover,
        "failover_seconds_median": round(statistics.median(took), 2),
        "failover_seconds_worst": round(max(took), 2),
        "receipts_per_second": rates,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standby", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} kills in place of {KILLS}")
    parser.add_argument("--takeover-after", type=float, default=10.0, metavar="S", help="default: %(default)s")
    args = parser.parse_args()
    kills, seconds = (QUICK, SECONDS / 4) if args.quick else (KILLS, SECONDS)
    sys.stdout.write(json.dumps(asyncio.run(measure(kills, seconds, args.takeover_after))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
