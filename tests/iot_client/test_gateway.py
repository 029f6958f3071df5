"""`midge device` without a program: rows that grow become a part in a federation; what was said wrongly is told."""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.__main__ import main
from midge.aggregator.core.presets import fedasync
from midge.broker.embedded.in_memory import Twin
from midge.commands import device as command
from midge.commands import doctor
from midge.commands.device import _app
from midge.commands.gateway import gateway, refuse_options
from midge.commands.guest import make_guest
from midge.commands.parts import Problem
from midge.iot_client.board.duty_cycle import Duty
from midge.iot_client.config import DeviceConfig
from midge.iot_client.data import csv_source as csv_rows
from midge.iot_client.device import Device
from midge.iot_client.state.outbox import Outbox
from midge.iot_client.training.numpy_models import FROZEN, Linear
from midge.iot_client.training.subprocess_trainer import Isolated
from midge.wire.messages import Plan
from midge.wire.plurals import counted
from tests.federation.live import Log, aggregator, approach, device, serving
from tests.iot_client.test_session import made

pytestmark = pytest.mark.virtual

ROWS = ["time,speed,heat,power"]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    return parser.parse_args(["device", *words])


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "readings.csv"
    with path.open("w") as file:
        print(*ROWS, sep="\n", file=file)
        for number in range(200):
            speed, heat = rng.normal(50, 10), rng.normal(20, 5)
            print(number, speed, heat, 3 * speed - heat + 7, sep=",", file=file)
    return path


def with_csv(readings: Path, name: str, *words: str) -> argparse.Namespace:
    what = ["--csv", str(readings), "--label", "power", "--features", "speed,heat", "--model", "linear"]
    where = ["--broker", "mqtt://localhost", "--federation", "f", "--name", name]
    return parse(*what, *where, "--outbox", str(readings.parent / f"{name}.box"), *words)


def test_rows_expire_after_days(readings: Path) -> None:
    now = [1.8e9]
    samples = gateway(with_csv(readings, "a", "--rows-expire", "2")).config.samples
    assert samples is not None
    samples._wall = lambda: now[0]
    samples.observe([1.0, 2.0], 3.0)
    now[0] += 2 * 86_400.0 - 1.0
    assert samples.expire() == 0
    now[0] += 2.0
    assert samples.expire() == 1
    samples.close()


async def test_two_gateways_learn_from_files_that_grow_and_predict(
    tmp_path: Path, readings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_rows, "EVERY", 0.05)
    twin, log = Twin(), Log()
    server = aggregator(
        twin,
        tmp_path / "store",
        log,
        initial=Linear(2, outputs=1, task="regression").initial(),
        roles=dict.fromkeys(FROZEN, "frozen"),
        moments={"input": 2, "target": 1},
        strategy=fedasync(
            0.6,
            norm_limit=None,
            plan=Plan(local_steps=50, learning_rate=0.1, codec="float32"),
            form="delta",
            bounded=False,
        ),
    )
    apps: list[Device] = []
    for name in "ab":
        app = gateway(with_csv(readings, name, "--train-after", "20"))
        app.config = replace(app.config, connector=twin.connect, on_event=log, look_every=0.05)
        apps.append(app)
    async with serving(server, *apps):
        await log.until(lambda: log.of("trained", device="a") and log.of("trained", device="b"))
        for number in range(100):
            with readings.open("a") as file:
                file.writelines(f"{number},{50 + k},20,{3 * (50 + k) - 20 + 7}\n" for k in range(20))
            before = len(log.of("release"))
            await log.until(lambda seen=before: len(log.of("release")) > seen)  # type: ignore[misc]
            if abs(apps[0].predict([60.0, 25.0]) - 162) < 8:
                break
    assert abs(apps[0].predict([60.0, 25.0]) - 162) < 8
    assert {each["verdict"] for each in log.of("receipt")} == {"accepted"}
    again = gateway(with_csv(readings, "a"))
    assert abs(again.predict([60.0, 25.0]) - 162) < 30, "after a restart it predicts before it has connected"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "MODULE:ATTRIBUTE, such as pump:app, or --csv"),
        (["a:b", "--csv", "x"], "one thing to run"),
        (["--csv", "x"], "Say where"),
        (["--csv", "x", "--broker", "mqtt://localhost"], "--federation NAME"),
        (["--csv", "{}", "--broker", "mqtt://localhost", "--federation", "f"], "--label"),
        (["--csv", "{}", "--broker", "mqtt://localhost", "--federation", "f", "--label", "x"], "no column 'x'.*heat"),
        (["--csv", "no", "--broker", "mqtt://localhost", "--federation", "f", "--label", "x"], "cannot be read"),
        (["--sensor-topic", "a", "--broker", "mqtt://localhost", "--federation", "f", "--label", "x"], "--features"),
        (["--csv", "{}", "--broker", "mqtt://h", "--federation", "f", "--label", "power",
          "--model", "softmax"], "--classes"),
    ],
)  # fmt: skip
def test_what_is_missing_is_asked_for(words: list[str], match: str, readings: Path) -> None:
    with pytest.raises(Problem, match=match):
        _app(parse(*[word.replace("{}", str(readings)) for word in words]))


def test_the_columns_of_a_csv_but_its_clock_are_its_features_unless_some_are_named(
    readings: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(readings.parent)
    where = ["--broker", "mqtt://localhost", "--federation", "f"]
    app = gateway(parse("--csv", str(readings), "--label", "power", *where))
    assert app.config.samples is not None
    assert app.config.samples.features == ("speed", "heat")
    assert "Left out: 'time' (a clock or a counter)" in caplog.text
    assert (readings.parent / f"{app.name}.outbox.samples").exists()


def options(*words: str) -> Any:
    app = Device(DeviceConfig(connector=Twin().connect, federation="f", name="a", train=approach, outbox=None))
    make_guest(app, parse("tests.examples:app", *words))
    return app


def test_options_become_conditions_costs_and_a_duty() -> None:
    app = options(
        "--on-mains", "--battery-above", "0.3", "--cooler-than", "70", "--cpu-idle", "0.2", "--hours", "22:00-06:00",
        "--hours", "12:00-13:00", "--unmetered", "--bytes-per-month", "50M", "--watts", "4", "--wake-every", "6h",
        "--joules-per-month", "9e4",
    )  # fmt: skip
    names = [each.__name__ for each in app.config.conditions]
    assert names == ["on_mains", "battery_above", "cooler_than", "cpu_idle", "hours"]
    assert [each.__name__ for each in app.config.link_conditions] == ["unmetered"]
    costs, duty = app.config.costs, app.config.duty
    assert (costs.bytes_per_month, costs.watts, costs.joules_per_month) == (50_000_000, 4, 90_000)
    assert (duty.every, duty.awake) == (21_600, 300)
    isolated = options("--isolate", "--memory", "200M")
    assert isinstance(isolated.config.train, Isolated)
    assert options().config.duty is None
    assert options("--once").config.duty == Duty(math.inf, awake=300, once=True)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--battery-above", "30"], "share of the charge"),
        (["--hours", "late"], "22:00-06:00"),
        (["--joules-per-month", "5"], "--watts"),
        (["--awake", "5m"], "--wake-every or --once"),
        (["--wake-every", "60", "--awake", "2m"], "cannot be awake"),
        (["--memory", "1G"], "--isolate"),
    ],
)
def test_options_that_cannot_be_say_why(words: list[str], match: str) -> None:
    with pytest.raises(Problem, match=match):
        options(*words)


@pytest.mark.parametrize("text", ["", "M", "-5", "5X", "nan", "infM"])
def test_amounts_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("a:b", f"--bytes-per-month={text}")
    assert "no amount such as 50M" in capsys.readouterr().err


# -------------------------------------------------------------------- status and doctor


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def used(tmp_path: Path) -> Path:
    """An outbox with a past: updates that wait, a month's costs."""
    twin, log = Twin(), Log()
    server = aggregator(twin, tmp_path / "store", log)
    path = tmp_path / "a.outbox"
    a = device(twin, "a", log, path)
    async with serving(server, a, device(twin, "b", log)):
        await log.until(lambda: log.of("release", version=3))
    with Outbox(path) as outbox:
        outbox.store(made(100, outbox=outbox.identity, seq=outbox.next_seq), bytes(100))
    return path


async def test_status_shows_what_an_outbox_holds_and_has_cost_also_while_it_is_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = await used(tmp_path)
    with Outbox(path) as outbox:
        held = outbox.held()
        assert main(["device", "status", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert [each["seq"] for each in found["held"]] == [update.seq for update in held] and held
    assert found["identity"] == f"{outbox.identity:016x}" and found["next"] == outbox.next_seq
    assert found["month"]["bytes"] > 1000 and found["month"]["written"] > 4096
    before = listing(tmp_path)
    assert main(["device", "status", str(path)]) == 0
    assert listing(tmp_path) == before
    words = capsys.readouterr().out
    assert "no key is pinned" in words and f"holds     {counted(len(held), 'update')}" in words


def test_status_of_nothing_and_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("not a database, and long enough to be one " * 100)
    assert main(["device", "status", str(tmp_path / "none")]) == 2
    assert main(["device", "status", str(tmp_path / "x")]) == 2
    assert main(["device", "status"]) == 2
    said = capsys.readouterr().err
    assert "There is no outbox" in said and "is it an outbox?" in said and "Say whose status" in said


def test_doctor_finds_a_good_board_good_and_a_broker_that_is_away_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "doctor", "--outbox", str(tmp_path / "a.outbox")]) == 0
    said = capsys.readouterr().out
    assert "Python" in said and "This board can take part." in said
    assert main(["device", "doctor", "--broker", "mqtt://127.0.0.1:1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["findings"] if each["level"] == "problem"] == ["broker"]
    assert main(["device", "doctor", "--outbox", str(tmp_path / "nowhere" / "a.outbox")]) == 1
    assert "there is no directory" in capsys.readouterr().out


def test_doctor_sees_a_clock_that_was_never_set_and_one_behind_what_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.outbox"
    path.write_bytes(b"")
    issued = time.time() + 86_400
    monkeypatch.setattr(doctor, "look", lambda _path: {"verified": {"train": {"issued": issued}}})
    (found,) = doctor.clock(path)
    assert found.level == "warning" and "behind the last verified announcement" in found.seen
    (found,) = doctor.clock(path, now=86_400.0 * 200)
    assert found.level == "problem" and "1970" in found.seen and "The last verified announcement" in found.advice
    (found,) = doctor.clock(path, now=issued + 10)
    assert found.level in ("ok", "note")


def test_options_that_a_program_would_not_hear_of_are_refused() -> None:
    """Seen to fail: `--federation other` was not read, and the device joined the program's own federation."""
    with pytest.raises(
        Problem, match=r"--label, --federation are for --csv and --sensor-topic, and have no effect on pump:app"
    ):
        refuse_options(parse("pump:app", "--federation", "other", "--label", "x"), "pump:app")
    refuse_options(parse("pump:app", "--outbox", "a.outbox", "--root", "x"), "pump:app")
