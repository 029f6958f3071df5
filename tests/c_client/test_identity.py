"""Two devices of one name, and an outbox that was put back from a copy: nothing is lost or doubled by either."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from midge.broker.local.local_broker import LocalBroker, local_broker
from tests import needs
from tests.c_client.compiled import device
from tests.c_client.federation import Fleet
from tests.harness.ledger import Audit, Books, audit
from tests.harness.processes import Actor, aggregator
from tests.waiting import eventually

pytestmark = [needs.mosquitto, pytest.mark.mosquitto]
TAKEN, OLD = 7, '"event": 8'
"""The exit code of a device whose name is taken; the event of an outbox that is an old copy of itself."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return device(tmp_path_factory.mktemp("device"))


@asynccontextmanager
async def playing(program: Path, folder: Path, books: Books) -> AsyncIterator[tuple[Fleet, LocalBroker, Actor]]:
    async with local_broker("mosquitto", directory=folder) as broker:
        service = aggregator(books, str(broker.endpoint), folder)
        await service.start()
        try:
            yield Fleet(program, books, folder, broker.endpoint.port), broker, service
        finally:
            service.send(signal.SIGTERM)
            await service.ended()


def further(fleet: Fleet, least: int) -> bool:
    return fleet.settled(0) >= least


def test_a_second_device_of_the_name_ends_and_the_first_goes_on(program: Path, tmp_path: Path) -> None:
    books = Books(devices=1, updates=40)

    async def play() -> tuple[int, int]:
        async with playing(program, tmp_path, books) as (fleet, _, _):
            first, second = fleet.actor(0, "pace=60"), fleet.actor(0, flash="other")
            await first.start()
            await eventually("the first trains", lambda: fleet.settled(0) > 2)
            await second.start()
            try:
                return await second.ended(), await first.ended()
            finally:
                await first.kill()
                await second.kill()

    assert asyncio.run(play()) == (TAKEN, 0)
    assert audit(tmp_path / "model.safetensors", tmp_path / "devices") == Audit(40, 0, 0, 40)


def test_an_outbox_that_was_put_back_takes_a_new_identity(program: Path, tmp_path: Path) -> None:
    """What it held was sent before, or another under its number was: it is dropped, and no number is used twice."""
    books = Books(devices=1, updates=30, pad=30)

    async def play() -> Actor:
        async with playing(program, tmp_path, books) as (fleet, _, _):
            actor = fleet.actor(0, "pace=40")
            await actor.start()
            await eventually("some are settled", lambda: fleet.settled(0) > 4)
            await actor.kill()
            shutil.copy(tmp_path / "flash-0", tmp_path / "copy")
            before = fleet.settled(0)
            await actor.start()
            await eventually("more are settled", lambda: fleet.settled(0) > before + 4)
            await actor.kill()
            shutil.copy(tmp_path / "copy", tmp_path / "flash-0")
            await actor.start()
            await eventually("it finds that out", lambda: OLD in actor.log.read_text())
            settled = fleet.settled(0)
            await eventually("and goes on", lambda: fleet.settled(0) > settled + 2)
            await actor.kill()
            return actor

    asyncio.run(play())
    text = (tmp_path / "devices" / "device-0.jsonl").read_text()
    assert len({line.split('"outbox": ')[1].split(",")[0] for line in text.splitlines()}) == 2


def test_a_broker_that_restarts_is_found_again(program: Path, tmp_path: Path) -> None:
    books = Books(devices=1, updates=60)

    async def play() -> int:
        async with playing(program, tmp_path, books) as (fleet, broker, _):
            actor = fleet.actor(0, "pace=40")
            await actor.start()
            try:
                for least in (5, 20):
                    await eventually("it goes on", partial(further, fleet, least))
                    broker.kill()
                    await broker.restart()
                return await actor.ended()
            finally:
                await actor.kill()

    assert asyncio.run(play()) == 0
    assert audit(tmp_path / "model.safetensors", tmp_path / "devices") == Audit(60, 0, 0, 60)
