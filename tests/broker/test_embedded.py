"""The embedded broker where the contract suite does not look: raw bytes, kept sessions, slow and hostile peers."""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from midge.broker import Endpoint, connector
from midge.broker.embedded import client as embedded_client
from midge.broker.embedded.mqtt_types import text, varint
from midge.broker.embedded.server import EmbeddedBroker
from tests.broker.worlds import options, somewhere, take
from tests.waiting import LAST_RESORT


class Raw:
    """A client that sends what it is told and sees the bytes that come back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, first: int, body: bytes = b"") -> None:
        self.writer.write(bytes([first]) + varint(len(body)) + body)

    def connect(
        self, client_id: str = "raw", *, flags: int = 2, keepalive: int = 0, version: int = 4, found: bytes = b""
    ) -> None:
        middle = varint(len(found)) + found if version == 5 else b""
        self.send(
            0x10, text("MQTT") + bytes([version, flags]) + struct.pack("!H", keepalive) + middle + text(client_id)
        )

    async def receive(self) -> tuple[int, bytes]:
        async with asyncio.timeout(LAST_RESORT):
            first = (await self.reader.readexactly(1))[0]
            length = shift = 0
            while True:
                byte = (await self.reader.readexactly(1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return first, await self.reader.readexactly(length)

    async def closed(self) -> bytes:
        """What still comes until the broker hangs up."""
        async with asyncio.timeout(LAST_RESORT):
            return await self.reader.read()


@asynccontextmanager
async def raw(broker: EmbeddedBroker) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


SUBSCRIBE = b"\0\1" + text("t") + b"\1"


async def test_a_kept_session_gets_what_it_missed_and_what_it_did_not_acknowledge() -> None:
    async with EmbeddedBroker() as broker, connector(somewhere(broker.port))(options()) as sender:
        async with raw(broker) as client:
            client.connect(flags=0)
            assert await client.receive() == (0x20, b"\0\0")
            client.send(0x82, SUBSCRIBE)
            assert await client.receive() == (0x90, b"\0\1\1")
            await sender.publish("t", b"held")
            assert await client.receive() == (0x32, text("t") + b"\0\1held")
            client.send(0xE0)
            assert await client.closed() == b""
        await sender.publish("t", b"missed")
        async with raw(broker) as client:
            client.connect(flags=0)
            assert await client.receive() == (0x20, b"\1\0")
            assert await client.receive() == (0x3A, text("t") + b"\0\1held")
            assert await client.receive() == (0x32, text("t") + b"\0\2missed")


async def test_a_session_of_mqtt_5_expires() -> None:
    async with EmbeddedBroker() as broker:
        for found, present in ((b"\x11\0\0\0\0", 0), (b"\x11\0\1\0\0", 0), (b"", 1), (b"", 0)):
            async with raw(broker) as client:
                client.connect(flags=0, version=5, found=found)
                _, body = await client.receive()
                assert body[0] == present
                client.send(0xE0)
                await client.closed()


async def test_silence_beyond_the_keepalive_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_client, "KEEPALIVE_PATIENCE", 0.05)
    async with EmbeddedBroker() as broker, raw(broker) as client:
        client.connect(keepalive=1, version=5)
        await client.receive()
        assert await client.closed() == b"\xe0\1\x8d"


async def test_a_peer_that_never_connects_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_client, "CONNECT_TIMEOUT", 0.05)
    async with EmbeddedBroker() as broker, raw(broker) as client:
        assert await client.closed() == b""


@pytest.mark.parametrize(
    ("send", "answer"),
    [
        pytest.param(lambda each: each.connect(version=3), b"\x20\2\0\1", id="an old protocol"),
        pytest.param(lambda each: each.connect(client_id="", flags=0), b"\x20\2\0\2", id="no client id to keep"),
        pytest.param(lambda each: each.send(0xC0), b"", id="no CONNECT"),
        pytest.param(lambda each: each.writer.write(b"GET / HTTP/1.1\r\n\r\n"), b"", id="HTTP"),
        pytest.param(lambda each: each.writer.write(b"\x10\xff\xff\xff\x7f"), b"", id="a giant"),
    ],
)
async def test_a_peer_that_is_not_let_in(send: Callable[[Raw], None], answer: bytes) -> None:
    async with EmbeddedBroker(maximum_packet_size=1000) as broker, raw(broker) as client:
        send(client)
        assert await client.closed() == answer


@pytest.mark.parametrize(
    ("first", "body", "reason"),
    [
        pytest.param(0x34, text("t") + b"\0\1\0", 0x9B, id="QoS 2"),
        pytest.param(0x30, text("t") + bytes(1000), 0x95, id="too large"),
        pytest.param(0x30, text("+") + b"\0", 0x90, id="a wildcard"),
        pytest.param(0x10, b"", 0x82, id="a second CONNECT"),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_and_its_will_published(
    first: int, body: bytes, reason: int
) -> None:
    async with (
        EmbeddedBroker(maximum_packet_size=1000) as broker,
        connector(somewhere(broker.port))(options()) as watcher,
        raw(broker) as client,
    ):
        await watcher.subscribe("will")
        will = b"\0" + text("will") + b"\0\1x"
        client.send(0x10, text("MQTT") + bytes([5, 6, 0, 0, 0]) + text("dying") + will)
        await client.receive()
        client.send(first, body)
        assert await client.closed() == bytes([0xE0, 1, reason])
        assert [each.payload for each in await take(watcher, 1)] == [b"x"]


async def test_refused_subscriptions() -> None:
    async with EmbeddedBroker() as broker, raw(broker) as client:
        client.connect(version=5)
        await client.receive()
        filters = text("$share/group/t") + b"\1" + text("t") + b"\2" + text("no local") + b"\5"
        client.send(0x82, b"\0\1\0" + filters)
        assert await client.receive() == (0x90, b"\0\1\0\x9e\1\x83")


async def test_a_message_larger_than_a_client_takes_is_left_out_for_it() -> None:
    async with EmbeddedBroker() as broker, connector(somewhere(broker.port))(options()) as sender, raw(broker) as small:
        small.connect(version=5, found=b"\x27\0\0\0\x64\x21\0\1")  # packets of 100 bytes, one at a time
        await small.receive()
        small.send(0x82, b"\0\1\0" + text("t") + b"\1")
        await small.receive()
        for payload in (b"held", bytes(101), b"fits"):
            await sender.publish("t", payload)
        first, body = await small.receive()
        assert (first, body[-4:]) == (0x32, b"held")
        small.send(0x40, b"\0\1")
        first, body = await small.receive()
        assert (first, body[-4:]) == (0x32, b"fits")


async def test_properties_are_handed_on() -> None:
    async with EmbeddedBroker() as broker, raw(broker) as client:
        client.connect(version=5)
        await client.receive()
        client.send(0x82, b"\0\1\0" + text("t") + b"\0")
        await client.receive()
        found = b"\x03" + text("text/plain") + b"\x26" + text("key") + text("value")
        sent = text("t") + varint(len(found)) + found + b"payload"
        client.send(0x30, sent)
        assert await client.receive() == (0x30, sent)


async def test_a_client_that_reads_nothing_costs_bounded_memory() -> None:
    async with (
        EmbeddedBroker(maximum_buffered=1_000_000) as broker,
        connector(somewhere(broker.port))(options()) as sender,
        raw(broker) as stalled,
    ):
        stalled.connect("stalled", version=5, found=b"\x21\xff\xff")
        await stalled.receive()
        stalled.send(0x82, b"\0\1\0" + text("t") + b"\1")
        await stalled.receive()
        transport = stalled.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        client = broker._clients["stalled"]
        for _ in range(200):
            await sender.publish("t", bytes(256 * 1024))
            assert client._outgoing_bytes <= 1_000_000
            if "stalled" not in broker._clients:
                break
        else:
            pytest.fail("a client that reads nothing was kept")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "midge.broker.embedded.server", "--port", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize("end", ["standard input", "SIGTERM"])
async def test_the_process_says_where_it_serves_and_ends(end: str) -> None:
    process = start()
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        where = json.loads(process.stdout.readline())
        async with connector(Endpoint.parse(f"mqtt://{where['host']}:{where['port']}"))(options()) as connection:
            await connection.publish("t", b"")
            if end == "SIGTERM":
                process.send_signal(signal.SIGTERM)
            else:
                process.stdin.close()
            assert process.wait(timeout=LAST_RESORT) == 0


def test_a_port_that_is_taken_is_said_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = subprocess.run(
            [sys.executable, "-m", "midge.broker.embedded.server", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"The broker cannot listen at 127.0.0.1:{port}: ")
    assert answer.stderr.count("\n") == 1
