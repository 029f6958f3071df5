"""`python -m tests.harness`: one JSON line at the end, and exit code 1 where the books do not balance."""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.harness.chaos import Chaos, Outcome, Play
from tests.harness.disk import apart
from tests.harness.gateways import GatewayChaos


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
    parser.add_argument("--broker", choices=["auto", "mosquitto", "embedded"], default="auto")
    parser.add_argument("--keep", metavar="DIR", help="where to leave logs, store and ledger; default: nowhere")
    args = parser.parse_args()
    if not 0 < args.seconds < 1e6 or args.devices < 1 or args.processes < 1 or args.gateways < 0:
        parser.error("--seconds must be above 0, --devices and --processes at least 1, --gateways at least 0")
    play = Play(args.seconds, args.seed, args.devices, args.processes, args.broker, disk=apart())
    outcome = _run(play, args.gateways, args.keep)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
    return 0 if outcome.good else 1


def _run(play: Play, gateways: int, keep: str | None) -> Outcome:
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        return asyncio.run(_play(play, gateways, Path(keep)))
    with tempfile.TemporaryDirectory(prefix="midge-chaos-") as directory:
        return asyncio.run(_play(play, gateways, Path(directory)))


async def _play(play: Play, gateways: int, directory: Path) -> Outcome:
    return await (GatewayChaos(play, gateways, directory) if gateways else Chaos(play, directory)).run()


if __name__ == "__main__":
    sys.exit(main())
