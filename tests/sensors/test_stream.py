"""Rows follow from seed, device and number; they come with time, in a window, with the flaws that were asked for."""

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.iot_client.board.conditions import enough_new
from midge.iot_client.data.samples import Samples
from midge.sensor_fleet.sensors import Drift, Flaws, Stream, counter_rng, energy, vibration
from midge.sensor_fleet.sensors.machines import GROWTH, VISIBLE, Machines
from tests.waiting import eventually

pytestmark = pytest.mark.virtual

DAY = 86400.0
HOUR = 3600.0
KINDS = (vibration, energy)
POWER = energy(6, seed=3, window=60, fresh=5)


@pytest.mark.parametrize("kind", KINDS)
def test_same_rows_in_any_order_and_process(kind: Callable[..., Stream]) -> None:
    one, other = kind(5, seed=7, window=20), kind(5, seed=7, window=20)
    moments = [(device, until) for device in (0, 3) for until in (0.0, 5 * HOUR, 2 * DAY)]
    first = {moment: one.rows(*moment) for moment in moments}
    for moment in reversed(moments):
        for ours, theirs in zip(first[moment], other.rows(*moment), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.rows(3, 2 * DAY)[0], first[3, 2 * DAY][0])
    assert not np.array_equal(kind(5, seed=8, window=20).rows(0, 0.0)[0], first[0, 0.0][0])
    assert not np.array_equal(first[0, 0.0][0], first[3, 0.0][0])


def test_same_rows_in_another_process() -> None:
    """Nothing may hang on the interpreter's hash seed."""
    program = (
        "from midge.sensor_fleet.sensors import vibration\n"
        "import hashlib\n"
        "x, y = vibration(3, seed=1, window=16).rows(2, 90000.0)\n"
        "print(hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@given(st.integers(0, 5), st.floats(0, 6 * DAY), st.floats(0, 2 * DAY))
@settings(max_examples=40, deadline=None)
def test_later_windows_go_on_where_earlier_ones_end(device: int, until: float, later: float) -> None:
    """What was held stays as it was, moves up, and drops out at the front only."""
    before, after = POWER.rows(device, until), POWER.rows(device, until + later)
    new = POWER.flow.new(device, POWER.flow.slots(until), POWER.flow.slots(until + later))
    assert len(before[1]) == len(after[1]) == POWER.flow.window
    common = POWER.flow.window - new
    for old, young in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[new:], young[:common])


def test_rows_come_on_time_and_only_then() -> None:
    stream = energy(2, seed=0, window=500, history=0.0, flaws=Flaws.none())
    counts = [len(stream.rows(0, until)[1]) for until in (0.0, 3599.0, 3600.0, 10 * HOUR)]
    assert counts == [1, 1, 2, 11]


def test_window_is_bounded_and_holds_across_an_outage() -> None:
    silent = Flaws(labels=0, lost=0.5, outages=0.9, outage=DAY)
    stream = energy(3, seed=1, window=40, history=60 * DAY, flaws=silent)
    for until in (0.0, 3 * DAY, 40 * DAY):
        assert len(stream.rows(1, until)[1]) == 40


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_labels_are_wrong_as_often_as_said(share: float) -> None:
    flaws, slots, truth = Flaws(labels=share), np.arange(20_000), np.tile(np.arange(4), 5000)
    told = flaws.mislabelled((0, 1), truth, slots, 4)
    assert np.mean(told != truth) == pytest.approx(share, abs=0.01)
    wrong = (told - truth)[told != truth] % 4
    if share:
        assert np.bincount(wrong, minlength=4)[1:].min() > 0.25 * len(wrong)  # each of the others about as often


def test_stream_tells_the_wrong_labels_and_the_test_does_not() -> None:
    clean, noisy = (vibration(8, seed=2, window=64, flaws=Flaws(labels=share, lost=0, outages=0)) for share in (0, 0.4))
    both = [(clean.rows(device, DAY), noisy.rows(device, DAY)) for device in range(8)]
    for ours, theirs in both:
        np.testing.assert_array_equal(ours[0], theirs[0])
    wrong = np.mean([ours[1] != theirs[1] for ours, theirs in both])
    assert wrong == pytest.approx(0.4, abs=0.08)
    np.testing.assert_array_equal(clean.test.y, noisy.test.y)


def test_gaps_are_as_long_and_as_many_as_said() -> None:
    slots = np.arange(24 * 20_000)
    times = HOUR * slots.astype(np.float64)
    single = Flaws(lost=0.1, outages=0).present("x", slots, times)
    assert np.mean(~single) == pytest.approx(0.1, abs=0.005)
    silent = ~Flaws(lost=0, outages=0.2, outage=4 * HOUR).present("x", slots, times)
    assert np.mean(silent) == pytest.approx(0.2 * 4 / 24, rel=0.1)
    lengths = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], silent.astype(int), [0]]))))[::2]
    assert 3.5 < lengths.mean() < 6  # whole hours, those of no row left out
    assert Flaws.none().present("x", slots, times).all()


def test_an_outage_is_the_same_whichever_hours_are_asked_for() -> None:
    """One that began yesterday lasts into today, also for who asks for today alone."""
    flaws = Flaws(lost=0.1, outages=0.5, outage=8 * HOUR)
    slots = np.arange(24 * 60)
    whole = flaws.present("x", slots, HOUR * slots.astype(np.float64))
    days = [flaws.present("x", day, HOUR * day.astype(np.float64)) for day in slots.reshape(-1, 24)]
    np.testing.assert_array_equal(whole, np.concatenate(days))


def test_missing_meters_are_missing_inputs() -> None:
    assert np.isnan(energy(4, seed=0, flaws=Flaws(lost=0.2)).rows(0, 0.0)[0]).mean() > 0.1
    assert not np.isnan(energy(4, seed=0, flaws=Flaws.none()).rows(0, 0.0)[0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_drift_changes_what_holds_from_then_on_and_nothing_before(kind: Callable[..., Stream]) -> None:
    calm = kind(4, seed=5, window=24)
    drifting = kind(4, seed=5, window=24, drift=Drift(3 * DAY, over=HOUR))
    for device in range(4):
        np.testing.assert_array_equal(calm.rows(device, 3 * DAY - 1)[0], drifting.rows(device, 3 * DAY - 1)[0])
        changed = np.any(calm.rows(device, 6 * DAY)[0] != drifting.rows(device, 6 * DAY)[0], axis=1)
        assert changed.all()
    np.testing.assert_array_equal(calm.at(3 * DAY - 1).test.x, drifting.at(3 * DAY - 1).test.x)
    assert not np.array_equal(calm.at(4 * DAY).test.x, drifting.at(4 * DAY).test.x)
    assert drifting.at(4 * DAY).test is drifting.at(4 * DAY + 60).test, "made again though nothing has changed"


def test_drift_comes_to_each_device_at_its_own_time() -> None:
    drift = Drift(DAY, over=10 * HOUR)
    times = [drift.of((0, device)) for device in range(50)]
    assert DAY <= min(times) < DAY + 3 * HOUR and DAY + 7 * HOUR < max(times) <= DAY + 10 * HOUR


def test_machines_begin_healthy_and_their_faults_grow() -> None:
    machines = Machines(0, 1800.0, 0.0, 1.0, None)
    for number in range(20):
        life = machines.life(number)
        times = life.onset + np.linspace(-DAY, 2 * GROWTH, 50)
        severity = life.severity(times)
        assert (severity[times <= life.onset] == 0).all() and severity[-1] == 1
        assert (np.diff(severity) >= 0).all()
        assert life.severity(np.array([life.onset + GROWTH / 2]))[0] == pytest.approx(0.5)


def test_labels_turn_when_an_inspection_would_find_the_fault() -> None:
    stream = vibration(30, seed=0, faulty=1.0, history=0.0, window=600, flaws=Flaws.none())
    machines = stream.flow.maker
    assert isinstance(machines, Machines)
    turned = 0
    for device in range(30):
        life, labels = machines.life(device), stream.rows(device, 8 * DAY)[1]
        when = life.onset + VISIBLE * GROWTH
        times = np.arange(len(labels)) * stream.flow.interval
        assert (labels[times < when] == 0).all()
        assert (labels[times >= when] == stream.names.index(str(life.fault))).all()
        turned += bool(0 < np.count_nonzero(labels) < len(labels))
    assert turned > 5


def test_faults_are_rare_as_said() -> None:
    lives = [Machines(1, 1800.0, 0.0, 0.4, None).life(number).fault for number in range(3000)]
    shares = [lives.count(fault) / 3000 for fault in ("outer race", "inner race", "ball")]
    assert shares == pytest.approx([0.2, 0.12, 0.08], abs=0.03)
    assert all(life.fault is None for life in (Machines(1, 1800.0, 0.0, 0.0, None).life(n) for n in range(50)))


def test_test_is_balanced_and_of_machines_that_are_not_in_the_fleet() -> None:
    stream = vibration(3, seed=0)
    assert len(set(np.bincount(stream.test.y))) == 1
    whole, *classes = stream.tests(0.0).values()
    assert whole is stream.test and sum(len(rows) for rows in classes) == len(whole)
    assert list(stream.tests(0.0)) == ["", *stream.names]


# ------------------------------------------------------------------------- a device


def test_sensor_says_when_enough_is_new() -> None:
    now = [0.0]
    sensor = POWER.sensor("device-4", lambda: now[0])
    condition = enough_new(sensor, 5)
    assert condition() is None
    sensor.take()
    assert condition() is not None
    enough = sensor.enough_at(5)
    now[0] = enough - 1
    assert sensor.new == 4 and condition() is not None
    now[0] = enough
    assert sensor.new == 5 and condition() is None
    x, y = sensor.arrays()
    np.testing.assert_array_equal(x, POWER.rows(4, enough)[0])
    assert sensor.new == 0 and len(y) == 60


async def test_source_feeds_the_samples_of_a_live_device() -> None:
    """A device's own buffer holds what the stream says, NaN for NaN, while a clock goes on far faster than ours."""
    stream = energy(2, seed=0, window=50, history=DAY)
    loop = asyncio.get_running_loop()
    origin, pace = loop.time(), 400_000.0
    sensor = stream.sensor(1, lambda: (loop.time() - origin) * pace, pace=pace)
    samples = Samples(None, stream.features, stream.label, rows=50, clip=None)
    following = asyncio.create_task(sensor.follow(samples))
    await eventually("enough rows", lambda: samples.seen >= 120)
    following.cancel()
    x, y = samples.arrays()
    everything = energy(2, seed=0, window=10_000, history=DAY).rows(1, (loop.time() - origin) * pace)
    end = next(end for end in range(len(everything[1]), 0, -1) if everything[1][end - 1] == y[-1])
    np.testing.assert_array_equal(x, everything[0][end - 50 : end])
    np.testing.assert_array_equal(y, everything[1][end - 50 : end])
    assert samples.seen == end, "a row was left out, or came twice"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: vibration(0), "at least 1 device"),
        (lambda: vibration(2, fresh=0), "fresh=0"),
        (lambda: vibration(2, window=4, fresh=5), "holds 4"),
        (lambda: vibration(2, interval=0), "intervals above 0"),
        (lambda: vibration(2, faulty=2), "not a share"),
        (lambda: energy(2, history=100.0), "whole number of hours"),
        (lambda: Flaws(labels=1.5), "labels=1.5"),
        (lambda: Flaws(outage=-1), "out of range"),
        (lambda: Drift(-1), "out of range"),
        (lambda: POWER.rows(6, 0.0), "no device 6"),
        (lambda: POWER.rows("pump", 0.0), "no device 'pump'"),
    ],
)
def test_what_cannot_be_is_told(wrong: type, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wrong()


def test_chance_is_uniform_normal_and_by_address() -> None:
    places = np.arange(100_000)
    drawn = counter_rng.uniform(counter_rng.key("a"), places)
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] / 5000 - 1).max() < 0.1
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    np.testing.assert_array_equal(drawn[500:600], counter_rng.uniform(counter_rng.key("a"), np.arange(500, 600)))
    wide = counter_rng.normal(counter_rng.key("b"), places)
    assert abs(wide.mean()) < 0.02 and wide.std() == pytest.approx(1, abs=0.02)
    slow = counter_rng.smooth(counter_rng.key("c"), places, 50.0)
    assert slow.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(slow)).max() < 0.4
