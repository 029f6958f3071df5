"""Microcontrollers in a profile: what does not fit is said, and and its RAM, flash and battery follow from figures."""

import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from midge.sensor_fleet.profiles.board import YEAR, Board
from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.presence import absences
from midge.sensor_fleet.profiles.profile import Profile, Wakes, load

NAMES = [f"device-{number:03}" for number in range(400)]
NODE = """
[[class]]
name = "node"
share = 1
hardware = "micro"
"""


def written(tmp_path: Path, text: str) -> Profile:
    (path := tmp_path / "mine.toml").write_text(text)
    return load(path)


def test_a_class_of_microcontrollers_needs_a_name_and_a_share(tmp_path: Path) -> None:
    (node,) = written(tmp_path, NODE).classes
    assert node.board == Board() and node.memory == 160_000 and node.samples_per_second == 1000
    (node,) = written(tmp_path, NODE + 'board = { client = "micropython" }\nmemory = "100 kB"').classes
    assert node.memory == 100_000 and node.samples_per_second == 1
    (node,) = written(tmp_path, NODE + 'seconds = "2 s"').classes
    assert node.seconds == 2 and node.samples_per_second is None


def test_flash_of_an_update_an_hour_lasts_as_the_c_clients_readme_says() -> None:
    """By hand: a record of 208 + 4,065 bytes, padded by 15, takes two sectors; a slot's turn is every second hour."""
    board, updates = Board(), YEAR / 3600
    assert board.update_erases(4001 + 4 * 16) == 2  # int8:256 of 4,001 parameters
    assert board.update_erases(3888) == 1 and board.update_erases(3889) == 2
    years = board.years(2 * updates, updates)
    assert years == pytest.approx(100_000 / (8766 / 2)) == pytest.approx(22.8, abs=0.05)
    assert board.years(0.0, 0.0) is None


def test_a_file_system_spreads_the_wear_over_its_area() -> None:
    """By hand: 512 sectors of 100,000 erases, at 8 an hour."""
    board = Board(client="micropython")
    assert board.years(8 * YEAR / 3600, YEAR / 3600) == pytest.approx(512 * 100_000 / 8 / 8766)


def test_a_battery_lasts_as_its_currents_say() -> None:
    """By hand: a day asleep, but for four wakes of 3 s at 100 mA, 8 s connected and 2 s of training."""
    board = Board(battery="2600 mAh")
    day = board.joules(asleep=86_400 - 10, connected=8, training=2, wakes=4)
    assert day == pytest.approx(3.3 * (10e-6 * 86_390 + 0.031 * 8 + 0.068 * 2 + 4 * 3 * 0.1))
    assert board.battery is not None
    assert board.battery * board.volts / day == pytest.approx(2.6 * 3600 / 2.4479)


@pytest.mark.parametrize(("client", "fits"), [("c", 18_915), ("micropython", 12_768)])
def test_what_does_not_fit_is_said_with_class_number_and_formula(tmp_path: Path, client: str, fits: int) -> None:
    gateway = '[[class]]\nname = "gateway"\nshare = 0.5\nseconds = 1\nmemory = "1 GB"\njoules_per_step = 1\n'
    gateway += "joules_per_byte = 0\nlink = {}\n"
    mixed = written(tmp_path, gateway + NODE.replace("share = 1", "share = 0.5") + f'board = {{ client = "{client}" }}')
    assert not Population(mixed, NAMES, 1, samples=1, values=fits, frozen=512).left_out
    found = Population(mixed, NAMES, 1, samples=1, values=fits + 1, frozen=512)
    many = int((found.class_of == 1).sum())
    assert 150 < many < 250 and found.too_small == ("node",)
    (sentence,) = found.left_out
    assert sentence.startswith(
        f"node takes no part, {many} of 400 devices: the model of {fits + 1:,} parameters needs "
    )
    assert "8 bytes a parameter" in sentence and sentence.endswith("and there are 160,000.")
    node = NAMES[int(np.flatnonzero(found.class_of == 1)[0])]
    assert list(found.pauses(node)) == [(0.0, math.inf)]


def test_a_board_wakes_at_regular_times_from_a_phase_of_its_own() -> None:
    kind = Wakes(kind="wakes", every=21_600.0, stays=90.0)
    phases = set()
    for seed in range(20):
        gone = list(islice(absences(kind, seed, "d"), 30))
        assert all(after[0] - before[1] == pytest.approx(90) for before, after in pairwise(gone))
        assert all(after[1] - before[1] == pytest.approx(21_600) for before, after in pairwise(gone))
        phases.add(round(gone[0][1]))
        assert 0 <= gone[0][1] <= 21_600
    assert len(phases) > 15


def test_microcontrollers_may_join_a_fleet() -> None:
    mixed = load("factory").with_micro(0.25)
    assert [one.share for one in mixed.classes] == pytest.approx([0.15, 0.375, 0.225, 0.25])
    assert mixed.classes[-1].board is not None
    assert load("factory").with_micro(0.0) == load("factory")
    (only,) = load("factory").with_micro(1.0).classes
    assert only.name == "microcontroller"
