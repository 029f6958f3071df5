"""What a server sends, read by a client: what the broker's own writer makes, and any other bytes."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker import ConnectionLost, client_packets, packets
from broker.client_packets import Connack, Disconnect, Greeting, Message, Puback, Suback
from broker.direct_connection import BUFFER
from broker.fields import Property, ProtocolError
from broker.packets import Parser, Publish, Version
from tests.broker.scripted import scripted
from tests.broker.test_libraries import to, welcome
from tests.broker.worlds import options, take

VERSIONS = st.sampled_from([4, 5])


def read(data: bytes, version: Version) -> client_packets.Packet:
    found = client_packets.measure(bytearray(data), 0, len(data))
    assert found is not None and found[1] == len(data)
    return client_packets.decode(data[0], memoryview(data)[found[0] :], version)


@given(VERSIONS, st.binary(max_size=300), st.integers(0, 1), st.booleans(), st.integers(1, 65535), st.booleans())
def test_a_message_is_read_as_it_was_written(  # noqa: PLR0917 - what hypothesis draws
    version: Version, payload: bytes, qos: int, retain: bool, number: int, more: bool
) -> None:
    number = number if qos else 0
    properties = b"\x02\0\0\0\x09" if more and version == 5 else b""
    publish = Publish("t/ö", payload, qos, retain, False, number, properties)
    data = packets.publish_head(version, publish) + payload
    assert read(data, version) == Message("t/ö", payload, qos, retain, False, number)


@given(VERSIONS)
def test_answers_are_read_as_they_were_written(version: Version) -> None:
    assert read(packets.puback(7), version) == Puback(7, 0)
    assert read(packets.suback(version, 9, [1, 0x87]), version) == Suback(9, (1, 0x87))
    assert read(packets.connack(version, 0), version) == Connack(0, {})
    assert read(packets.PINGRESP, version) == client_packets.Pingresp()
    if version == 5:
        found = {Property.RECEIVE_MAXIMUM: 3}
        assert read(packets.connack(5, 0, found=found), 5) == Connack(0, found)
        assert read(packets.disconnect(0x8E), 5) == Disconnect(0x8E)


@given(VERSIONS, st.binary(min_size=1, max_size=80))
@example(5, b"\x30")
@example(4, b"\x32\xff\xff\xff")
def test_any_other_bytes_end_in_an_error_of_the_protocol(version: Version, data: bytes) -> None:
    with suppress(ProtocolError):
        client_packets.decode(data[0], memoryview(data)[1:], version)


@given(st.binary(min_size=1, max_size=8))
def test_a_length_is_measured_or_not_yet_there(data: bytes) -> None:
    try:
        found = client_packets.measure(bytearray(data), 0, len(data))
    except ProtocolError:
        assert len(data) >= 5 and all(byte >= 0x80 for byte in data[1:5])
    else:
        assert (found is None) == (not any(byte < 0x80 for byte in data[1:5]))


@given(VERSIONS, st.booleans(), st.booleans())
def test_a_server_reads_what_a_client_writes(version: Version, will: bool, password: bool) -> None:
    greeting = Greeting(
        30, 200, ("w", b"gone", 1, True) if will else None, "u" if password else None, "p" if password else None
    )
    written = b"".join(
        (
            client_packets.connect(version, "c", greeting),
            client_packets.subscribe(version, 3, ("a", "b/+"), 1),
            client_packets.unsubscribe(version, 4, ("a",)),
            client_packets.PINGREQ,
            client_packets.GOODBYE,
        )
    )
    connect, *others = Parser(10**6).feed(written)
    assert isinstance(connect, packets.Connect)
    assert (connect.client_id, connect.clean, connect.keepalive, connect.version) == ("c", True, 30, version)
    assert connect.will == (Publish("w", b"gone", 1, retain=True) if will else None)
    assert (connect.user, connect.password) == (("u", b"p") if password else (None, None))
    assert others == [
        packets.Subscribe(3, (("a", 1), ("b/+", 1))),
        packets.Unsubscribe(4, ("a",)),
        packets.Pingreq(),
        packets.Disconnect(),
    ]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000, BUFFER - 1, BUFFER + 1])
async def test_packets_are_put_together_however_they_come(cut: int) -> None:
    """Small and large ones, one larger than the buffer, in pieces of every size."""
    payloads = [b"small", bytes(3), bytes([1]) * (3 * BUFFER), b"", bytes([2]) * (BUFFER - 9), b"last"]
    stream = b"".join(
        packets.publish_head(5, Publish("t", payload, 1, packet_id=number + 1)) + payload
        for number, payload in enumerate(payloads)
    )
    pieces = [stream[at : at + cut] for at in range(0, min(len(stream), 400 * cut), cut)]
    pieces.append(stream[sum(map(len, pieces)) :])
    async with scripted(welcome()) as server, to(server.port, "direct")(options()) as connection:
        for piece in pieces:
            server.writers[0].write(piece)
            await asyncio.sleep(0)
        assert [each.payload for each in await take(connection, len(payloads))] == payloads
        await server.until(lambda: sum(isinstance(each, packets.Puback) for each in server.received) == len(payloads))
        acked = [each.packet_id for each in server.received if isinstance(each, packets.Puback)]
        assert acked == list(range(1, len(payloads) + 1))


async def test_a_broker_that_falls_silent_is_seen_by_the_keepalive() -> None:
    brief = replace(options(), keepalive=1)
    async with scripted(welcome()) as server, to(server.port, "direct")(brief) as connection:
        with pytest.raises(ConnectionLost, match="nothing came"):
            await take(connection, 1)
        await server.until(lambda: any(isinstance(each, packets.Pingreq) for each in server.received))
