"""Gateways between a root and its devices, on the virtual clock: the root's bytes, and the time to a target.

    python -m benchmarks.sites [--quick] [--profile NAME] [--target ACCURACY]

Each row is a fleet of a profile (default: farm, digits) twice from one seed: flat, all devices at the root, and behind
gateways. `root_bytes_ratio` is the payload bytes of all devices of the flat fleet over those of all gateways, both
ways, over the same virtual time. `lost` and `doubled` count updates of devices that a gateway accepted and that are
not, or more than once, at the root or on their way.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
from dataclasses import replace
from typing import Any

from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.virtual import ProfileFleet


def compared(fleet: ProfileFleet, sites: int) -> dict[str, Any]:
    """A row: the fleet flat, and with gateways."""
    flat = fleet.run()
    below = replace(fleet, sites=sites).run()
    alone, ledger = flat.outcome(), below.result.sites
    root = ledger["root_bytes_up"] + ledger["root_bytes_down"]
    return {
        "profile": fleet.profile,
        "sites": sites,
        "devices": fleet.devices,
        "days": fleet.days,
        "root_bytes_ratio": round((alone["bytes_up"] + alone["bytes_down"]) / root, 1),
        "seconds_to_target": below.seconds_to(fleet.target),
        "flat_seconds": flat.seconds_to(fleet.target),
        "target": fleet.target,
        "lost": ledger["lost"],
        "doubled": ledger["doubled"],
        "score": round(below.value, 4),
        "flat_score": round(flat.value, 4),
        "sums": ledger["sums"],
        "updates": len(below.result.senders),
        "versions": int(below.result.versions[-1]),
        "flat_versions": int(flat.result.versions[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small fleet, for testing the benchmark")
    parser.add_argument("--profile", default="farm")
    parser.add_argument("--target", type=float, default=0.9)
    args = parser.parse_args()
    sizes = [(4, 100, 2.0)] if args.quick else [(10, 1000, 2.0), (10, 1000, 4.0)]
    rows = [
        compared(ProfileFleet(Setting(), profile=args.profile, devices=devices, days=days, target=args.target), sites)
        for sites, devices, days in sizes
    ]
    print(json.dumps({"benchmark": "sites", "quick": args.quick, "rows": rows}))


if __name__ == "__main__":
    main()
