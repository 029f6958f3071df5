"""A demo's world is a profile: determined by its seed, independent of the order of questions, within its ranges."""

import itertools
import math
import statistics
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midge.sensor_fleet.profiles.population import Departure, Population
from midge.sensor_fleet.profiles.profile import load
from midge.sensor_fleet.world import World

NAMES = [f"sensor-{number:04d}" for number in range(2000)]


def people(seed: int = 0, **numbers: float) -> Population:
    return World(seed, **numbers).population(NAMES)


def answers(world: Population, device: str) -> tuple[object, ...]:
    return (
        world.seconds(device),
        world.joins(device),
        world.leaves(device),
        world.link(device),
        tuple(itertools.islice(world.outages(device), 5)),
        tuple(world.twice_sent(device, number) for number in range(50)),
    )


@given(seed=st.integers(0, 2**32), order=st.permutations(range(8)))
def test_the_same_seed_gives_the_same_world_whatever_is_asked_in_which_order(seed: int, order: list[int]) -> None:
    first = {device: answers(people(seed), device) for device in NAMES[:8]}
    world = people(seed)
    second = {NAMES[number]: answers(world, NAMES[number]) for number in order}
    assert first == second


def test_another_seed_gives_another_world() -> None:
    one, other = people(1), people(2)
    assert [answers(one, device) for device in NAMES[:4]] != [answers(other, device) for device in NAMES[:4]]


def test_purposes_are_independent_of_each_other() -> None:
    world = people(7)
    pairs = [(math.log(world.seconds(name)), math.log(world.link(name).bandwidth)) for name in NAMES]
    assert abs(statistics.correlation(*zip(*pairs, strict=True))) < 0.06


def test_training_seconds_are_log_normal() -> None:
    world = people(3, median=0.5, spread=1.15)
    logs = [math.log(world.seconds(name)) for name in NAMES]
    assert statistics.fmean(logs) == pytest.approx(math.log(0.5), abs=0.08)
    assert statistics.stdev(logs) == pytest.approx(1.15, rel=0.05)


def test_devices_are_alike_without_spread() -> None:
    assert {people(spread=0).seconds(name) for name in NAMES[:20]} == {0.5}


def test_outages_alternate_with_exponential_lengths() -> None:
    world = people(5, online=10, offline=2)
    up, down = [], []
    for name in NAMES[:100]:
        whole = 0.0
        for broken, again in itertools.islice(world.outages(name), 20):
            assert whole < broken < again
            up.append(broken - whole)
            down.append(again - broken)
            whole = again
    assert statistics.fmean(up) == pytest.approx(10, rel=0.08)
    assert statistics.stdev(up) == pytest.approx(10, rel=0.1)
    assert statistics.fmean(down) == pytest.approx(2, rel=0.08)


def test_shares_are_what_they_say() -> None:
    world = people(11, late=0.3, leave=0.2, goodbye=0.25, turnover=20, twice=0.05)
    joins = [world.joins(name) for name in NAMES]
    late = [at for at in joins if at]
    assert len(late) / len(NAMES) == pytest.approx(0.3, abs=0.03)
    assert all(0 < at < 20 for at in late)
    departures = [gone for name in NAMES if (gone := world.leaves(name)) is not None]
    assert len(departures) / len(NAMES) == pytest.approx(0.2, abs=0.03)
    assert sum(gone.goodbye for gone in departures) / len(departures) == pytest.approx(0.25, abs=0.07)
    doubled = sum(world.twice_sent(NAMES[0], number) for number in range(10_000))
    assert doubled == pytest.approx(500, rel=0.15)


def test_nobody_leaves_before_joining() -> None:
    world = people(2, late=1, leave=1)
    for name in NAMES[:200]:
        gone = world.leaves(name)
        assert isinstance(gone, Departure)
        assert gone.at > world.joins(name) + 1


def test_calm_keeps_the_speeds_and_nothing_else() -> None:
    wild, calm = people(4), World(4).calm().population(NAMES)
    for name in NAMES[:100]:
        assert calm.seconds(name) == wild.seconds(name)
        assert calm.joins(name) == 0
        assert calm.leaves(name) is None
        assert list(calm.outages(name)) == []
        assert not calm.twice_sent(name, 1)
        assert (calm.link(name).bandwidth, calm.link(name).latency) == (math.inf, 0)


def test_defaults_are_those_of_the_shipped_profile() -> None:
    assert World().profile() == load("demo")


@pytest.mark.parametrize("name", [field.name for field in fields(World) if field.name != "seed"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "2", True])
def test_what_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} of the world"):
        World(**{name: value})  # type: ignore[arg-type]


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text("online = 60\ntwice = 0.5\nseed = 3\n")
    assert World.read(file, World(1, median=2)) == World(3, median=2, online=60, twice=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onlien = 3", "'onlien'; names are seed, median"),
        ("online = 'long'", "online of the world must be a number"),
        ("seed = 1.5", "seed of the world must be a whole number"),
        ("late = 1.5", "late of the world is a share"),
        ("[late]\nshare = 1", "late of the world must be a number"),
        ("online 3", "is not valid TOML"),
    ],
)
def test_a_wrong_file_gets_one_clear_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "world.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        World.read(file, World())
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read \(No such file or directory\)"):
        World.read(tmp_path / "nowhere.toml", World())
