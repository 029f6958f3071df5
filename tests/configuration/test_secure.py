"""Settings files with the bundles of `midge broker init`, over TLS: a federation without a line of Python."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker.fleets import needs_mosquitto, running_fleet
from tests.configuration.test_init import started
from tests.waiting import until

pytestmark = needs_mosquitto

AGGREGATOR = """
[broker]
bundle = "fleet/aggregator"
[federation]
features = ["speed", "pressure", "temperature"]
statistics_devices = 2
[model]
kind = "linear"
task = "regression"
[strategy]
buffer_size = 2
[store]
path = "store"
[log]
json_lines = true
"""
DEVICE = """
[broker]
bundle = "fleet/devices/{name}"
[device]
outbox = "{name}.outbox"
wait = true
[data]
csv = "{name}.csv"
label = "power"
features = ["speed", "pressure", "temperature"]
"""


@pytest.mark.parametrize("way", ["certificates", "passwords"])
def test_a_fleet_with_bundles_needs_no_program(way: str, tmp_path: Path) -> None:
    from midge.__main__ import main

    assert main(["init", str(tmp_path / "project")]) == 0
    (tmp_path / "midge.toml").write_text(AGGREGATOR)
    with running_fleet(tmp_path / "fleet", way), ExitStack() as running:  # type: ignore[arg-type]
        running.enter_context(started(tmp_path, "a.log", "aggregate", "--config", "midge.toml"))
        for name in ("dev0001", "dev0002"):
            sensor = [sys.executable, "project/sensor.py", f"{name}.csv", "--rows", "100"]
            subprocess.run(sensor, cwd=tmp_path, check=True)
            (tmp_path / f"{name}.toml").write_text(DEVICE.format(name=name))
            running.enter_context(started(tmp_path, f"{name}.log", "device", "--config", f"{name}.toml"))

        def devices_in_releases() -> set[int]:
            lines = [
                line for line in (tmp_path / "a.log").read_text().splitlines(keepends=True) if line.endswith("}\n")
            ]
            events = [json.loads(line) for line in lines if line.startswith("{")]
            return {event["devices"] for event in events if event["event"] == "release"}

        until("a version with the work of both", lambda: 2 in devices_in_releases())
    assert (tmp_path / "dev0001.outbox").exists()
