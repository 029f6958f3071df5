from pathlib import Path
from typing import Any

from midge.sensor_fleet.report.devices import shown, timeline
from midge.sensor_fleet.report.reading import read
from midge.sensor_fleet.report.timelines import Span, Timeline, timelines
from tests.report import runs


def life_of(
    tmp_path: Path, told: list[tuple[float, str]], noted: list[dict[str, Any]] | None = None, end: float = 10
) -> Timeline:
    lines = [{"event": event, "device": "pump", "time": runs.BEGAN + time} for time, event in told]
    stop = [*(noted or []), {"event": "stop", "time": runs.BEGAN + end}]
    run = read(runs.write(tmp_path / "run", metrics_lines=stop, device_lines=lines, run={"began": runs.BEGAN}))
    return timelines(run)["pump"]


def test_training_sending_waiting(tmp_path: Path) -> None:
    told = [(1.0, "connected"), (2.0, "training"), (4.0, "trained"), (5.0, "receipt")]
    assert life_of(tmp_path, told).spans == [
        Span("waiting", 1, 2),
        Span("training", 2, 4),
        Span("sending", 4, 5),
        Span("waiting", 5, 10),
    ]


def test_a_broken_connection_is_away_but_training_goes_on(tmp_path: Path) -> None:
    told = [(0.0, "connected"), (1.0, "training"), (2.0, "disconnected"), (3.0, "trained"), (6.0, "connected")]
    assert life_of(tmp_path, told).spans == [
        Span("waiting", 0, 1),
        Span("training", 1, 3),
        Span("away", 3, 6),
        Span("sending", 6, 10),
    ]


def test_killed_and_brought_back(tmp_path: Path) -> None:
    told = [(0.0, "connected"), (1.0, "training"), (7.0, "connected")]
    noted = [
        {"event": "killed", "what": "pump", "time": runs.BEGAN + 4},
        {"event": "restarted", "what": "pump", "time": runs.BEGAN + 6.5},
    ]
    life = life_of(tmp_path, told, noted)
    assert life.ends == [(4.0, "killed")]
    assert life.spans == [Span("waiting", 0, 1), Span("training", 1, 4), Span("gone", 4, 7), Span("waiting", 7, 10)]


def test_vanished_without_a_goodbye(tmp_path: Path) -> None:
    life = life_of(tmp_path, [(0.0, "connected"), (3.0, "vanished"), (3.1, "disconnected")])
    assert life.spans == [Span("waiting", 0, 3), Span("gone", 3, 10)]
    assert life.ends == [(3.0, "vanished")]


def test_come_back_without_having_told_of_the_end(tmp_path: Path) -> None:
    life = life_of(tmp_path, [(0.0, "connected"), (2.0, "training"), (5.0, "connected")])
    assert life.spans == [Span("waiting", 0, 2), Span("away", 2, 5), Span("waiting", 5, 10)]


def test_lost_by_the_last_will(tmp_path: Path) -> None:
    noted = [{"event": "device", "device": "pump", "state": "lost", "time": runs.BEGAN + 6}]
    life = life_of(tmp_path, [(0.0, "connected"), (2.0, "training")], noted)
    assert life.spans == [Span("waiting", 0, 2), Span("training", 2, 6), Span("away", 6, 10)]
    assert life.share("training") == 0.4


def test_the_aggregator_is_no_device(tmp_path: Path) -> None:
    noted = [
        {"event": "killed", "what": "the aggregator", "time": runs.BEGAN + 2},
        {"event": "restarted", "what": "the aggregator", "time": runs.BEGAN + 5},
        {"event": "killed", "what": "the broker", "time": runs.BEGAN + 8},
    ]
    run = read(runs.write(tmp_path / "run", metrics_lines=noted, run={"began": runs.BEGAN}))
    assert run.names == []
    assert [(start - runs.BEGAN, end and end - runs.BEGAN, what) for start, end, what in run.killed] == [
        (2, 5, "the aggregator"),
        (8, None, "the broker"),
    ]


def test_the_quickest_is_drawn_first(tmp_path: Path) -> None:
    run = read(runs.complete(tmp_path / "one"))
    chosen = shown(run, timelines(run))
    assert [life.device for life in chosen] == sorted(runs.SECONDS, key=lambda name: runs.SECONDS[name])
    assert "sensor-00" in str(timeline(chosen, 900))
    assert timeline([], 900) is None
