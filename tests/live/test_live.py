"""Live fleets of some thirty devices, hurried: over the embedded broker, over Mosquitto, by the command."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.sensor_fleet.fleet_run import FleetRun
from midge.sensor_fleet.live.run import LiveRun
from midge.sensor_fleet.live.server import make
from midge.sensor_fleet.report.comparison import comparison
from midge.sensor_fleet.report.conclusion import write_report
from midge.sensor_fleet.report.reading import read
from midge.sensor_fleet.report.repeat import command
from midge.sensor_fleet.setting import BrokerAddress, Setting
from midge.sensor_fleet.simulation.result import by_class
from midge.sensor_fleet.virtual import ProfileFleet
from tests import needs

PROFILE = """
[training]
interval = "40 min"
release_interval = "10 min"

[[class]]
name = "steady"
share = 0.4
samples_per_second = 10_000
memory = "8 MB"
joules_per_step = 0.01
joules_per_byte = 1e-6
link = { up = "100 kB/s", down = "100 kB/s", latency = "50 ms" }

[[class]]
name = "fickle"
share = 0.3
samples_per_second = 1_000
memory = "8 MB"
joules_per_step = 0.01
joules_per_byte = 1e-6
link = { up = "20 kB/s", down = "20 kB/s", latency = "300 ms", loss = 0.01 }
availability = { kind = "on-off", on = "2 h", off = "30 min" }
churn = { late = 0.3, leave = 0.3, goodbye = 0.0, within = "4 h" }

[[class]]
name = "by day"
share = 0.3
samples_per_second = 1_000
memory = "8 MB"
joules_per_step = 0.01
joules_per_byte = 1e-6
link = { up = "20 kB/s", down = "20 kB/s" }
availability = { kind = "diurnal", hours = [0, 4], jitter = "10 min" }
"""
CLASSES = ("steady", "fickle", "by day")


@pytest.fixture
def live(tmp_path: Path) -> ProfileFleet:
    (tmp_path / "hurry.toml").write_text(PROFILE)
    setting = Setting(model="linear", local_steps=4, seed=5)
    return ProfileFleet(setting, profile=str(tmp_path / "hurry.toml"), devices=30, days=0.25, speed_up=3600.0)


@asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[BrokerAddress]:
    async with local_broker("embedded", directory=directory) as local:
        yield BrokerAddress(str(local.endpoint))


def run(directory: Path, live: ProfileFleet, *, foreign: bool = False) -> FleetRun:
    """A live run over the embedded broker, with an aggregator of its own or one of somebody else."""

    async def serve() -> FleetRun:
        async with embedded(directory) as broker:
            running = LiveRun(live, directory, broker=broker, aggregates=not foreign)
            if foreign:
                aggregator = make(live, connector(broker.endpoint()), directory / "store")
                serving = asyncio.create_task(aggregator.serve())
                await running.serve()
                aggregator.stop()
                await serving
            else:
                await running.serve()
            assert running.found is not None
            return running.found

    return asyncio.run(serve())


def told(found: FleetRun) -> dict[str, Any]:
    assert found.live is not None
    return dict(found.live)


def test_every_class_takes_part_and_nothing_is_lost(tmp_path: Path, live: ProfileFleet) -> None:
    found = run(tmp_path, live)
    result, about = found.result, told(found)
    classes = by_class(result)
    assert set(classes) == set(CLASSES)
    for one in classes.values():
        assert one.updates and one.bytes_up and one.bytes_down and one.joules and one.staleness
    # Every update that was made is accepted or waits for its receipt: of those that vanished it may have been accepted.
    decided = sum(about["decided"].values())
    assert about["made"] - about["held"] <= decided <= about["made"]
    assert abs(decided - len(result.senders) - about["repeated"]) <= about["held"]
    # Links that break, and devices that vanish, are told by Last Wills, the end of a day by a goodbye.
    assert about["lost"] >= 5 and about["goodbyes"] >= 5
    assert result.metrics["accuracy"][-1] > result.metrics["accuracy"][0] + 0.2
    assert about["wire_up"] > result.bytes_up.sum() and about["wire_down"] > result.bytes_down.sum()
    assert 0 <= result.times[0] < 1800 and result.times[-1] == pytest.approx(0.25 * 86400, rel=0.01)


def test_an_aggregator_of_somebody_else_serves_too(tmp_path: Path, live: ProfileFleet) -> None:
    found = run(tmp_path, live, foreign=True)
    assert len(found.result.senders) > 30
    assert found.result.metrics["accuracy"][-1] > 0.5  # of the newest model that devices hold
    assert found.result.versions[-1] > 3
    assert found.result.parameters.keys() == found.model.initial.keys()


@pytest.mark.mosquitto
@needs.mosquitto
def test_command_writes_a_run_beside_a_virtual_one(
    tmp_path: Path, live: ProfileFleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    same = ["--profile", "hurry.toml", "--devices", "30", "--days", "0.25", "--model", "linear", "--local-steps", "4"]
    assert main(["fleet", "--live", *same, "--speed-up", "3600", "--json", "--name", "live"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"] == "said" and "Mosquitto" in lines[0]["words"]
    assert set(lines[-1]["classes"]) == set(CLASSES) and lines[-1]["live"]["speed_up"] == 3600
    assert main(["fleet", "--virtual", *same, "--json", "--name", "virtual"]) == 0
    runs = [read(Path("runs/live")), read(Path("runs/virtual"))]
    assert runs[0].accepted_count == sum(one["updates"] for one in lines[-1]["classes"].values())
    assert "live" in comparison(runs)
    page = write_report(Path("runs/live")).read_text()
    assert "Last Wills" in page and "vanish" not in page and "steady" in page
    assert command(runs[0]).startswith("midge fleet --live --profile hurry.toml") and "--speed-up 3600" in command(
        runs[0]
    )


def test_command_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet"]) == 2
    assert "--virtual, --plan, --live" in capsys.readouterr().err
    assert main(["fleet", "--live", "--speed-up", "0"]) == 2
    assert "--speed-up is 0" in capsys.readouterr().err
    assert main(["fleet", "--broker", "ws://localhost"]) == 2
    assert "mqtt:// and mqtts://" in capsys.readouterr().err


def test_devices_of_sensors_that_stream_train_when_enough_is_new(tmp_path: Path, live: ProfileFleet) -> None:
    """Rows come every half hour, and twelve have to be new: a device trains at the start and not much oftener."""
    setting = Setting(model="linear", local_steps=4, seed=5, data="vibration")
    streaming = replace(live, setting=setting, devices=10, days=1.0, drift=0.5, fresh=12, speed_up=14_400.0)
    parsed = ProfileFleet.parse(streaming.words())
    assert (parsed.drift, parsed.fresh) == (0.5, 12), "an aggregator that is started by hand must know them too"
    found = run(tmp_path, streaming)
    trainings = found.result.trainings_of
    assert trainings.sum() >= 10
    assert trainings.max() <= 1 + 48 // 12
    assert {"accuracy", "healthy", "outer race"} <= set(found.result.metrics), "each class is told"
