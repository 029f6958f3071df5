"""`python -m tests.harness`: one JSON line at the end, and exit code 1 where the books do not balance."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.harness.chaos import Chaos, Outcome, Play
from tests.harness.disk import apart
from tests.harness.gateways import GatewayChaos
from tests.harness.shards import ShardChaos


def main() -> int:
    """Read the options, play, and say how it ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of misfortunes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=4, help="that they are spread over (default: %(default)s)")
    parser.add_argument(
        "--gateways", type=int, default=0, metavar="N", help="sites with a gateway, instead of copies and disks"
    )
    parser.add_argument(
        "--shards", type=int, default=0, metavar="N", help="processes that take updates in, instead of copies and disks"
    )
    parser.add_argument("--broker", choices=["auto", "mosquitto", "embedded"], default="auto")
    parser.add_argument("--keep", metavar="DIR", help="where to leave logs, store and ledger; default: nowhere")
    args = parser.parse_args()
    if not 0 < args.seconds < 1e6 or args.devices < 1 or args.processes < 1 or min(args.gateways, args.shards) < 0:
        parser.error(
            "--seconds must be above 0, --devices and --processes at least 1, --gateways and --shards at least 0"
        )
    play = Play(args.seconds, args.seed, args.devices, args.processes, args.broker, disk=apart())
    if args.shards:
        outcome = _run(lambda directory: ShardChaos(play, args.shards, directory), args.keep)
    elif args.gateways:
        outcome = _run(lambda directory: GatewayChaos(play, args.gateways, directory), args.keep)
    else:
        outcome = _run(lambda directory: Chaos(play, directory), args.keep)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0 if outcome.good else 1


def _run(play: Callable[[Path], Chaos | GatewayChaos | ShardChaos], keep: str | None) -> Outcome:
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        return asyncio.run(play(Path(keep)).run())
    with tempfile.TemporaryDirectory(prefix="midge-chaos-") as directory:
        return asyncio.run(play(Path(directory)).run())


if __name__ == "__main__":
    sys.exit(main())
