"""An outbox whose files rot or were put back: as it was, or a refusal; never an earlier one without a word."""

import shutil
from pathlib import Path

import pytest

from midge.broker.embedded.in_memory import Twin
from midge.iot_client.state.outbox import Outbox, OutboxError
from tests.federation.live import Log, aggregator, device, serving
from tests.iot_client.test_session import made


@pytest.mark.xfail(strict=True, reason="An outbox whose log rotted goes on from an earlier number, or as a new one.")
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_log_that_rotted_is_refused_or_whole(tmp_path: Path, how: str) -> None:
    (tmp_path / "live").mkdir()
    with Outbox(tmp_path / "live" / "box") as outbox:
        for _ in range(6):
            outbox.store(made(2000, outbox=outbox.identity, seq=outbox.next_seq), bytes(2000))
        before = outbox.identity, outbox.next_seq
        shutil.copytree(tmp_path / "live", tmp_path / "copy")
    (tmp_path / "copy" / "box-shm").unlink(missing_ok=True)
    found = []
    for number, place in enumerate((0.2, 0.5, 0.8)):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "copy", copy)
        log = copy / "box-wal"
        data = bytearray(log.read_bytes())
        at = int(place * len(data))
        data[at] ^= 16
        log.write_bytes(bytes({"flipped": data, "cut": data[:at], "gone": bytearray()}[how]))
        try:
            with Outbox(copy / "box") as outbox:
                found.append((outbox.identity, outbox.next_seq) == before)
        except OutboxError:
            found.append(True)
    assert all(found)


@pytest.mark.virtual
@pytest.mark.xfail(strict=True, reason="A device that has taken part ends if the broker is away when it starts.")
async def test_a_device_that_has_taken_part_waits_for_its_broker(tmp_path: Path) -> None:
    twin, log = Twin(), Log()
    async with serving(aggregator(twin, tmp_path / "store", log)):
        async with serving(device(twin, "a", log, tmp_path / "a"), device(twin, "b", log, tmp_path / "b")):
            await log.until(lambda: log.of("receipt", device="a"))
        twin.reachable = False
        log.events.clear()
        async with serving(device(twin, "a", log, tmp_path / "a")):
            await log.until(lambda: log.of("disconnected", device="a"))
            twin.reachable = True
            await log.until(lambda: log.of("connected", device="a"))
