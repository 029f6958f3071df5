"""A virtual fleet as a run: its files, its page, its place in a comparison, and the plan that is made of it."""

import json
import math
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from midge.__main__ import main
from midge.sensor_fleet.fleet_run import FleetRun
from midge.sensor_fleet.planning import answer
from midge.sensor_fleet.report.comparison import comparison
from midge.sensor_fleet.report.conclusion import write_report
from midge.sensor_fleet.report.fleet_sections import classes_of
from midge.sensor_fleet.report.reading import read
from midge.sensor_fleet.report.repeat import command
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.simulation.result import by_class
from midge.sensor_fleet.virtual import ProfileFleet

FLEET = ProfileFleet(Setting(local_steps=8, model="linear"), profile="factory", devices=40, days=1.5, target=0.8)


@pytest.fixture(scope="module")
def found() -> FleetRun:
    return FLEET.run()


def written(found: FleetRun, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    found.write(directory)
    return directory


def test_classes_add_up_to_the_fleet(found: FleetRun) -> None:
    classes = by_class(found.result)
    assert sum(one.devices for one in classes.values()) == 40
    assert sum(one.updates for one in classes.values()) == len(found.result.senders)
    assert sum(one.share_of_weight for one in classes.values()) == pytest.approx(1)
    moved = sum(one.devices * (one.bytes_up + one.bytes_down) for one in classes.values())
    assert moved == pytest.approx(found.result.bytes_at[-1].sum(), abs=40)  # each device's are rounded
    nodes = classes["vibration node"]
    profile = next(one for one in found.profile.classes if one.name == "vibration node")
    mine = found.result.class_of == found.result.classes.index("vibration node")
    expected = profile.joules_per_step * found.result.steps_of[mine].mean()
    byte = profile.joules_per_byte / 0.99
    # Each device's bytes are rounded, up and down: half a byte each.
    assert nodes.joules == pytest.approx(expected + byte * (nodes.bytes_up + nodes.bytes_down), abs=byte)


def test_bytes_are_those_of_the_messages(found: FleetRun) -> None:
    """Each device greets, and each update has a header and a body; models come down once for each training at least."""
    result = found.result
    assert (result.bytes_up >= 100 * result.per_device).all()
    assert (result.bytes_down > 0).all()
    assert (np.diff(result.bytes_at, axis=0) >= 0).all()


def test_page_of_a_run_shows_each_class_and_loads_nothing(found: FleetRun, tmp_path: Path) -> None:
    page = write_report(written(found, tmp_path / "a")).read_text()
    for words in ("Energy and bytes by hardware", "Fairness", "Monthly costs", "vibration node", "industrial PC"):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")
    assert "nan" not in page.lower().replace("finance", "")


def test_a_fleet_without_limits_has_a_page_too(tmp_path: Path) -> None:
    """Of the demo's devices a training takes seconds, whatever the model: there is no rate of samples to show."""
    (tmp_path / "wide.toml").write_text(
        """[[class]]
name = "unlimited"
share = 1
seconds = "2 s"
memory = "1 MB"
joules_per_step = 0
joules_per_byte = 0
link = { latency = "0 s", twice = 0.1 }
availability = { kind = "breaking", online = "20 s", offline = "1 s" }
"""
    )
    setting = Setting(local_steps=2, model="linear")
    for profile in ("demo", str(tmp_path / "wide.toml")):
        fleet = ProfileFleet(setting, profile=profile, devices=6, days=60 / 86400, interval=1.0)
        assert (
            "unlimited" in (page := write_report(written(fleet.run(), tmp_path / "a")).read_text()) or "device" in page
        )


def test_command_on_the_page_is_the_one_that_was_given(found: FleetRun, tmp_path: Path) -> None:
    words = command(read(written(found, tmp_path / "a")))
    expected = "--profile factory --devices 40 --days 1.5 --data digits --model linear --local-steps 8 --target 0.8"
    assert words == f"midge fleet --virtual {expected} --seed 0"


def test_runs_are_compared_side_by_side(found: FleetRun, tmp_path: Path) -> None:
    runs = [read(written(found, tmp_path / name)) for name in "ab"]
    page = comparison(runs)
    assert "energy per device" in page and f"{len(found.result.senders):,}" in page
    assert runs[0].accepted_count == len(found.result.senders)
    assert [one.name for one in classes_of(runs[0])] == list(found.result.classes)


def test_plan_tells_the_worst_and_the_best_seed(found: FleetRun) -> None:
    worse = replace(found, result=replace(found.result, times=2 * found.result.times))
    plan = answer([found, worse], 0.8)
    (level,) = plan.levels
    held = next(
        time
        for end, time in enumerate(found.result.times, 1)
        if np.mean(found.result.metrics["accuracy"][max(0, end - 5) : end]) >= 0.8
    )
    assert level.reached == plan.seeds == 2
    assert level.seconds == pytest.approx((held, 2 * held))
    assert level.sent is not None and 0 < level.sent[0] <= found.result.bytes_at[-1, 0] / 40


def test_plan_without_a_target_climbs_and_says_what_nobody_reached(found: FleetRun) -> None:
    levels = answer([found], None).levels
    scores = [level.score for level in levels]
    assert scores == sorted(scores) and all(level.reached for level in levels)
    (never,) = answer([found], 1.0).levels
    assert (never.reached, never.seconds) == (0, None)


def test_ends_at_the_target_where_it_is_asked_to() -> None:
    found = replace(FLEET, stop_at_target=True).run()
    assert found.result.times[-1] < FLEET.seconds
    assert found.seconds_to(0.8) == pytest.approx(found.result.times[-1])


def test_notebook_shows_curve_and_classes(found: FleetRun) -> None:
    assert len(repr(found.result)) < 300 and "array" not in repr(found.result)  # it filled screens
    shown = found.result._repr_html_()
    assert shown.count("<svg ") == 1 and "vibration node" in shown
    curve = found.result.plot()
    assert curve._repr_svg_() in shown
    drawing = ET.fromstring(curve._repr_svg_())
    assert [part.get("class") for part in drawing.iter() if "line" in (part.get("class") or "")] == ["line fleet"]


def test_command_writes_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--profile", "phones", "--devices", "12", "--days", "0.5", "--local-steps", "2", "--json", "--name", "x"]
    assert main(["fleet", "--virtual", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["devices"] == 12
    assert all(line["event"] == "evaluation" and not math.isnan(line["seconds_left"]) for line in lines[1:-1])
    assert (tmp_path / "runs/x/report.html").exists()
    assert main(["fleet", "--plan", "--seeds", "1", *options[:-2]]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["seeds"] == 1


def test_microcontrollers_are_on_page_and_terminal_and_in_outcome_and_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    large = '[[class]]\nname = "tiny"\nshare = 0.5\nhardware = "micro"\nmemory = "9 kB"\n'
    node = '[[class]]\nname = "node"\nshare = 0.5\nhardware = "micro"\nboard = { battery = "2600 mAh" }\n'
    Path("boards.toml").write_text(large + node)
    options = ["--profile", "boards.toml", "--devices", "16", "--days", "0.5", "--model", "linear"]
    assert main(["fleet", "--virtual", *options, "--micro", "8", "--name", "x"]) == 0
    said = capsys.readouterr().out
    assert "battery lasts" in said and "tiny takes no part, " in said
    outcome = json.loads(Path("runs/x/result.json").read_text())
    assert outcome["classes"]["node"]["board"]["battery_days"] > 0
    assert outcome["classes"]["microcontroller"]["board"]["battery_days"] is None
    (sentence,) = outcome["left_out"]
    page = Path("runs/x/report.html").read_text()
    assert "Microcontrollers</h2>" in page and "flash lasts" in page and sentence in unescape(page)
    assert "--micro 8" in page
    assert main(["fleet", "--plan", "--seeds", "1", *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["boards"]["node"]["ram_needed"] < plan["boards"]["node"]["ram"] and len(plan["left_out"]) == 1


@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32)])
def test_colour_images_are_learned_by_a_convolutional_model(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrays of the shape of CIFAR-10, with colours last or first, and without torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    rng = np.random.default_rng(0)
    np.savez("images.npz", x=rng.integers(0, 256, (120, *shape), np.uint8), y=rng.integers(0, 10, 120))
    options = ["--data", "images.npz", "--model", "cnn", "--devices", "6", "--days", "0.1", "--local-steps", "2"]
    assert main(["fleet", "--virtual", *options, "--json", "--name", "x"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["updates"] >= 2
    about = json.loads((tmp_path / "runs/x/run.json").read_text())
    assert about["data"]["shape"] == [32, 32, 3]
    assert about["model"] == {"name": "cnn", "parameters": 11692}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--micro", "2000"], "2000 microcontrollers do not fit among"),
        (["--profile", "none"], "The profile none cannot be read"),
        (["--days", "0"], "--days is 0: it must be above 0"),
        (["--devices", "1"], "give at least 2 devices"),
        (["--stop"], "give one with --target"),
        (["--target", "93"], "93 cannot be reached"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fleet", "--virtual", *options]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
