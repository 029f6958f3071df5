"""Conditions read a machine that is made of files, and never hold a device back for what they cannot read."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from midge.iot_client.board import conditions
from midge.iot_client.board.training_constraints import Condition


def files(root: Path, **contents: str) -> None:
    """Files by their paths, with __ for /."""
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


SUPPLY = "sys__class__power_supply__"


def supply(root: Path, name: str, **fields: str) -> None:
    files(root, **{f"{SUPPLY}{name}__{key}": value for key, value in fields.items()})


def test_mains_is_what_is_plugged_in_and_a_mouse_is_no_battery_of_ours(tmp_path: Path) -> None:
    condition = conditions.on_mains(root=tmp_path)
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="80")
    supply(tmp_path, "hid-mouse", type="Battery", scope="Device", status="Discharging", capacity="5")
    assert condition() == "it runs on its battery"
    supply(tmp_path, "USB", type="USB", online="1")
    assert condition() is None
    supply(tmp_path, "USB", type="USB", online="0")
    assert condition() is not None
    assert conditions.battery_above(0.5, root=tmp_path)() is None
    assert conditions.battery_above(0.8, root=tmp_path)() == "its battery is not above 80%"


def test_a_battery_alone_says_by_its_status_whether_it_is_charged(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Charging", capacity="10")
    assert conditions.on_mains(root=tmp_path)() is None
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="10")
    assert conditions.on_mains(root=tmp_path)() is not None


def test_the_hottest_place_counts_and_a_sensor_that_is_not_there_does_not(tmp_path: Path) -> None:
    condition = conditions.cooler_than(70, root=tmp_path)
    files(
        tmp_path, sys__class__thermal__thermal_zone0__temp="45000", sys__class__thermal__thermal_zone1__temp="-274000"
    )
    assert condition() is None
    files(tmp_path, sys__class__thermal__thermal_zone1__temp="71000")
    assert condition() == "the board is not below 70 °C"


def test_the_processor_is_idle_where_only_we_and_the_meek_are_busy(tmp_path: Path) -> None:
    def machine(user: int, nice: int, idle: int, ours: int, niceness: int = 0) -> None:
        rest = f"{ours} 0 0 0 20 {niceness}"
        files(
            tmp_path,
            proc__loadavg="0.00 0.00 0.00 1/100 1",
            proc__stat=f"cpu  {user} {nice} 0 {idle} 0 0 0 0 0 0",
            proc__self__stat=f"7 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 {rest} 1 0",
        )

    condition = conditions.cpu_idle(0.5, root=tmp_path)
    machine(0, 0, 0, 0)
    assert condition() is None  # by the load average
    machine(900, 0, 100, 0)
    assert condition() == "less than 50% of the processor is idle"
    machine(1800, 0, 200, 800)  # of 900 more, we were 800
    assert condition() is None
    machine(1850, 900, 250, 800)  # what was nice gives way
    assert condition() is None
    machine(1851, 900, 250, 800)  # too short a span: as before
    assert condition() is None
    machine(2850, 900, 250, 900, 10)  # our own time is among the nice already, and does not excuse others
    assert condition() is not None


def test_hours_wrap_midnight_and_a_clock_of_1970_holds_nothing_back() -> None:
    def at(hour: int, minute: int = 0) -> float:
        return time.mktime((2026, 7, 1, hour, minute, 0, 0, 0, -1))

    now = 0.0
    condition = conditions.hours("22:00-06:00", "12:00-12:30", clock=lambda: now)
    assert condition() is None
    for moment, free in [
        (22, True),
        (23, True),
        (0, True),
        (5, True),
        (6, False),
        (12, True),
        (13, False),
        (21, False),
    ]:
        now = at(moment)
        assert (condition() is None) == free, moment
    now = at(12, 30)
    assert condition() == "it trains at 22:00-06:00 or 12:00-12:30 only"


@pytest.mark.parametrize("wrong", ["22-6", "25:00-06:00", "22:60-06:00", "", "22:00-24:01"])
def test_no_span_of_hours_is_refused_with_one(wrong: str) -> None:
    with pytest.raises(ValueError, match="22:00-06:00"):
        conditions.hours(wrong)


def test_a_default_route_through_a_modem_is_metered_and_the_lowest_metric_is_the_one(tmp_path: Path) -> None:
    condition = conditions.unmetered(root=tmp_path)
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"
    files(tmp_path, proc__net__route=f"{head}\nwwan0 00000000 0 3 0 0 700 0 0 0 0\neth0 0000A8C0 0 1 0 0 0 0 0 0 0")
    assert condition() == "the link is metered"
    assert conditions.unmetered(lambda: False, root=tmp_path)() is None
    assert conditions.unmetered(lambda: True, root=tmp_path)() is not None
    files(tmp_path, proc__net__route=f"{head}\nwwan0 00000000 0 3 0 0 700 0 0 0 0\neth0 00000000 0 3 0 0 100 0 0 0 0")
    assert not conditions._through_modem(tmp_path)


def test_enough_is_new_once_it_is() -> None:
    class Samples:
        new = 9

    samples = Samples()
    condition = conditions.enough_new(samples, 10)
    assert condition() == "fewer than 10 rows are new since the last training"
    samples.new = 10
    assert condition() is None


def battery(root: Path) -> Condition:
    return conditions.battery_above(0.3, root=root)


def cool(root: Path) -> Condition:
    return conditions.cooler_than(70, root=root)


@pytest.mark.parametrize("make", [conditions.on_mains, battery, cool])
def test_what_cannot_be_read_holds_nothing_back_and_says_so_once(
    make: Callable[..., Condition], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "_psutil", lambda _name: None)
    condition = make(root=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert condition() is None and condition() is None
    assert len(caplog.records) == 1 and "blocks nothing" in caplog.text


def test_psutil_is_asked_where_there_is_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Battery:
        percent, power_plugged = 20, False

    monkeypatch.setattr(conditions, "_psutil", {"sensors_battery": Battery}.get)
    assert conditions.on_mains(root=tmp_path)() is not None
    assert conditions.battery_above(0.3, root=tmp_path)() is not None


@pytest.mark.parametrize("share", [-0.1, 1, 30])
def test_a_percentage_is_no_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        conditions.battery_above(share)
