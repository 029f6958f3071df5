"""Devices on MicroPython in a real federation: whatever is reset, each update counts once, on the heap of a board."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from tests.harness.ledger import Audit, Books
from tests.micropython.board import HEAP, PROGRAMS, code_bytes, compiled, run
from tests.micropython.federation import Board, federation
from tests.needs import micropython, mosquitto, mpy_cross
from tests.waiting import eventually

pytestmark = [micropython, mpy_cross, mosquitto]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("code"))


@pytest.mark.parametrize("codec", ["int8:256", "float32"])
async def test_updates_count_once(tmp_path: Path, code: Path, codec: str) -> None:
    """Of 600 places: float32 is offered and sent in chunks, int8 goes whole. In both a 1 is a 1."""
    books = Books(devices=2, updates=10, pad=580, codec=codec, chunk=1024, store=str(tmp_path / "store"))
    async with federation(books, tmp_path) as life:
        boards = [Board(life, number, code, HEAP + code_bytes(code)) for number in range(2)]
        for board in boards:
            await board.start()
        for board in boards:
            await board.ended()
            (last,) = board.events()
            assert last["counts"]["trained"] == last["counts"]["settled"] == 10
        assert await life.audit() == Audit(20, 0, 0, 20)


async def test_nothing_is_lost_or_doubled_by_resets(tmp_path: Path, code: Path) -> None:
    """Twelve times the process is killed, somewhere within some twenty updates' time."""
    books = Books(devices=1, updates=40, pad=200, codec="int8:256", chunk=1024, store=str(tmp_path / "store"))
    random = Random(7)
    async with federation(books, tmp_path) as life:
        board = Board(life, 0, code, HEAP + code_bytes(code))
        await board.start()
        for _ in range(12):
            await asyncio.sleep(random.uniform(0.02, 0.4))
            await board.reset()
        await board.ended()
        assert not [event for event in board.events() if event["event"] == "damaged"]
        assert await life.audit() == Audit(40, 0, 0, 40)


async def test_a_restart_of_the_aggregator_and_of_the_broker_is_survived(tmp_path: Path, code: Path) -> None:
    books = Books(devices=1, updates=60, codec="int8:256", chunk=1024, store=str(tmp_path / "store"))
    async with federation(books, tmp_path) as life:
        board = Board(life, 0, code, HEAP + code_bytes(code))
        await board.start()
        page = tmp_path / "devices" / "device-0.jsonl"
        for number in (10, 25, 40):
            while not page.exists() or len(page.read_bytes().splitlines()) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if number == 25:
                life.broker.kill()
                await life.broker.start()
            else:
                await life.aggregator.kill()
                await life.aggregator.start()
        await board.ended()
        assert await life.audit() == Audit(60, 0, 0, 60)


async def test_a_device_that_sleeps_deeply_keeps_its_place(tmp_path: Path, code: Path) -> None:
    """A cycle is a connection: settle, fetch what is new, train once, send, wait for the receipt, leave."""
    books = Books(devices=1, updates=6, codec="int8:256", chunk=1024, store=str(tmp_path / "store"))
    async with federation(books, tmp_path) as life:
        board = Board(life, 0, code, HEAP + code_bytes(code), 20)
        await board.start()
        await board.ended()
        (last,) = board.events()
        assert last["counts"] == {"version": 6, "trained": 6, "settled": 6, "forgot": 6}, (
            "six trainings, and no snapshot"
        )

        def states() -> list[str]:
            return [event["state"] for event in life.aggregator.events("device")]

        # The board has ended once the broker has its last status; the aggregator may not.
        await eventually("it has slept six times", lambda: states().count("sleeping") == 6)
        assert "lost" not in states()
        assert await life.audit() == Audit(6, 0, 0, 6)


@pytest.mark.parametrize("codec", ["int8:256", "uq:4|rice"])
async def test_a_power_cut_in_any_write_to_the_flash(tmp_path: Path, code: Path, codec: str) -> None:
    """Be it the outbox, the model or what error feedback keeps. In a small tensor, `uq` says a 1 as a 1."""
    books = Books(devices=1, updates=60, codec=codec, chunk=1024, store=str(tmp_path / "store"))
    async with federation(books, tmp_path) as life:
        (folder := tmp_path / "devices").mkdir()
        port = life.broker.endpoint.port
        words = (PROGRAMS / "cuts.py", port, books.updates, folder / "flash")
        done = await asyncio.to_thread(run, *words, code=code, heap=2**22, folder=folder)
        (last,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert last["cuts"] > 30
        assert last["counts"].get("damaged", 0) == 0
        assert await life.audit() == Audit(60, 0, 0, 60)
