"""Devices of the C client in a live federation: resets at random moments lose no update and double none."""

import asyncio
from pathlib import Path

import pytest

from tests import needs
from tests.c_client.compiled import device
from tests.c_client.federation import Fleet, played
from tests.harness.ledger import Audit, Books

pytestmark = [needs.mosquitto, pytest.mark.mosquitto]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return device(tmp_path_factory.mktemp("device"))


def balanced(found: tuple[Audit, Fleet]) -> None:
    books, fleet = found
    assert fleet.ended == dict.fromkeys(range(fleet.books.devices), 0), [
        fleet.actor(number).tail() for number in fleet.ended
    ]
    made = fleet.books.devices * fleet.books.updates
    assert books == Audit(accepted=made, lost=0, doubled=0, applied=made)


@pytest.mark.parametrize(("codec", "chunk"), [("float32", 256 * 1024), ("int8:256", 512)])
def test_resets_at_random_moments_lose_and_double_nothing(
    program: Path, tmp_path: Path, codec: str, chunk: int
) -> None:
    books = Books(devices=2, updates=60, codec=codec, chunk=chunk, pad=700, pause=20)
    found = asyncio.run(played(program, tmp_path, books, resets=12, pause=0.25))
    balanced(found)
    assert found[1].resets >= 12


def test_kills_of_the_aggregator_lose_and_double_nothing(program: Path, tmp_path: Path) -> None:
    books = Books(devices=2, updates=80, pause=50)
    balanced(asyncio.run(played(program, tmp_path, books, resets=3, pause=0.5, aggregator_kills=3)))


def test_parts_are_cut_to_what_the_receive_buffer_takes(program: Path, tmp_path: Path) -> None:
    """Chunks of 256 KiB, a model of which a snapshot alone is larger than the buffer, and a device that says so."""
    books = Books(devices=1, updates=12, codec="int8:256", pad=3900)
    balanced(asyncio.run(played(program, tmp_path, books, resets=2, pause=0.5)))
