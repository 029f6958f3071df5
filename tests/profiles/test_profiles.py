"""Profiles: what ships is sound, mistakes are told by file and key, and devices come and go as it is written."""

import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from midge.sensor_fleet.profiles.population import Population
from midge.sensor_fleet.profiles.presence import absences
from midge.sensor_fleet.profiles.profile import SHIPPED, Availability, Profile, load
from midge.sensor_fleet.profiles.units import Rate, Seconds
from midge.wire.clocks import DAY

NAMES = [f"device-{number:03}" for number in range(400)]
PLAIN = """
[[class]]
name = "a"
share = 1
samples_per_second = 100
memory = "1 MB"
joules_per_step = 0.5
joules_per_byte = 1e-3
link = { up = "8 kbit/s", down = 2000, latency = "50 ms" }
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def population(profile: Profile, **others: int) -> Population:
    return Population(profile, NAMES, 1, samples=others.get("samples", 320), values=others.get("values", 5000))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_hold_what_they_say(name: str) -> None:
    found = population(load(name))
    shares = np.bincount(found.class_of, minlength=len(found.classes)) / len(NAMES)
    np.testing.assert_allclose(shares, [one.share for one in found.profile.classes], atol=0.1)
    assert not found.too_small
    for device in NAMES[:50]:
        assert 0 < found.seconds(device) < math.inf
        link = found.link(device)
        assert link.bandwidth > 0 and link.latency > 0 and link.down and link.down > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("share = 1", "share = 0.5"), r"mine\.toml: the shares of the classes add up to 0\.5: make it 1"),
        (('memory = "1 MB"', ""), r"mine\.toml: class\.0\.memory is missing: add it"),
        (
            ('memory = "1 MB"', 'memory = "1 MiB"'),
            r"class\.0\.memory: '1 MiB' is not a quantity: use a unit of B, kB",
        ),
        (("samples_per_second = 100", "samples_per_second = -1"), r"samples_per_second: .* greater than 0, not -1"),
        (("samples_per_second = 100", ""), "give one of samples_per_second and seconds"),
        (("samples_per_second = 100", 'samples_per_second = 100\nseconds = "1 s"'), "give one of samples_per_second"),
        (("joules_per_step = 0.5", "joule_per_step = 0.5"), r"joules_per_step is missing.*joule_per_step is unknown"),
        (("[[class]]", "[[klass]]"), r"has no class of devices: add a \[\[class\]\]"),
        (("share = 1", "share = "), "is not valid TOML"),
        (
            ('name = "a"', 'name = "a"\nboard = { battery = "1 Ah" }'),
            'board is for microcontrollers: add hardware = "micro"',
        ),
        (
            ('name = "a"', 'name = "a"\nhardware = "micro"\nboard = { battery = "1 kWh" }'),
            r"board\.battery: '1 kWh' is not a quantity: use a unit of mAh, Ah",
        ),
        (
            ('name = "a"', 'name = "a"\navailability = { kind = "wakes", every = 60, stays = 60 }'),
            "stays must be less than every",
        ),
        (
            ('name = "a"', 'name = "a"\navailability = { kind = "sometimes" }'),
            "availability.kind must be one of always",
        ),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = written(tmp_path, PLAIN.replace(*change))
    with pytest.raises(ValueError, match=told):
        load(path)


def test_file_that_is_not_there_is_told_with_those_that_ship() -> None:
    with pytest.raises(ValueError, match="city-gateways, factory, farm, phones, microcontrollers"):
        load("fam")


def test_units() -> None:
    assert TypeAdapter(Seconds).validate_python("90 min") == 5400
    assert TypeAdapter(Rate).validate_python("8 kbit/s") == 1000


def test_loss_makes_links_slow_and_bytes_dear(tmp_path: Path) -> None:
    clean = population(load(written(tmp_path, PLAIN)))
    lossy = population(load(written(tmp_path, PLAIN.replace("latency =", "loss = 0.2, latency ="))))
    assert lossy.link("x" if "x" in NAMES else NAMES[0]).bandwidth == pytest.approx(0.8 * 1000)
    steps, moved = np.zeros(len(NAMES), np.int64), np.ones(len(NAMES))
    idle = np.zeros(len(NAMES))
    assert lossy.joules(steps, moved, idle)[0] == pytest.approx(clean.joules(steps, moved, idle)[0] / 0.8)


def test_class_in_which_the_model_does_not_fit_never_trains() -> None:
    found = population(load("city-gateways"), values=1_000_000)
    assert found.too_small == ("meter",)
    meter = NAMES[int(np.flatnonzero(found.class_of == found.classes.index("meter"))[0])]
    assert list(found.pauses(meter)) == [(0.0, math.inf)]
    with pytest.raises(ValueError, match="no class of phones has the"):
        population(load("phones"), values=10**9)


KINDS = [
    {"kind": "diurnal", "hours": [7, 18], "zones": 6, "chance": 0.7},
    {"kind": "diurnal", "hours": [22, 6], "jitter": "2 h"},
    {"kind": "mains"},
    {"kind": "on-off", "on": "2 h", "off": "30 min"},
    {"kind": "wakes", "every": "6 h", "stays": "90 s"},
]


@given(st.sampled_from(KINDS), st.integers(0, 1000))
def test_absences_ascend_and_follow_from_the_seed(written_as: dict[str, object], seed: int) -> None:
    kind: Availability = TypeAdapter(Availability).validate_python(written_as)
    found = list(islice(absences(kind, seed, "d"), 40))
    assert found == list(islice(absences(kind, seed, "d"), 40))
    assert all(start < end for start, end in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_days_and_chance_are_as_written() -> None:
    kind: Availability = TypeAdapter(Availability).validate_python({"kind": "diurnal", "hours": [8, 20], "chance": 0.5})
    gone = 0.0
    for seed in range(30):
        for start, end in absences(kind, seed, "d"):
            gone += min(end, 20 * DAY) - min(start, 20 * DAY)
            if end >= 20 * DAY:
                break
    assert gone / (30 * 20 * DAY) == pytest.approx(0.75, abs=0.03)


def test_traces_are_followed_and_repeat(tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text("device,start,end\nx,10,20\nx,30,40\n")
    line = 'availability = { kind = "trace", file = "seen.csv", repeat = 100 }\n'
    profile = load(written(tmp_path, PLAIN + line))
    found = population(profile).outages(NAMES[0])
    assert list(islice(found, 4)) == [(0, 10), (20, 30), (40, 110), (120, 130)]
    once = load(written(tmp_path, PLAIN + line.replace(", repeat = 100", "")))
    assert list(population(once).outages(NAMES[0])) == [(0, 10), (20, 30), (40, math.inf)]


def test_lines_of_a_trace_may_overlap(tmp_path: Path) -> None:
    (tmp_path / "seen.csv").write_text("start,end\n0,50\n10,20\n60,70\n")
    profile = load(written(tmp_path, PLAIN + 'availability = { kind = "trace", file = "seen.csv" }\n'))
    assert list(population(profile).outages(NAMES[0])) == [(50, 60), (70, math.inf)]


@pytest.mark.parametrize(
    ("text", "told"),
    [("start,stop\n1,2\n", "must begin with a header"), ("start,end\n2,1\n", "line 2 of .*not 2 to 1")],
)
def test_bad_traces_are_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "seen.csv").write_text(text)
    profile = load(written(tmp_path, PLAIN + 'availability = { kind = "trace", file = "seen.csv" }\n'))
    with pytest.raises(ValueError, match=told):
        population(profile)
