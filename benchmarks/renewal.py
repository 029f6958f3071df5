"""Long-term renewal of a fleet's credentials: `python -m benchmarks.renewal [--quick]` prints one JSON line.

Two virtual years of 3,000 devices, with certificates of one year and with passwords that are three years old. The
authority's real code issues and signs, each device's files are on a disk, and half of all actions of a device or the
issuer end in a power failure, before or after a random write. Devices connect within a month, the issuer once a week;
in the second year the authority is replaced. A device is lost if nothing on its disk would be accepted by the broker. A
full run takes minutes, `--quick` (100 devices) less than one.
"""

import argparse
import heapq
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from midge.broker.provisioning import manage_devices, renewals  # noqa: E402
from midge.broker.provisioning.certificates import LEAF_DAYS  # noqa: E402
from midge.broker.provisioning.fleet_registry import FleetError, Way, present, read_fleet, write_fleet  # noqa: E402
from midge.broker.provisioning.held_credentials import HeldCredentials  # noqa: E402
from tests.broker.fleets import make_fleet  # noqa: E402
from tests.security.test_renewal import Broker, Power, PowerCut  # noqa: E402

DAY = 86_400.0
YEARS = 2
MONTH = 30 * DAY
"""Maximum interval between connections of a device."""
WEEK = 7 * DAY
"""Interval between two runs of the issuer."""
CUT = 0.5
"""Share of the actions of a device or the issuer that may end in a power failure."""
STEPS = 14
"""Writes and removals within which it happens; a renewal has about as many."""
SUCCESSION = 400 * DAY


class World:
    """One fleet over the years."""

    def __init__(self, directory: Path, way: Way, devices: int, power: Power) -> None:
        self.names = [f"dev{number:05}" for number in range(devices)]
        make_fleet(directory, way=way, names=self.names)
        fleet = read_fleet(directory)
        write_fleet(directory, fleet.model_copy(update={"days": LEAF_DAYS}))  # the first certificates last a year
        self.directory, self.broker, self.power = directory, Broker(directory), power
        self.began = present().timestamp()
        if way == "passwords":  # valid for five years
            for file in directory.glob("devices/*/*"):
                os.utime(file, (self.began - 3 * 365 * DAY,) * 2)
        self.counts: Counter[str] = Counter()
        self.weeks: Counter[int] = Counter()
        self.lost: set[str] = set()
        self.first: list[str] = []
        """Whether a bundle is original: no file of it has a suffix."""
        self.used: dict[str, list[str]] = {}
        self.rng = random.Random(1)
        self.queue: list[tuple[float, str]] = []
        self.now = 0.0

    def run(self) -> None:
        """Run all years."""
        for name in self.names:
            self.soon(name)
        heapq.heappush(self.queue, (0.0, ""))
        while self.queue:
            self.now, name = heapq.heappop(self.queue)
            if self.now > YEARS * 365 * DAY:
                break
            self.power.left = self.rng.randint(1, STEPS) if self.rng.random() < CUT else 10**9
            self.power.behind = self.rng.random() < 0.5
            try:
                if name:
                    self.come_by(name)
                else:
                    self.issue()
                self.power.left = 10**9
            except PowerCut:
                self.power.left = 10**9
                self.counts["cuts of devices" if name else "cuts of the issuer"] += 1
                heapq.heappush(self.queue, (self.now + 3600.0, name))

    def soon(self, name: str, after: float = 0.0) -> None:
        """Let a device connect within a month of a time."""
        heapq.heappush(self.queue, (max(self.now, after) + MONTH * self.rng.random(), name))

    def come_by(self, name: str) -> None:
        """Connect a device, and let it do what is due."""
        path = self.directory / "devices" / name
        held = HeldCredentials(path)
        for candidate in held.candidates():
            if self.broker.lets_in(name, candidate.endpoint):
                break
        else:
            self.lost.add(name)
            return
        if candidate.new:
            held.adopt()
        if self.used.setdefault(name, self.first) != (now := sorted(file.name for file in path.glob("*-*"))):
            stamp, self.used[name] = self.began + self.now, now  # also if the power failed after it
            for file in path.iterdir():
                os.utime(file, (stamp, stamp))
            self.counts["renewed"] += 1
            self.broker.replies.pop(name, None)
        outdated = False
        if self.broker.authorities:
            held.trust(self.broker.authorities)
            outdated = held.outdated(self.broker.authorities)
        wall = self.began + self.now
        if not held.answered and (held.asked or wall >= held.due() or outdated):
            fresh = not held.asked
            self.broker.requests[name] = held.ask()
            if fresh:
                self.weeks[int(self.now // WEEK)] += 1
            if name in self.broker.replies and (why := held.take(self.broker.replies[name])):
                self.counts[f"refused: {why}"] += 1
                held.give_up()
        else:
            self.broker.requests[name] = held.says()
        if held.answered:  # it connects with them at once
            heapq.heappush(self.queue, (self.now + 60.0, name))
            return
        # What is under way continues; otherwise nothing happens until it is due.
        if held.asked or (self.now >= SUCCESSION and not self.counts["finished"]):
            self.soon(name)
        else:
            self.soon(name, min(held.due() - self.began, SUCCESSION if self.now < SUCCESSION else math.inf))

    def issue(self) -> None:
        """Run the issuer."""
        now = present() + timedelta(seconds=self.now)
        asked = {name: payload for name, payload in self.broker.requests.items() if payload}
        if asked:
            found = renewals.answer(self.directory, asked, now)
            self.broker.replies |= found.replies
            for name in asked.keys() - found.replies.keys():
                self.broker.requests.pop(name)
        if self.now >= SUCCESSION:
            self.follow()
        self.broker.authorities = renewals.whom_to_trust(self.directory)
        heapq.heappush(self.queue, (self.now + WEEK, ""))

    def follow(self) -> None:
        """The next step of the succession, once it cuts off no device."""
        try:
            if not self.counts["succeeded"]:
                manage_devices.succeed_authority(self.directory)
                self.counts["succeeded"] = 1
            elif not self.counts["switched"]:
                manage_devices.switch_authority(self.directory)
                self.counts["switched"] = int(self.now // DAY)
            elif not self.counts["finished"]:
                manage_devices.finish_authority(self.directory)
                self.counts["finished"] = int(self.now // DAY)
        except FleetError:
            return  # devices are not ready


def measure(way: Way, devices: int) -> dict[str, Any]:
    """The figures of one fleet."""
    home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        world = World(home / "fleet", way, devices, Power(patch))
        world.run()
        at_once = max(world.weeks.values(), default=0)
        still = sum(
            not any(world.broker.lets_in(name, each.endpoint) for each in held.candidates())
            for name in world.names
            if (held := HeldCredentials(world.directory / "devices" / name))
        )
    shutil.rmtree(home)
    counts = {name.replace(" ", "_"): number for name, number in sorted(world.counts.items())}
    return {
        "way": way,
        "devices": devices,
        "years": YEARS,
        "lost": len(world.lost) + still,
        "most_asked_in_a_week": at_once,
        **counts,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 devices")
    parser.add_argument("--devices", type=int, default=3000)
    args = parser.parse_args()
    devices = 100 if args.quick else args.devices
    rows = [measure(way, devices) for way in ("certificates", "passwords")]
    print(json.dumps({"benchmark": "renewal", "rows": rows, "lost": sum(row["lost"] for row in rows)}))


if __name__ == "__main__":
    main()
