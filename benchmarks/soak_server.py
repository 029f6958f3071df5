"""The aggregator of a soak: the command `midge aggregate benchmarks.soak_server:app`.

    python -m benchmarks.soak_server --config BUNDLE [options of midge aggregate]

The environment says where its store is (`SOAK_STORE`), how many parameters the model has, and by which factor the times
of a fleet that trains each hour are shorter (`SOAK_SPEED_UP`).
"""

import os
import sys

import numpy as np

import midge
from midge.__main__ import main
from midge.aggregator.core.participation_controller import Pace
from midge.aggregator.core.presets import balanced
from midge.sensor_fleet.profiles.time_scaling import scaled_strategy

INTERVAL, RELEASE_INTERVAL = 3600.0, 900.0
"""Seconds between two trainings of a device, and least seconds between two versions, in the fleet's own time."""


def app() -> midge.Aggregator:
    """The aggregator; `--config` replaces its broker and its federation."""
    strategy = balanced(
        pace=Pace(interval=INTERVAL, rest=0.0), release_interval=RELEASE_INTERVAL, deadline=RELEASE_INTERVAL
    )
    return midge.Aggregator(
        "mqtts://localhost",
        federation="soak",
        initial={"w": np.ones(int(os.environ["SOAK_PARAMETERS"]), np.float32)},
        store=os.environ["SOAK_STORE"],
        strategy=scaled_strategy(strategy, float(os.environ["SOAK_SPEED_UP"])),
    )


if __name__ == "__main__":
    sys.exit(main(["aggregate", "benchmarks.soak_server:app", *sys.argv[1:]]))
