"""The options that describe a simulated fleet's world."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midge.sensor_fleet.world import World

_OPTIONS = {
    "median": ("S", "median seconds of a training (default: 0.5)"),
    "spread": ("SIGMA", "standard deviation of its logarithm; 0: all equal (default: 1.15)"),
    "online": ("S", "mean seconds that a link holds; 0: forever (default: 15)"),
    "offline": ("S", "mean seconds that a broken link stays broken (default: 2)"),
    "late": ("SHARE", "share of devices that join late (default: 0.15)"),
    "leave": ("SHARE", "share of devices that leave for good (default: 0.15)"),
    "goodbye": ("SHARE", "share of those that disconnect properly (default: 0.5)"),
    "turnover": ("S", "seconds within which devices join and leave (default: 20)"),
    "twice": ("CHANCE", "probability that a device's message comes twice (default: 0.05)"),
    "bandwidth": ("BYTES", "bytes a second of the median link; 0: no limit (default: 200000)"),
    "latency": ("S", "seconds each way of the median link (default: 0.04)"),
    "link-spread": ("SIGMA", "standard deviation of the logarithms of bandwidth and latency (default: 0.7)"),
}
"""Every number of a world except its seed. The defaults are the world's; they are repeated here for --help."""


def add_world(parser: argparse.ArgumentParser) -> None:
    """One option for each number of the world, one for a file of them, and one for a world without faults."""
    group = parser.add_argument_group("world", "These options override the file, and the file overrides --calm.")
    group.add_argument("--calm", action="store_true", help="nothing fails and no device leaves; only the speeds stay")
    group.add_argument("--world", dest="world_file", type=Path, metavar="FILE.toml", help="these numbers, by name")
    for name, (metavar, what) in _OPTIONS.items():
        group.add_argument(f"--{name}", type=float, metavar=metavar, help=what)


def read_world(args: argparse.Namespace) -> "World":
    """The world that the options describe.

    Raises:
        ValueError: an invalid number, or a file with unknown names.
    """
    from midge.sensor_fleet.world import World  # noqa: PLC0415 - an extra

    world = World(seed=args.seed)
    if args.calm:
        world = world.calm()
    if args.world_file is not None:
        world = World.read(args.world_file, world)
    given = {field.name: getattr(args, field.name, None) for field in fields(World) if field.name != "seed"}
    return replace(world, **{name: value for name, value in given.items() if value is not None})
