"""The live view at the sizes of terminals, from a moment of a run."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from midge.commands.chart import curve
from midge.commands.live import draw, picture
from midge.commands.moments import ROUTINE, DemoMoment, Happenings, Line, latest

MOMENT = DemoMoment(
    title="digits · 20 devices · fedasync · int8:256",
    elapsed=23.4,
    left=36.6,
    metric="accuracy",
    value=0.931,
    target=0.93,
    curve=tuple((second / 10, 1 - math.exp(-second / 60)) for second in range(20, 234)),
    figures=(
        ("version", "105, step 207"),
        ("accuracy", "93.1 % of 93 %"),
        ("updates", "412 accepted, 2 refused"),
        ("", "6 duplicate, 0 stale"),
        ("staleness", "12 / 21 / 82 steps"),
        ("up", "1.5 MB, as float32 5.6 MB"),
        ("down", "7.9 MB, as float32 20.0 MB"),
        ("devices", "16 online, 2 offline"),
        ("", "1 to come, 1 left"),
        ("outboxes", "3 updates held"),
        ("receipted", "412 = 412 settled"),
        ("model", "3fa9c01e of version 105"),
    ),
    killed=frozenset({"aggregator"}),
    broker_is_ours=True,
    lines=tuple(
        Line(number, f"sensor-{number:02d}: accepted, 4 steps stale, weight 0.31", "accepted") for number in range(40)
    ),
)


def rendered(moment: DemoMoment, width: int, height: int, *, ascii_only: bool = False) -> list[str]:
    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    console.print(draw(moment, width, height, ascii_only=ascii_only))
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height", "lines"), [(80, 24, 9), (120, 40, 17), (80, 20, 5)])
def test_the_view_fits_and_says_what_matters(width: int, height: int, lines: int) -> None:
    text = rendered(MOMENT, width, height)
    assert len(text) == height
    assert max(map(len, text)) <= width
    whole = "\n".join(text)
    assert text[0].startswith("midge demo digits · 20 devices")
    assert text[0].endswith("23 s, 37 s left")
    for name, value in MOMENT.figures:
        assert f"{name:<11}{value}" in whole
    assert whole.count("accepted, 4 steps stale, weight 0.31") == lines
    assert "39.0 s  sensor-39: accepted" in whole
    assert " ".join(text[-1].split()) == "a bring back aggregator b kill broker d kill device q end"
    assert "┈" in whole
    assert any("\u2800" < character <= "\u28ff" for character in whole)


def test_a_narrow_terminal_cuts_and_does_not_fold() -> None:
    text = rendered(MOMENT, 60, 24)
    assert len(text) == 24
    assert max(map(len, text)) <= 60


def test_without_unicode_the_curve_is_made_of_stars() -> None:
    moment = replace(MOMENT, title="digits")
    whole = "\n".join(rendered(moment, 80, 24, ascii_only=True))
    assert whole.isascii()
    assert "*" in whole


def test_a_broker_of_somebody_else_cannot_be_killed() -> None:
    assert "broker" not in rendered(replace(MOMENT, broker_is_ours=False), 80, 24)[-1]


def test_the_beginning_of_a_run_can_be_shown() -> None:
    moment = replace(MOMENT, elapsed=0.0, curve=(), figures=MOMENT.figures[:2], lines=(), value=None)
    assert len(rendered(moment, 80, 24)) == 24


def test_an_error_is_scaled_to_what_it_was() -> None:
    moment = replace(MOMENT, metric="rmse", target=None, curve=((1.0, 80.0), (2.0, 40.0), (9.0, math.nan)))
    whole = "\n".join(rendered(moment, 80, 24))
    assert "80 " in whole
    assert "40 " in whole


def test_the_picture_names_no_place_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "terminal.svg"
    picture(MOMENT, str(file))
    text = file.read_text()
    assert text.startswith("<svg")
    assert "@font-face" not in text
    assert "cdnjs" not in text
    assert "receipted" in text


def test_a_curve_climbs_without_gaps() -> None:
    lines = curve([(0, 0.0), (9.9, 1.0)], 10, 4, until=10, low=0, high=1, ascii_only=True)
    assert lines[0].strip() == lines[-1][0] == "*"
    assert all(any(line[x] == "*" for line in lines) for x in range(10))
    assert all("*" in line for line in lines)


def test_of_accepted_updates_a_sample_is_shown_and_of_refusals_all() -> None:
    happenings = Happenings()
    for number in range(100):
        at = number * ROUTINE / 10
        happenings.take(
            {"event": "update", "device": "d", "verdict": "accepted", "staleness": 1, "weight": 0.5, "time": at + 1}
        )
        happenings.take({"event": "update", "device": "d", "verdict": "stale", "why": "old", "time": at + 1})
    kinds = [line.kind for line in happenings.lines]
    assert kinds.count("stale") >= 4 * kinds.count("accepted") > 0


def test_what_is_rare_stays_in_sight_for_a_while() -> None:
    killed = Line(10.0, "The broker is killed, without DISCONNECT.", "killed")
    others = [Line(10.0 + number, f"{number}", "accepted") for number in range(1, 20)]
    assert latest([killed, *others], 4, now=20.0) == [killed, *others[-3:]]
    assert latest([killed, *others], 4, now=30.0) == others[-4:]
    assert latest([killed, *others], 0, now=20.0) == []
    assert latest([killed], 5, now=20.0) == [killed]


def test_devices_speak_of_what_nobody_else_tells() -> None:
    happenings = Happenings()
    for name in ("training", "vanished", "receipt", "connected"):
        happenings.take_device({"event": name, "device": "sensor-01", "time": 1.0, "version": 1, "seq": 1})
    assert [line.text for line in happenings.lines] == ["sensor-01: leaves for good, without DISCONNECT"]
