"""The link of a board: TLS, clients of other makes, messages that it cannot hold or does not know, and its name."""

import asyncio
import json
import ssl
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from midge.broker import connector
from midge.broker.mqtt.connection import Options
from midge.wire import frames
from tests.broker.test_local import certificates
from tests.harness.ledger import Audit, Books
from tests.micropython.board import PROGRAMS, command, environment
from tests.micropython.federation import Federation, federation
from tests.needs import micropython, mosquitto
from tests.ports import free_port

pytestmark = [micropython, mosquitto]
UPDATES = 12


def _books(directory: Path, **others: Any) -> Books:
    return Books(**{"devices": 1, "updates": UPDATES, "chunk": 1024, "store": str(directory / "store"), **others})


async def _start(
    life: Federation, port: int, way: str, *rest: object, updates: int = UPDATES, flash: str = "0"
) -> Process:
    folder = life.directory / "devices"
    folder.mkdir(exist_ok=True)
    words = command(PROGRAMS / "linked.py", port, updates, folder / f"flash-{flash}", way, *rest, heap=2**20)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *words, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment(), cwd=folder
    )


async def _said(board: Process) -> list[dict[str, Any]]:
    text = (await board.communicate())[0].decode()
    assert board.returncode == 0, text
    return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def _tls(directory: Path, port: int) -> AsyncIterator[int]:
    """A port that speaks TLS, in front of one that does not."""
    files = certificates(directory)
    assert files.certfile is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certfile, files.keyfile)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, to_behind), carry(behind, writer))

    front = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", front, ssl=context):
        yield front


def _der(directory: Path, name: str) -> Path:
    """A certificate as boards take it."""
    words = ["openssl", "x509", "-in", f"{name}.pem", "-outform", "der", "-out", f"{name}.der"]
    subprocess.run(words, cwd=directory, check=True)
    return directory / f"{name}.der"


async def test_tls_with_a_certificate_that_is_checked(tmp_path: Path) -> None:
    async with federation(_books(tmp_path), tmp_path) as life, _tls(tmp_path, life.broker.endpoint.port) as port:
        board = await _start(life, port, "tls", _der(tmp_path, "ca"))
        (done,) = await _said(board)
        assert done["counts"]["settled"] == UPDATES
        assert (await life.audit()).applied == UPDATES


async def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    async with federation(_books(tmp_path), tmp_path) as life, _tls(tmp_path, life.broker.endpoint.port) as port:
        (other := tmp_path / "other").mkdir()
        certificates(other)
        board = await _start(life, port, "tls", _der(other, "ca"))
        assert board.stdout is not None
        event = json.loads(await board.stdout.readline())
        board.kill()
        await board.wait()
        assert event["event"] == "disconnected"
        assert "not correctly signed by the trusted CA" in event["why"]
        assert not life.aggregator.events("device")


async def test_the_client_of_umqtt_will_do(tmp_path: Path) -> None:
    async with federation(_books(tmp_path), tmp_path) as life:
        (done,) = await _said(await _start(life, life.broker.endpoint.port, "umqtt"))
        assert done["counts"]["settled"] == UPDATES
        assert (await life.audit()).applied == UPDATES


async def test_what_a_board_cannot_hold_or_does_not_know_is_passed_over(tmp_path: Path) -> None:
    """300 kB, nothing, damaged bytes, unknown kinds and fields; and what is told of a drop reaches the owner."""
    books = _books(tmp_path)
    async with federation(books, tmp_path) as life:
        receipt, status = "midge/1/ledger/receipt/device-0", "midge/1/ledger/aggregator"
        nasty = [
            (receipt, bytes(300_000)),
            (receipt, b""),
            (receipt, b"\x05"),
            (receipt, b"\xff\xff\x80"),
            (receipt, frames.encode({"kind": "wonder", "seq": 1})),
            (
                receipt,
                frames.encode({"kind": "trouble", "why": "slot '0' is not that of 'device-0'", "later": {"x": [1]}}),
            ),
            (receipt, frames.encode({"kind": "receipt", "outbox": 7, "hi": 10**9})),
            (receipt, frames.encode({"kind": "receipt", "outbox": "seven"})),
            (status, b"\x00\x00"),
            ("midge/1/ledger/model/train", b""),
            ("midge/1/ledger/model/train", frames.encode({"body": frames.encode({"kind": "announcement"})})),
        ]
        board = await _start(life, life.broker.endpoint.port, "plain", updates=UPDATES)
        async with connector(life.broker.endpoint)(Options(client_id="nasty")) as other:
            page = asyncio.create_task(_said(board))
            while not page.done():
                for topic, payload in nasty:
                    await other.publish(topic, payload)
                await asyncio.sleep(0.05)
        *events, done = await page
        assert done["counts"]["settled"] == UPDATES
        said = {event["event"] for event in events}
        assert said == {"trouble", "too_large", "damaged"}
        assert {event["why"] for event in events if event["event"] == "trouble"} == {
            "slot '0' is not that of 'device-0'"
        }
        assert await life.audit() == Audit(0, 0, 0, UPDATES), "pages are the other program's"


async def test_an_aggregator_cuts_its_model_to_what_a_board_takes(tmp_path: Path) -> None:
    """Its default is 256 KiB, of which a board of 1,100 bytes can make nothing until it was cut to it."""
    books = _books(tmp_path, chunk=256 * 1024, pad=8_000, codec="int8:256")
    async with federation(books, tmp_path) as life:
        *events, done = await _said(await _start(life, life.broker.endpoint.port, "plain"))
        assert done["counts"]["settled"] == UPDATES
        assert {event["event"] for event in events} <= {"unreachable", "too_large", "trouble"}
        assert (await life.audit()).applied == UPDATES


async def test_two_boards_of_one_name(tmp_path: Path) -> None:
    """The second one ends, with a sentence; seen to fail without the question."""
    books = _books(tmp_path, updates=5000)
    async with federation(books, tmp_path) as life:
        port = life.broker.endpoint.port
        first = await _start(life, port, "plain", updates=5000)
        page = life.aggregator.log
        while b'"ready"' not in page.read_bytes():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        second, *_ = await _said(await _start(life, port, "plain", updates=5000, flash="1"))
        assert second["event"] == "stopped"
        assert "give each device its own name" in second["why"]
        assert first.returncode is None
        first.kill()
        await first.communicate()
