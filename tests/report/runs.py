"""Runs as their files would be, written without running anything."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGAN = 1_700_000_000.0
SECONDS = {f"sensor-{number:02d}": 0.1 * 1.5**number for number in range(10)}


def about(*, task: str = "classification", target: float | None = 0.9, **setting: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "began": BEGAN,
        "target": target,
        "seconds": 30.0,
        "setting": {
            "data": "digits",
            "seed": 7,
            "strategy": "fedasync",
            "world": {"seed": 7, "median": 0.5},
            **setting,
        },
        "data": {"task": task, "kind": "image", "shape": [8, 8], "classes": 10, "rows": 1438, "test_rows": 359},
        "model": {"name": "mlp", "parameters": 6572},
        "devices": {
            name: {"rows": 100, "bytes": 6400, "seconds": seconds, "engine": "numpy"}
            for name, seconds in SECONDS.items()
        },
        "versions": {"python": "3.11.7", "midge": "0.1.0"},
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2},
    }


def metrics(values: Sequence[float], metric: str = "accuracy") -> list[dict[str, Any]]:
    """An evaluation every second, and an update of each device in turn."""
    names = list(SECONDS)
    events: list[dict[str, Any]] = [{"event": "start", "time": BEGAN + 0.5, "lineage": "00", "version": 0, "step": 0}]
    for number, value in enumerate(values):
        time = BEGAN + 1 + number
        update = {
            "event": "update",
            "time": time,
            "device": names[number % len(names)],
            "seq": 1,
            "verdict": "accepted",
        }
        events += [
            {**update, "why": "", "base": 1, "staleness": number, "weight": 0.6 / (1 + number), "size": 1000},
            {"event": "release", "time": time, "version": number + 1, "step": number + 1, "devices": 1},
            {
                "event": "evaluation",
                "time": time + 0.1,
                "version": number + 1,
                "step": number + 1,
                "metrics": {metric: value},
                "bytes_up": 1000 * (number + 1),
                "bytes_down": 5000 * (number + 1),
            },
        ]
    return events


def told(seconds: int = 20) -> list[dict[str, Any]]:
    """What devices tell: they connect, and train once."""
    events: list[dict[str, Any]] = []
    for name, took in SECONDS.items():
        events += [
            {"event": "connected", "device": name, "time": BEGAN + 0.5},
            {"event": "training", "device": name, "time": BEGAN + 1, "version": 1},
            {"event": "trained", "device": name, "time": BEGAN + 1 + took, "version": 1, "seconds": took},
            {"event": "receipt", "device": name, "time": BEGAN + 1.2 + took, "seq": 1, "verdict": "accepted"},
        ]
    return [*events, {"event": "connected", "device": "sensor-00", "time": BEGAN + seconds}]


def baselines(central: float = 0.97, alone: float = 0.52) -> dict[str, Any]:
    values = {name: alone + 0.01 * (number - 4.5) for number, name in enumerate(SECONDS)}
    spread = {"values": values, "mean": alone, "deviation": 0.0287, "least": min(values.values())}
    return {
        "metric": "accuracy",
        "central": {"value": central, "steps": 4321, "steps_asked": 4321, "rows": 1438, "of_rows": 1438},
        "alone": {**spread, "steps": 500, "of": 10, "test_rows": 359},
        "own": {**spread, "of": 10},
    }


def result(value: float, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    return {
        metric: value,
        "seconds": 21.5,
        "seconds_to_target": None,
        "bytes_up": 20_000,
        "bytes_down": 100_000,
        **more,
    }


def write(
    directory: Path,
    *,
    metrics_lines: Sequence[Mapping[str, Any]] = (),
    device_lines: Sequence[Mapping[str, Any]] = (),
    **objects: Mapping[str, Any],
) -> Path:
    """Write a run's files; `objects` are those of one JSON object each, by name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics", metrics_lines), ("devices", device_lines)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, plain in objects.items():
        (directory / f"{name}.json").write_text(json.dumps(plain))
    return directory


def accuracies(number: int = 20) -> list[float]:
    return [0.1 + 0.85 * (1 - 0.8**place) for place in range(number)]


def complete(directory: Path, **setting: Any) -> Path:
    """A run that came to its end."""
    return write(
        directory,
        metrics_lines=metrics(accuracies()),
        device_lines=told(),
        run=about(**setting),
        result=result(0.9321, seconds_to_target=17.25),
        baselines=baselines(),
    )


def fleet(directory: Path, word: str = "gateway") -> Path:
    """A virtual fleet of one class that came to its end; `word` stands wherever its files have a name."""
    kind = {"devices": 4, "trainings": 9, "training_seconds": 0.5, "bytes_up": 900, "bytes_down": 5000, "joules": 2.5}
    month = {"monthly_bytes": 5e6, "monthly_joules": 9000, "share_of_updates": 1.0, "share_of_weight": 1.0}
    own = {"mean": 0.91, "low": 0.84, "high": 0.97}
    link = {"up": 3e5, "down": 1e6, "loss": 0.01}
    described = {"name": word, "share": 1.0, "samples_per_second": 16000.0, "memory": 2.56e8, "link": link}
    return write(
        directory,
        metrics_lines=metrics(accuracies()),
        run={
            "virtual": True,
            "began": BEGAN,
            "number_of_devices": 4,
            "profile": {"name": word, "about": word, "classes": [{**described, "availability": {"kind": word}}]},
            "setting": {"data": word, "profile": word},
            "model": {"name": word, "parameters": 650},
            "versions": {word: word},
        },
        result=result(
            0.9321,
            staleness={word: [[0, 5], [3, 4]]},
            classes={word: {**kind, **month, "took_part": 1.0}},
            own={word: own},
            joules=10.0,
            raw_bytes=3740.0,
            took=2.0,
        ),
    )
