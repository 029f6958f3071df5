"""`--log json`: one object a line, for events and for the log."""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.events import Service, undeclared
from midge.logs import JsonLog, print_line
from tests.federation.live import Log, aggregator, device, serving

log = logging.getLogger("aggregator")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before, level


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_an_event_has_the_time_level_and_federation(capsys: pytest.CaptureFixture[str]) -> None:
    show = JsonLog("aggregator", "pumps").install()
    show({"event": "health", "time": 1_790_000_000.25, "state": "stalled", "why": "w", "before": "learning"})
    show({"event": "health", "time": 1_790_000_000.25, "state": "learning", "why": "", "before": "stalled"})
    show({"event": "evaluation", "time": 0.0, "version": 1, "step": 1, "metrics": {"loss": float("nan")}})
    found = lines(capsys.readouterr().out)
    assert found[0] == {
        "time": "2026-09-21T14:13:20.250Z",
        "level": "warning",
        "service": "aggregator",
        "federation": "pumps",
        "event": "health",
        "state": "stalled",
        "why": "w",
        "before": "learning",
    }
    assert found[1]["level"] == "info"
    assert found[2]["metrics"] == {"loss": None}


def test_a_sentence_that_an_event_has_is_not_written_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is logged before or after the event. Seen to fail with the held lines written at once."""

    async def step() -> None:
        show = JsonLog("aggregator", "pumps").install()
        log.warning("%s", "the disk of the pump is full")
        show({"event": "alarm", "time": time.time(), "why": "the disk of the pump is full"})
        log.warning("again: %s", "the disk of the pump is full")
        log.warning("something else")
        await asyncio.sleep(0)
        log.warning("the disk of the pump is full")  # a step later: it stands for itself
        await asyncio.sleep(0)
        try:
            _ = os.environ["NO SUCH NAME"]
        except KeyError:
            log.exception("x failed")
        show({"event": "evaluation_failed", "time": time.time(), "version": 1, "step": 1, "why": "x failed"})
        log.warning("the last words")

    asyncio.run(step())
    logging.getLogger().handlers[0].flush()
    found = lines(capsys.readouterr().out)
    assert [(line["event"], line.get("message", line.get("why"))) for line in found] == [
        ("alarm", "the disk of the pump is full"),
        ("log", "something else"),
        ("log", "the disk of the pump is full"),
        ("log", "x failed"),
        ("evaluation_failed", "x failed"),
        ("log", "the last words"),
    ]
    assert "KeyError" in found[3]["traceback"] and found[3]["level"] == "error"


def test_text_of_peers_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_line({"why": "a\nb\x1b[2J\u202e"})
    text = capsys.readouterr().out
    assert text.count("\n") == 1 and text.isascii() and "\x1b" not in text


async def test_what_a_federation_emits_is_declared_with_every_field(tmp_path: Path) -> None:
    """Beside the calls in the source: fields that are computed, such as those of receipts."""
    twin, ours, theirs = Twin(), Log(), Log()
    served = aggregator(twin, tmp_path, ours)
    devices = [device(twin, name, theirs) for name in ("pump-1", "pump-2")]
    async with serving(served, *devices):
        await ours.until(lambda: len(ours.of("release")) >= 2)
        await theirs.until(lambda: theirs.of("settled"))
    both: tuple[tuple[Service, Log], ...] = (("aggregator", ours), ("device", theirs))
    for service, told in both:
        assert {missing for event in told.events for missing in undeclared(service, event)} == set()
    assert theirs.of("receipt") and ours.of("update")


def test_a_command_that_fails_says_so_in_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "midge", "aggregate", "there_is_none:app", "--log", "json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    (line,) = lines(done.stdout)
    assert done.returncode == 2 and done.stderr == ""
    assert line["event"] == "failed" and line["level"] == "error" and "there_is_none" in line["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
