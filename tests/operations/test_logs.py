"""`--log json`: one object a line, for events and for the log."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.broker.local.local_broker import local_broker
from midge.commands.telling import InWords
from midge.events import Service, undeclared
from midge.logs import JsonLog, print_line
from tests.federation.live import Log, aggregator, device, serving
from tests.waiting import LAST_RESORT

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
    show({"event": "update", "time": 0.0, "body": b"\xc4E?"})
    assert lines(capsys.readouterr().out)[0]["body"] == "c4453f"  # seen to fail: Python's spelling of bytes


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


def test_events_as_text_have_the_date_and_level_and_say_a_sentence_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: a time without a date or level, and each alarm as an event and as a line of the log."""

    async def step() -> None:
        show = InWords("aggregator").install()
        log.warning("%s", "the disk of the pump is full")
        show({"event": "alarm", "time": time.time(), "why": "the disk of the pump is full"})
        log.warning("something else")
        show({"event": "bytes", "time": time.time(), "why": "something else"})  # not shown in words
        show({"event": "health", "time": time.time(), "state": "learning", "why": "", "before": "stalled"})
        await asyncio.sleep(0)

    asyncio.run(step())
    said = capsys.readouterr()
    alarm, health = said.out.splitlines()
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"{when} WARNING ALARM: the disk of the pump is full", alarm)
    assert re.fullmatch(rf"{when} INFO Health: learning \(was stalled\)\.", health)
    (other,) = said.err.splitlines()
    assert re.fullmatch(rf"{when},\d+ WARNING aggregator: something else", other)


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


SERVER = """
import midge, numpy as np
app = midge.Aggregator("{url}", federation="pumps", initial={{"w": np.zeros(3, np.float32)}}, store="store")
"""
PUMP = """
import midge
app = midge.Device("{url}", federation="pumps", name="pump-1", train=lambda w, plan: midge.Fit(w, 1), outbox="outbox")
"""


async def test_all_that_the_commands_print_is_json(tmp_path: Path) -> None:
    """Seen to fail on the sentence at a command's end, and on the note that the connection has no TLS."""
    async with local_broker("embedded", directory=tmp_path) as broker, asyncio.timeout(LAST_RESORT):
        (tmp_path / "server.py").write_text(SERVER.format(url=broker.endpoint))
        (tmp_path / "pump.py").write_text(PUMP.format(url=broker.endpoint))
        commands = (
            ("aggregate", "server:app", "--home-assistant", "--metrics", "0.0.0.0:0"),
            ("device", "pump:app"),
        )
        running = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "midge", *command, "--log", "json"),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            for command in commands
        ]
        server, pump = running
        assert server.stdout is not None and pump.stdout is not None
        told = {server: b"", pump: b""}
        for process, awaited in ((pump, b'"receipt"'), (server, b'"update"')):
            assert process.stdout is not None
            while awaited not in told[process]:
                line = await process.stdout.readline()
                assert line, await process.communicate()
                told[process] += line
        for process, service in ((pump, "device"), (server, "aggregator")):
            process.send_signal(signal.SIGINT)
            rest, errors = await process.communicate()
            assert process.returncode == 0 and errors == b""
            found = lines((told[process] + rest).decode())
            assert {(line["service"], line["federation"]) for line in found} == {(service, "pumps")}
            assert {"connected"} <= {line["event"] for line in found}
            assert all(list(line)[:2] == ["time", "level"] for line in found)
            assert service == "aggregator" or {line["device"] for line in found} == {"pump-1"}
