"""`midge conform`: Midge's own device keeps every rule, and a device that breaks one is found out, for each of them."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from midge.aggregator.referee.conformance import Conformance, FederationServed
from midge.aggregator.referee.rules import RULES, RuleVerdict
from midge.broker.embedded.in_memory import Twin
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.wire.messages import Hello
from midge.wire.moments import Moments
from midge.wire.topics import Topics
from tests.docs.scripts import ROOT
from tests.federation.live import Log, aggregator, serving
from tests.referee.wrong_devices import FAULTS, Fault, changed, faulty

pytestmark = pytest.mark.virtual
TARGET = np.linspace(-1, 1, 130, dtype=np.float32)
MODEL = {"w": np.zeros(130, np.float32)}


def approach(parameters: Parameters, plan: TrainingPlan) -> Fit:
    return Fit({"w": (parameters["w"] + TARGET) / 2}, examples=10)


async def tried(directory: Path, fault: Fault | None = None, *, patience: float = 30.0) -> dict[str, RuleVerdict]:
    """What becomes of each rule."""
    twin = Twin()
    moments = {"input": Moments.of(np.random.default_rng(1).normal(size=(20, 3)))}
    conformance = Conformance(
        connect=twin.connect,
        topics=Topics("f"),
        device="d",
        parameters=MODEL,
        moments={"input": 3},
        wait=30.0,
        patience=patience,
    )
    connector = twin.connect if fault is None else faulty(twin.connect, fault)
    device = Device(
        DeviceConfig(
            connector=connector,
            federation="f",
            name="d",
            train=approach,
            outbox=directory / "d.outbox",
            moments=moments,
        )
    )
    trying = asyncio.create_task(conformance.run())
    await asyncio.sleep(1)
    async with serving(device):
        findings = await trying
    return {finding.rule.name: finding for finding in findings}


async def test_our_own_device_keeps_every_rule(tmp_path: Path) -> None:
    found = await tried(tmp_path)
    assert {name: finding.did for name, finding in found.items() if finding.outcome != "pass"} == {
        "largest": "it sets no limit"
    }


async def test_a_device_with_a_small_buffer_gets_small_parts(tmp_path: Path) -> None:
    found = await tried(tmp_path, changed(Hello, largest=1024))
    assert found["largest"].did == "it takes parts of 1024 bytes at most"


@pytest.mark.parametrize("name", FAULTS)
async def test_a_device_that_breaks_a_rule_is_found_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, make = FAULTS[name]
    found = await tried(tmp_path, make(monkeypatch))
    assert found[rule].outcome == "fail", found[rule].did


def test_every_rule_has_a_device_that_breaks_it_and_a_place_on_the_page() -> None:
    assert {rule for rule, _ in FAULTS.values()} == {rule.name for rule in RULES}
    headings = {
        line.lstrip("# ") for line in (ROOT / "docs" / "protocol.md").read_text().splitlines() if line[:1] == "#"
    }
    assert {rule.section for rule in RULES} <= headings


async def test_a_device_that_never_comes_breaks_the_rule_to_greet(tmp_path: Path) -> None:
    twin = Twin()
    conformance = Conformance(connect=twin.connect, topics=Topics("f"), device="d", parameters=MODEL, wait=5.0)
    found = {finding.rule.name: finding.outcome for finding in await conformance.run()}
    assert found.pop("greeting") == "fail" and set(found.values()) <= {"not seen", "fail"}
    assert not [topic for topic in twin.router._retained if topic.startswith("midge/1/f/model")]


async def test_a_federation_that_is_served_is_left_alone(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    async with serving(server):
        await log.until(lambda: "midge/1/f/aggregator" in twin.router._retained)
        conformance = Conformance(connect=twin.connect, topics=Topics("f"), device="d", parameters=MODEL)
        with pytest.raises(FederationServed, match="--federation"):
            await conformance.run()


def test_the_command_ends_with_one_object(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from midge.__main__ import main
    from midge.commands import conform

    monkeypatch.setattr(conform, "read_federation", lambda _args: (Twin().connect, Topics("conform")))
    assert main(["device", "conform", "mqtt://localhost", "--device", "d", "--wait", "0.2", "--json"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["ok"] is False and said["failed"] == 1 and len(said["rules"]) == len(RULES)
    assert said["rules"][3] == {
        "rule": "greeting",
        "section": "A device's life",
        "outcome": "fail",
        "did": "no hello with the state ready came within 0.2 s",
    }
    for wrong in (["--tensor", "w"], ["--tensor", "w=0"], ["--statistics", "input=x"], ["--role", "averaged"]):
        assert main(["conform", "mqtt://localhost", "--device", "d", *wrong]) == 2
