"""A device beside its board's owner: what it says of itself is of now."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.aggregator.core.encoder_doubt import NO_FEEDBACK
from midge.broker.embedded.in_memory import Twin
from midge.broker.mqtt.connection import Options
from midge.commands.device_status import usage, wear
from midge.commands.words import sentence
from midge.iot_client.board.local_status import answering, ask
from midge.wire import frames
from midge.wire.messages import Trouble
from midge.wire.topics import Topics
from tests.federation.live import Log, aggregator, device, serving


async def test_status_and_doctor_ask_the_device_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin, log = Twin(), Log()
    path = tmp_path / "a.outbox"
    a = device(twin, "a", log, path)

    async def said(*words: str) -> Any:
        code = await asyncio.to_thread(main, [*words])
        assert code == 0
        return capsys.readouterr().out

    async with serving(aggregator(twin, tmp_path / "store", log), a, device(twin, "b", log)):
        await log.until(lambda: len(log.of("receipt", device="a", verdict="accepted")) >= 20)
        before = a.bytes_up + a.bytes_down
        found = json.loads(await said("device", "status", str(path), "--json"))
        words = await said("device", "status", str(path))
        doctor = await said("device", "doctor", "--outbox", str(path))
    # The file is saved every ten minutes: it says nearly nothing yet.
    assert found["month"]["bytes"] >= before > 5_000
    assert found["running"]["link"] == "up" and found["running"]["version"] >= 10
    seconds = found["month"]["seconds"]
    assert 0 < seconds < 60 and found["month"]["written_per_day"] is None, "a start says nothing about a day"
    assert "link up" in words and "as of" not in words and "bytes written to the flash in" in words
    assert "ok" in next(line for line in doctor.splitlines() if line.startswith("outbox"))
    running = {**found["running"], "month": found["month"], "seconds": 120.0, "written": 30_000_000}
    assert (month := usage(path, running)) is not None and month["written_per_day"] == 30_000_000 * 720
    assert "a day written to the flash, measured over 2 min" in wear(month)
    assert not path.with_name("a.outbox.sock").exists()
    found = json.loads(await said("device", "status", str(path), "--json"))
    assert found["running"] is None and "as of" in await said("device", "status", str(path))


async def test_an_outbox_with_a_long_path_has_a_socket_too(tmp_path: Path) -> None:
    outbox = tmp_path / ("folder" * 20) / f"{'pump' * 20}.outbox"
    outbox.parent.mkdir()
    async with answering(outbox, lambda: {"pid": 7}):
        assert await asyncio.to_thread(ask, outbox) == {"pid": 7}
        (place,) = outbox.parent.iterdir()
        assert place.stat().st_mode & 0o777 == 0o600
    assert not list(outbox.parent.iterdir()) and ask(outbox) is None


STOPPED = """
import asyncio, os, signal, sys
from pathlib import Path
from midge.iot_client.board.local_status import answering
from midge.iot_client.state.outbox import Outbox

async def main():
    with Outbox(sys.argv[1]) as outbox:
        async with answering(outbox.path, dict):
            os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""


def test_a_device_that_is_stopped_runs_and_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.outbox"
    child = subprocess.Popen([sys.executable, "-P", "-c", STOPPED, str(path)])
    try:
        _, state = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(state)
        assert main(["device", "status", str(path)]) == 0
        words = capsys.readouterr().out
        assert main(["device", "consent", "off", str(path)]) == 0
        consent = capsys.readouterr().out
    finally:
        child.kill()
        child.wait()
    assert "running   yes, and it does not answer" in words
    assert "whose device follows within seconds" in consent
    assert main(["device", "status", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] is None and not found["unanswered"]


async def test_what_the_aggregator_drops_of_a_device_its_owner_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin, log = Twin(), Log()
    path = tmp_path / "a.outbox"
    a = device(twin, "a", log, path)
    async with serving(aggregator(twin, tmp_path / "store", log), a, device(twin, "b", log)):
        await log.until(lambda: log.of("receipt", device="a", verdict="accepted"))
        async with twin.connect(Options(client_id="owner")) as connection:
            await connection.publish(Topics("f").update("a"), b"junk")
            await log.until(lambda: log.of("trouble", device="a"))
        assert await asyncio.to_thread(main, ["device", "status", str(path)]) == 0
        words = capsys.readouterr().out
    (told,) = log.of("trouble", device="a")
    assert "header" in told["why"]
    assert told["why"].startswith("a message is dropped: ")
    assert f"the aggregator had a problem with what this device sent: {told['why']}" in words
    assert log.of("receipt", device="a", verdict="accepted"), "it goes on"


async def test_what_the_aggregator_only_doubts_is_not_shown_as_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    twin, log = Twin(), Log()
    path = tmp_path / "a.outbox"
    doubted = frames.encode(Trouble(why=NO_FEEDBACK))
    async with serving(aggregator(twin, tmp_path / "store", log), device(twin, "a", log, path)):
        await log.until(lambda: log.of("receipt", device="a", verdict="accepted"))
        async with twin.connect(Options(client_id="aggregator")) as connection:
            await connection.publish(Topics("f").receipt("a"), doubted)
            await log.until(lambda: log.of("trouble", device="a"))
        assert await asyncio.to_thread(main, ["device", "status", str(path)]) == 0
    shown = [next(line for line in capsys.readouterr().out.splitlines() if line.startswith("TROUBLE"))]
    shown += [record.getMessage() for record in caplog.records if NO_FEEDBACK in record.getMessage()]
    shown += [sentence(event) for event in log.of("trouble", device="a")]
    assert len(shown) == 3 and all(NO_FEEDBACK in line and "dropped" not in line for line in shown)
