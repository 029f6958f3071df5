"""Comparison of a virtual and a live fleet: the same fleet, data and seed both ways.

    python -m benchmarks.fidelity [--quick] [--data FILE.npz] [--profile NAME] [--devices N] [--days D] [--speed-up X]

The live fleet is one process with a connection for each device, over Mosquitto if it is installed, in scaled time:
`--speed-up` seconds of the profile per second of the clock. The virtual one is simulated in the same scaled time, so
that Midge's own time-outs are the same in both. A row is one figure: `what`, `virtual`, `live` (means over the seeds),
`error` (relative, of the virtual run), `within` (a tenth; for staleness in steps also less than half a step), and
`unscaled`: the virtual run in the profile's own time, to show the effect of the scaling. `seeds` holds the figures of
each seed. Times are in the profile's seconds.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.fleet import source
from midge.sensor_fleet.fleet_run import FleetRun
from midge.sensor_fleet.live.run import LiveRun
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.simulation.result import by_class
from midge.sensor_fleet.virtual import ProfileFleet

WITHIN = 0.1
STEPS = 0.5
"""Differences in staleness that do not count: a tenth of two steps is below the resolution of one update."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default=None)
    parser.add_argument("--profile", default="factory")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--days", type=float)
    parser.add_argument("--speed-up", type=float)
    parser.add_argument("--target", type=float)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    devices, days, speed_up, seeds, target = (80, 0.45, 1440.0, 1, 0.85) if args.quick else (100, 1.0, 480.0, 3, 0.9)
    fleet = ProfileFleet(
        Setting(data=source(args.data, quick=True)),  # small, so that both keep up
        profile=args.profile,
        devices=args.devices or devices,
        days=args.days or days,
        target=args.target or target,
        speed_up=args.speed_up or speed_up,
    )
    told = [both(fleet, seed) for seed in range(args.seeds or seeds)]
    rows = [row(what, told) for what in told[0]["virtual"]]
    rows = [{name: round(word, 4) if isinstance(word, float) else word for name, word in each.items()} for each in rows]
    about = {"profile": args.profile, "devices": fleet.devices, "days": fleet.days, "speed_up": fleet.speed_up}
    load = {"load": os.getloadavg()[0], "lag_p99": max(one["lag"] for one in told)}
    print(json.dumps({"benchmark": "fidelity", "quick": args.quick, **about, **load, "rows": rows, "seeds": told}))


def both(fleet: ProfileFleet, seed: int) -> dict[str, Any]:
    """One seed: figures of the virtual run in scaled time, of the live run, and of the unscaled virtual run."""
    fleet = replace(fleet, setting=replace(fleet.setting, seed=seed))
    began = time.perf_counter()
    virtual, unscaled = fleet.run(), replace(fleet, speed_up=1.0).run()
    print(f"seed {seed}: virtual twice in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    found = run(fleet)
    assert found.live is not None
    print(f"seed {seed}: live in {found.result.took:.1f} s; {found.live}", file=sys.stderr)
    told = {"virtual": figures(virtual), "live": figures(found), "unscaled": figures(unscaled)}
    moved = {name: found.live[name] for name in ("made", "held", "repeated", "wire_up", "wire_down")}
    return {**told, **moved, "lag": found.live["lag"]["p99"]}


def run(live: ProfileFleet) -> FleetRun:
    """The live run."""
    with tempfile.TemporaryDirectory(prefix="midge-fidelity-") as directory:
        running = LiveRun(live, Path(directory), say=lambda words: print(words, file=sys.stderr))
        asyncio.run(running.serve())
    assert running.found is not None
    return running.found


def figures(found: FleetRun) -> dict[str, float | None]:
    """The compared figures. Bytes are payload bytes."""
    result = found.result
    accepted = max(len(result.senders), 1)
    told: dict[str, float | None] = {
        "seconds to target": found.seconds_to(found.fleet.target),
        found.metric: found.value,
        "accepted updates": float(accepted),
        "versions": float(result.versions[-1]),
        "bytes up, an update": float(result.bytes_up.sum() / accepted),
        "bytes down, an update": float(result.bytes_down.sum() / accepted),
        "staleness, mean": float(result.staleness.mean()),
        "staleness, p90": float(np.quantile(result.staleness, 0.9)),
    }
    owner = result.class_of[result.senders]
    for place, (name, one) in enumerate(by_class(result).items()):
        told[f"{name}: accepted updates"] = float(one.updates)
        told[f"{name}: bytes up, a device"] = one.bytes_up
        told[f"{name}: bytes down, a device"] = one.bytes_down
        mine = result.staleness[owner == place]
        told[f"{name}: staleness, mean"] = float(mine.mean()) if len(mine) else None
    return told


def row(what: str, told: list[dict[str, Any]]) -> dict[str, Any]:
    """One figure over the seeds; None if a seed lacks it."""

    def mean(of: str) -> float | None:
        values = [one[of].get(what) for one in told]
        return None if any(value is None or math.isnan(value) for value in values) else fmean(values)

    virtual, live, unscaled = mean("virtual"), mean("live"), mean("unscaled")
    error = None if virtual is None or not live else virtual / live - 1
    near = "staleness" in what and virtual is not None and live is not None and abs(virtual - live) < STEPS
    found: Mapping[str, Any] = {"what": what, "virtual": virtual, "live": live, "error": error}
    return {**found, "within": error is not None and (abs(error) <= WITHIN or near), "unscaled": unscaled}


if __name__ == "__main__":
    main()
