"""Reading a run from its directory, with checks, into types.

A run may have been killed at any moment, may be of another version, and may hold unknown data. Unreadable lines are
counted and skipped, unknown events are ignored, and a missing file leaves its part of the report empty.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from midge.sensor_fleet import record
from midge.sensor_fleet.progress import METRICS
from midge.sensor_fleet.report.run import DeviceEvent, Evaluation, Run, UpdateVerdict, finite_number, mapping

METRICS_FILE: Final = "metrics.jsonl"
DEVICES_FILE: Final = "devices.jsonl"
RESULT_FILE: Final = "result.json"
BASELINES_FILE: Final = "baselines.json"
_SERVERS: Final = ("the aggregator", "the broker")


def holds_run(directory: Path) -> bool:
    """Whether a directory holds any file of a run; a run that was refused at once wrote none."""
    return any((directory / name).is_file() for name in (METRICS_FILE, record.FILE, RESULT_FILE))


def read(directory: Path) -> Run:
    """Read a run.

    Raises:
        ValueError: the directory holds no run; the message says what to give instead.
    """
    if not directory.is_dir():
        raise ValueError(f"There is no directory {directory}: give that of a run, such as runs/20260131-120000.")
    if not holds_run(directory):
        if (directory / "store.db").is_file():
            raise ValueError(f"{directory} holds no run, but the store of an aggregator: midge report shows it.")
        raise ValueError(
            f"{directory} holds no run of `midge demo` or `midge fleet`: there is no {METRICS_FILE} in it."
        )
    run = Run(
        directory,
        about=_object(directory / record.FILE),
        result=_object(directory / RESULT_FILE) or None,
        baselines=_object(directory / BASELINES_FILE),
    )
    for event in _lines(directory / METRICS_FILE, run):
        _record(run, event)
    for event in _lines(directory / DEVICES_FILE, run):
        _record_of_device(run, event)
    run.device_events.sort(key=lambda device_event: device_event.time)
    task = mapping(run.about.get("data")).get("task")
    if task == "regression" or (task is None and run.result is not None and "rmse" in run.result):
        run.metric = "rmse"
    return run


def _record(run: Run, event: Mapping[str, Any]) -> None:
    """Record one event of the aggregator."""
    try:
        kind = event["event"]
        if kind == "finished":
            return
        time = float(event["time"])
        match kind:
            case "evaluation":
                for name in METRICS:
                    if name in event["metrics"]:
                        run.metric = name
                        value = float(event["metrics"][name])
                        up, down = finite_number(event.get("bytes_up")), finite_number(event.get("bytes_down"))
                        run.evaluations.append(Evaluation(time, int(event["version"]), value, up, down))
            case "update":
                run.updates.append(
                    UpdateVerdict(
                        time,
                        str(event["device"]),
                        str(event["verdict"]),
                        int(event.get("staleness") or 0),
                        float(event.get("weight") or 0.0),
                        int(event.get("size") or 0),
                    )
                )
            case "device":
                if event["state"] == "lost":
                    run.lost.append((time, str(event["device"])))
            case "killed" | "restarted" if str(event["what"]) not in _SERVERS:
                run.device_events.append(DeviceEvent(time, str(event["what"]), kind, None))
            case "killed":
                run.killed.append((time, None, str(event["what"])))
            case "restarted":
                _restarted(run, time, str(event["what"]))
            case _:
                run.others[str(kind)] += 1
        run.times.append(time)
    except (KeyError, TypeError, ValueError):
        run.unreadable += 1


def _restarted(run: Run, time: float, what: str) -> None:
    for place, (start, end, which) in enumerate(run.killed):
        if which == what and end is None:
            run.killed[place] = (start, time, which)


def _record_of_device(run: Run, event: Mapping[str, Any]) -> None:
    try:
        time = float(event["time"])
        device_event = DeviceEvent(time, str(event["device"]), str(event["event"]), finite_number(event.get("seconds")))
    except (KeyError, TypeError, ValueError):
        run.unreadable += 1
        return
    run.device_events.append(device_event)
    run.times.append(time)


def _lines(path: Path, run: Run) -> Iterator[Mapping[str, Any]]:
    """The objects of a file of JSON lines. The last line of a killed run may be truncated."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
            except ValueError:
                run.unreadable += 1
                continue
            if isinstance(event, dict):
                yield event
            else:
                run.unreadable += 1


def _object(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file; empty if the file is missing or truncated."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
