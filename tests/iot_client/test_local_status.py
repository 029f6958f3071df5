"""A device beside its board's owner: what it says of itself is of now."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from midge.__main__ import main
from midge.broker.embedded.in_memory import Twin
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
    assert seconds < 600 and found["month"]["written_per_day"] == pytest.approx(
        found["month"]["written"] / seconds * 86_400, rel=0.01
    )
    assert "link up" in words and "as of" not in words and "a day written to the flash, by" in words
    assert "warning" in next(line for line in doctor.splitlines() if line.startswith("outbox"))
    assert not path.with_name("a.outbox.sock").exists()
    found = json.loads(await said("device", "status", str(path), "--json"))
    assert found["running"] is None and "as of" in await said("device", "status", str(path))
