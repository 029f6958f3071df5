"""Devices whose rows are too few or whose columns are others': nothing of theirs spoils what the fleet is made of."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midge.aggregator.core.inputs import Inputs
from midge.aggregator.core.presets import fedasync
from midge.aggregator.service import Aggregator
from midge.broker.embedded.in_memory import Twin
from midge.commands.gateway import gateway
from midge.iot_client.board.conditions import enough_new
from midge.iot_client.config import DeviceConfig
from midge.iot_client.data import csv_source as csv_rows
from midge.iot_client.data.samples import Samples
from midge.iot_client.device import Device
from midge.iot_client.training.numpy_models import FROZEN, Linear
from midge.iot_client.training.sample_trainer import SampleTrainer
from midge.iot_client.training.update_encoder import TrainerError
from midge.running import user_facing_errors
from midge.wire import frames
from midge.wire.messages import DeviceState, Hello, Plan, Verdict
from tests.aggregator.rig import TOPICS, rig
from tests.federation.live import Log, aggregator, serving
from tests.iot_client.test_gateway import parse


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "EVERY", 0.05)


def rows(path: Path, number: int, seed: int = 3) -> None:
    """Append rows of speed, heat and power to a file, with a first line where it is new."""
    rng = np.random.default_rng(seed)
    new = not path.exists()
    with path.open("a") as file:
        if new:
            file.write("time,speed,heat,power\n")
        for at in range(number):
            speed, heat = rng.normal(50, 10), rng.normal(20, 5)
            file.write(f"{at},{speed},{heat},{3 * speed - heat + 7}\n")


def server(twin: Twin, folder: Path, log: Log, **arguments: Any) -> Aggregator:
    return aggregator(
        twin,
        folder / "store",
        log,
        initial=Linear(2, outputs=1, task="regression").initial(),
        roles=dict.fromkeys(FROZEN, "frozen"),
        moments={"input": 2, "target": 1},
        statistics_devices=2,
        statistics_deadline=0.5,
        strategy=fedasync(
            0.6,
            norm_limit=None,
            plan=Plan(local_steps=20, learning_rate=0.1, codec="float32"),
            form="delta",
            bounded=False,
        ),
        **arguments,
    )


def from_csv(twin: Twin, path: Path, name: str, log: Log, *words: str) -> Device:
    what = ["--csv", str(path), "--label", "power", "--train-after", "20", *words]
    where = ["--broker", "mqtt://localhost", "--federation", "f", "--name", name]
    app = gateway(parse(*what, *where, "--outbox", str(path.parent / f"{name}.box")))
    app.config = replace(app.config, connector=twin.connect, on_event=log, look_every=0.05)
    return app


@pytest.mark.virtual
async def test_statistics_wait_for_rows_as_training_does(tmp_path: Path) -> None:
    """Of one row each, the spread was chance, and no update fitted what was frozen of it."""
    twin, log = Twin(), Log()
    devices = []
    for name in "ab":
        rows(tmp_path / f"{name}.csv", 1)
        devices.append(from_csv(twin, tmp_path / f"{name}.csv", name, log, "--features", "speed,heat"))
    service = server(twin, tmp_path, log)
    async with serving(service, *devices):
        await log.until(lambda: len(log.of("hindered", why="statistics need 20 rows, and there are fewer")) == 2)
        await asyncio.sleep(1)
        assert not log.of("freeze")
        for name in "ab":
            rows(tmp_path / f"{name}.csv", 50, seed=ord(name))
        await log.until(lambda: log.of("receipt", verdict="accepted"))
        scale = service.model.parameters()["input_scale"]
    assert 5 < scale[0] < 15 and 2 < scale[1] < 8
    assert {each["verdict"] for each in log.of("receipt")} == {"accepted"}


async def test_a_gateway_whose_columns_are_swapped_ends_with_a_sentence_before_it_sends_anything(
    tmp_path: Path,
) -> None:
    twin, log = Twin(), Log()
    rows(tmp_path / "a.csv", 60)
    right = [from_csv(twin, tmp_path / "a.csv", name, log, "--features", "speed,heat") for name in "ab"]
    wrong = from_csv(twin, tmp_path / "a.csv", "c", log, "--features", "heat,speed")
    service = server(twin, tmp_path, log)
    async with serving(service, *right):
        await log.until(lambda: log.of("features") and log.of("release", version=2))
        with pytest.raises(TrainerError, match=r"in another order, heat, speed.*--features speed,heat") as caught:
            async with asyncio.timeout(20):
                await wrong.serve()
    assert isinstance(caught.value, user_facing_errors()), "told in one sentence, with exit code 2"
    assert not log.of("update", device="c") and not log.of("training", device="c")
    assert log.of("update", device="a", verdict="accepted")
    again = server(twin, tmp_path, log)
    again.open()
    assert again.core.features == ("speed", "heat"), "after a restart it is known"
    again.close()


async def test_a_program_whose_columns_are_swapped_waits_and_says_so(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    rows(tmp_path / "a.csv", 60)
    right = [from_csv(twin, tmp_path / "a.csv", name, log, "--features", "speed,heat") for name in "ab"]
    samples = Samples(None, ["heat", "speed"], "power")
    wrong = Device(
        DeviceConfig(
            connector=twin.connect,
            federation="f",
            name="c",
            train=SampleTrainer(samples),
            outbox=None,
            samples=samples,
            moments=samples.moments,
            conditions=[enough_new(samples, 20)],
            on_event=log,
        )
    )
    for number in range(60):
        wrong.observe([20.0 + number % 7, 50.0 + number % 9], number)
    async with serving(server(twin, tmp_path, log, features=["speed", "heat"]), *right, wrong):
        await log.until(lambda: log.of("release", version=2))
        await log.until(lambda: any("another order" in each["why"] for each in log.of("hindered", device="c")))
        assert log.of("unlike", device="c")
    assert not log.of("update", device="c") and not log.of("training", device="c")


async def test_a_file_with_a_column_more_is_told_in_numbers(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    rows(tmp_path / "a.csv", 60)
    wrong = from_csv(twin, tmp_path / "a.csv", "a", log, "--features", "time,speed,heat")
    async with serving(server(twin, tmp_path, log)):
        with pytest.raises(TrainerError, match="the model has 2 inputs, this device gives 3: time, speed, heat"):
            async with asyncio.timeout(20):
                await wrong.serve()


def test_an_update_of_a_device_whose_names_differ_is_refused_until_it_says_others(tmp_path: Path) -> None:
    def greeting(*names: str) -> tuple[str, bytes]:
        return TOPICS.status("a"), frames.encode(Hello(state=DeviceState.READY, outbox=1, features=names))

    with rig(tmp_path) as life:
        life.roster._inputs = Inputs(life.store, ("speed", "heat"), None)
        life.hear(greeting("heat", "speed"))
        settled = life.send("a", 1, [1, 0, 0, 0])
        assert settled.verdict is Verdict.WRONG_SCHEMA and "in another order, heat, speed" in settled.why
        assert [event for event, _ in life.told if event == "unlike"] == ["unlike"]
        life.hear(greeting("speed", "heat"))
        assert life.send("a", 2, [1, 0, 0, 0]).verdict is Verdict.ACCEPTED
        life.hear(greeting())
        assert life.send("a", 3, [1, 0, 0, 0]).verdict is Verdict.ACCEPTED


async def test_the_fleet_is_asked_again_after_renormalise(tmp_path: Path) -> None:
    """A whole life: statistics of a wrong unit's time, a new generation, and training that goes on from the model."""
    from midge.aggregator.store.renormalising import renormalise
    from midge.aggregator.store.store import Store

    twin, log = Twin(), Log()
    for name in "ab":
        rows(tmp_path / f"{name}.csv", 60)
    devices = [from_csv(twin, tmp_path / f"{name}.csv", name, log, "--features", "speed,heat") for name in "ab"]
    async with serving(server(twin, tmp_path, log), *devices):
        await log.until(lambda: log.of("release", version=2))
    with Store(tmp_path / "store") as store:
        generation, version = renormalise(store)
    for name in "ab":
        rows(tmp_path / f"{name}.csv", 200, seed=9)
    later = Log()
    devices = [from_csv(twin, tmp_path / f"{name}.csv", name, later, "--features", "speed,heat") for name in "ab"]
    service = server(twin, tmp_path, later)
    async with serving(service, *devices):
        await later.until(lambda: later.of("freeze", devices=2))
        await later.until(lambda: later.of("release", version=version + 2))
        assert service.core.generation == generation == 1
    assert later.of("receipt", verdict="accepted")
