"""Simulated microcontrollers sleep, follow the plan for such devices, and cost what currents and sectors come to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import midge
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan
from midge.sensor_fleet.profiles.board import YEAR
from midge.sensor_fleet.profiles.profile import Profile, load
from midge.sensor_fleet.simulation.clock import Clock
from midge.sensor_fleet.simulation.encoding import DecodedUpdate
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.server import Server
from midge.sensor_fleet.simulation.simulate import simulate
from midge.wire.messages import Update

SIZE = 4001
DAY = 86_400.0
GATEWAY = """
[training]
interval = "50 min"
release_interval = "1 min"

[[class]]
name = "gateway"
share = 0.5
seconds = 2
memory = "1 MB"
joules_per_step = 0
joules_per_byte = 0
link = { up = "100 kB/s", down = "100 kB/s", latency = "30 ms" }
"""
NODE = """
[[class]]
name = "node"
share = 0.5
hardware = "micro"
seconds = 4
link = { up = "100 kB/s", down = "100 kB/s", latency = "30 ms" }
"""
SLEEPS = 'availability = { kind = "wakes", every = "1 h", stays = "90 s" }\n'


def profile(tmp_path: Path, text: str) -> Profile:
    (path := tmp_path / "mine.toml").write_text(text)
    return load(path)


def train(parameters: Parameters, _: TrainingPlan) -> Fit:
    """A step towards values that differ, so that codecs have something to say."""
    return Fit({"w": parameters["w"] + 0.1 * (np.linspace(-1, 1, SIZE, dtype=np.float32) - parameters["w"])}, 10, 1)


class Watched:
    """Notes what comes to the aggregator."""

    def __init__(self) -> None:
        self.codecs: dict[str, set[str]] = {}
        self.server: Server | None = None

    def begin(self, server: Server, _clock: Clock) -> None:
        self.server = server

    def sent(self, device: str, update: Update, decoded: DecodedUpdate) -> DecodedUpdate:
        self.codecs.setdefault(device, set()).add(update.codec)
        return decoded


def run(mine: Profile, **others: Any) -> Simulated:
    initial = {"w": np.zeros(SIZE, np.float32)}
    return simulate(train, **{"devices": 12, "profile": mine, "seconds": DAY, "initial": initial, **others})


def of(found: Simulated, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mine: np.ndarray[Any, np.dtype[np.bool_]] = found.class_of == found.classes.index(name)
    return mine


def test_boards_follow_the_plan_for_such_devices_and_all_get_small_parts(tmp_path: Path) -> None:
    """Seen to fail: boards sent uq with error feedback, which they do not keep, and parts had 64 KiB."""
    watched = Watched()
    found = run(profile(tmp_path, GATEWAY + NODE), seconds=DAY / 6, tamper=watched)
    for device, board in zip(found.devices, of(found, "node"), strict=True):
        assert watched.codecs[device] == {"int8:256" if board else "uq:4|rice"}
    assert watched.server is not None
    frames = watched.server.publisher.published[-1].announcement.frames
    assert {frame.parts for frame in frames} == {-(-frame.size // 1024) for frame in frames} and len(frames) > 2


def test_a_board_wakes_trains_once_and_sleeps_until_it_is_to_wake_again(tmp_path: Path) -> None:
    """Seen to fail: it stayed for all of the 90 s, because what was announced came before the connection."""
    found = run(profile(tmp_path, GATEWAY + NODE + SLEEPS))
    mine = of(found, "node")
    board = found.boards["node"]
    assert np.all(found.per_device[mine] >= 22) and np.all(found.trainings_of[mine] <= 25)
    assert 24 * 4 < board.awake_per_day < 24 * 8  # a training takes 4 s
    assert "gateway" not in found.boards and found.by_class()["gateway"].board is None


def test_a_training_is_not_cut_by_the_sleep_that_is_due(tmp_path: Path) -> None:
    text = NODE.replace("share = 0.5", "share = 1").replace("seconds = 4", 'seconds = "2 min"')
    found = run(profile(tmp_path, GATEWAY.split("[[class]]", maxsplit=1)[0] + text + SLEEPS.replace("90 s", "10 s")))
    assert np.all(found.per_device >= 20)
    assert 24 * 120 < found.boards["node"].awake_per_day < 24 * 125


def test_a_training_that_is_longer_than_the_sleep_takes_that_of_others(tmp_path: Path) -> None:
    text = NODE.replace("share = 0.5", "share = 1").replace("seconds = 4", 'seconds = "90 min"')
    found = run(profile(tmp_path, GATEWAY.split("[[class]]", maxsplit=1)[0] + text + SLEEPS))
    assert np.all(found.per_device >= 10)


def test_energy_and_flash_are_those_of_what_was_done(tmp_path: Path) -> None:
    """By hand, of boards that are always there: 31 mA, but 68 mA for 4 s a training, and one start."""
    node = NODE.replace("hardware", 'board = { battery = "1000 mAh" }\nhardware')
    found = run(profile(tmp_path, GATEWAY + node + "joules_per_byte = 1e-5\n"))
    mine, board = of(found, "node"), found.boards["node"]
    many, trainings = int(mine.sum()), float(found.trainings_of[mine].mean())
    moved = float((found.bytes_up + found.bytes_down)[mine].mean())
    trained = 4 * trainings
    active = 3.3 * 0.068 * trained + 1e-5 * moved
    assert 20 < trainings < 30
    assert found.joules[mine].mean() == pytest.approx(active, rel=0.01)
    assert board.joules_per_training == pytest.approx(active / trainings, rel=0.01)
    day = active + 3.3 * (0.031 * (DAY - trained) + 0.1 * 3)
    assert board.joules_per_day == pytest.approx(day, rel=1e-3)
    assert board.battery_days == pytest.approx(3600 * 3.3 / day, rel=1e-3)
    # int8:256 of 4,001 values is 4,065 bytes: two sectors, in slots that take turns.
    updates = float(found.per_device[mine].sum()) / many * YEAR / DAY
    assert board.flash_erases_per_year == pytest.approx(2 * updates, rel=0.05)
    assert board.flash_years == pytest.approx(100_000 / (board.flash_erases_per_year / 4))
    assert (board.ram_needed, board.ram) == (8 * SIZE + 6120 + 2048, 160_000)


def test_a_board_in_c_fetches_the_whole_model_after_each_sleep_and_one_in_micropython_does_not(tmp_path: Path) -> None:
    down = []
    for client in ("c", "micropython"):
        node = NODE.replace("hardware", f'board = {{ client = "{client}" }}\nhardware')
        found = run(profile(tmp_path, GATEWAY + node + SLEEPS))
        down.append(found.bytes_down[of(found, "node")].mean())
        assert found.per_device[of(found, "node")].min() >= 22
    assert down[0] > 1.3 * down[1]
    assert found.boards["node"].flash_erases_per_year > 6 * 22 * 365  # the model is in its flash


def test_who_is_left_out_is_said_and_takes_no_part(tmp_path: Path) -> None:
    """Seen to fail: a class that was too small had no updates, and nothing said why."""
    found = run(profile(tmp_path, GATEWAY + NODE + 'memory = "40 kB"\n'), seconds=DAY / 6)
    mine = of(found, "node")
    assert found.per_device[mine].sum() == 0 < found.per_device[~mine].min()
    (sentence,) = found.left_out
    assert sentence.startswith(
        f"node takes no part, {mine.sum()} of 12 devices: the model of 4,001 parameters needs 40,176 "
    )
    assert "40,176 bytes" in found._repr_html_()
    assert found.by_class()["node"].packed()["board"]["joules_per_training"] is None


def test_scaled_time_tells_the_same_days(tmp_path: Path) -> None:
    mine = profile(tmp_path, GATEWAY + NODE)
    usual, fast = run(mine).boards["node"], run(mine, speed_up=10.0).boards["node"]
    assert fast.joules_per_day == pytest.approx(usual.joules_per_day, rel=0.01)
    assert fast.flash_erases_per_year == pytest.approx(usual.flash_erases_per_year, rel=0.15)


def test_a_fleet_of_boards_alone_learns() -> None:
    found = simulate(
        train,
        devices=8,
        profile=load("factory").with_micro(1.0),
        seconds=DAY,
        initial={"w": np.zeros(SIZE, np.float32)},
        strategy=midge.fedbuff(2, plan=midge.Plan().micro()),
    )
    assert len(found.senders) > 40
    assert float(np.abs(found.parameters["w"] - np.linspace(-1, 1, SIZE)).max()) < 0.5
