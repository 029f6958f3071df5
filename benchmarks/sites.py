"""Gateways between a root and its devices, on the virtual clock: the root's bytes, and the time to a target.

    python -m benchmarks.sites [--quick] [--seeds N] [--profile NAME] [--target ACCURACY]

Each row is a fleet of a profile (default: farm, digits) twice from one seed: flat, all devices at the root, and behind
gateways. `root_bytes_ratio` is the payload bytes of all devices of the flat fleet over those of all gateways, both
ways, over the same virtual time. `lost` and `doubled` count updates of devices that a gateway accepted and that are
not, or more than once, at the root or on their way. Results are kept in `benchmarks/results/sites.json`; rows that are
there are not run again.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.resumed import Row, resumed
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.virtual import ProfileFleet

RESULTS = Path(__file__).parent / "results" / "sites.json"
Case = tuple[str, float, int, int, float, int]
"""Profile, target, sites, devices, days, seed."""


def compared(case: Case) -> Row:
    """A row: the fleet flat, and with gateways."""
    profile, target, sites, devices, days, seed = case
    fleet = ProfileFleet(Setting(seed=seed), profile=profile, devices=devices, days=days, target=target)
    flat = fleet.run()
    below = replace(fleet, sites=sites).run()
    alone, ledger = flat.outcome(), below.result.sites
    root = ledger["root_bytes_up"] + ledger["root_bytes_down"]
    return {
        "profile": fleet.profile,
        "sites": sites,
        "devices": fleet.devices,
        "days": fleet.days,
        "seed": seed,
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


def _case(row: Row) -> Case:
    return row["profile"], row["target"], row["sites"], row["devices"], row["days"], row["seed"]


def report(found: Iterable[Row]) -> dict[str, Any]:
    """The rows in a fixed order, with least, median and largest ratios over the seeds of each fleet."""
    ordered = sorted(found, key=_case)
    groups: dict[Any, list[Row]] = {}
    for row in ordered:
        groups.setdefault(_case(row)[:-1], []).append(row)
    summary = []
    for group in groups.values():
        fewer = [row["root_bytes_ratio"] for row in group]
        never = 2 * group[0]["days"] * 86_400
        times = [(row["seconds_to_target"] or never) / (row["flat_seconds"] or never) for row in group]
        summary.append(
            {
                **{name: group[0][name] for name in ("profile", "target", "sites", "devices", "days")},
                "seeds": len(group),
                "root_bytes_ratio": [min(fewer), round(median(fewer), 1), max(fewer)],
                "time_ratio": [round(each, 2) for each in (min(times), median(times), max(times))],
                "lost": sum(row["lost"] for row in group),
                "doubled": sum(row["doubled"] for row in group),
            }
        )
    return {"benchmark": "sites", "quick": False, "summary": summary, "rows": ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small fleet of one seed; nothing is stored")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--profile", default="farm")
    parser.add_argument("--target", type=float, default=0.9)
    args = parser.parse_args()
    sizes = [(4, 100, 2.0)] if args.quick else [(10, 1000, 2.0), (10, 1000, 4.0)]
    cases = [
        (args.profile, args.target, *size, seed) for size in sizes for seed in range(1 if args.quick else args.seeds)
    ]
    rows = resumed(cases, compared, _case, report, None if args.quick else RESULTS)
    print(json.dumps({"benchmark": "sites", "quick": args.quick, "rows": rows}))


if __name__ == "__main__":
    main()
