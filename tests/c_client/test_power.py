"""The outbox of the C client: whatever write of flash a power cut ends, nothing is lost and nothing is doubled."""

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from midge.broker.local.local_broker import local_broker
from tests import needs
from tests.c_client.compiled import HERE, SANITIZED, compiled, device
from tests.c_client.federation import Fleet
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import aggregator

CUT = 9
"""The exit code of a device whose power is cut."""


def test_each_write_that_is_cut_leaves_the_record_before_or_the_one_after(tmp_path: Path) -> None:
    program = compiled(tmp_path / "power", [HERE / "power.c"], *SANITIZED)
    done = subprocess.run([program], capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout)
    assert found["cuts"] == found["went_on"] > 400
    assert found["kept"] > 390


@pytest.mark.mosquitto
@needs.mosquitto
def test_cuts_at_every_write_of_a_life_in_a_federation(tmp_path: Path) -> None:
    """The power is cut at the first write after a start, then at the second, and so on, until the device is done."""
    program = device(tmp_path)
    books = Books(devices=1, updates=4, pad=346)

    async def play() -> tuple[int, Audit]:
        cuts = 0
        async with local_broker("mosquitto", directory=tmp_path) as broker:
            fleet = Fleet(program, books, tmp_path, broker.endpoint.port)
            service = aggregator(books, str(broker.endpoint), tmp_path)
            await service.start()
            try:
                for at in range(400):
                    actor = fleet.actor(0, f"cut={at % 24}")
                    await actor.start()
                    async with asyncio.timeout(100):
                        code = await actor.ended()
                    if code == 0:
                        break
                    assert code == CUT, actor.tail()
                    cuts += 1
            finally:
                service.send(signal.SIGTERM)
                await service.ended()
        return cuts, audit(tmp_path / "model.safetensors", tmp_path / "devices")

    cuts, books_say = asyncio.run(play())
    assert cuts > 40, books_say
    assert books_say == Audit(accepted=4, lost=0, doubled=0, applied=4)
