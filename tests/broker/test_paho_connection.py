"""What paho is made to do beyond what they do themselves, against a server that is told what to say."""

import asyncio
import socket
from dataclasses import replace

import pytest

from midge.broker import (
    BrokerRefused,
    BrokerUnreachable,
    Connection,
    ConnectionLost,
    Connector,
    Endpoint,
    PacketTooLarge,
    PublishRefused,
    SubscribeRefused,
    Will,
    connector,
)
from midge.broker.embedded import packets
from midge.broker.embedded.mqtt_types import Property, PropertyValue
from midge.broker.embedded.packets import Packet
from midge.broker.embedded.server import EmbeddedBroker
from midge.broker.mqtt.paho_connection import PACKETS_AT_ONCE
from midge.broker.mqtt.paho_session import PahoSession
from tests.broker.scripted import Answer, scripted
from tests.broker.worlds import options, somewhere, take
from tests.ports import free_port
from tests.waiting import LAST_RESORT


def welcome(
    found: dict[Property, PropertyValue] | None = None, *, puback: int | None = 0, suback: int = 1, code: int = 0
) -> Answer:
    """A broker that takes everybody in and answers everything as given."""

    def answer(packet: Packet) -> bytes | None:
        match packet:
            case packets.Connect():
                return packets.connack(packet.version, code, found=found)
            case packets.Publish(qos=1) if puback == 0:
                return packets.puback(packet.packet_id)
            case packets.Publish(qos=1) if puback is not None:
                return b"\x40\x03" + packet.packet_id.to_bytes(2, "big") + bytes([puback])
            case packets.Subscribe():
                return packets.suback(5, packet.packet_id, [suback] * len(packet.filters))
            case packets.Disconnect():
                return None
            case _:
                return b""

    return answer


def to(port: int) -> Connector:
    return connector(somewhere(port))


async def test_what_paho_has_queued_is_not_sent_by_a_connection_that_is_aborted() -> None:
    async with EmbeddedBroker() as broker, to(broker.port)(options()) as watcher:
        await watcher.subscribe("receipts")
        async with to(broker.port)(options(will=Will("receipts", b"lost"))) as dying:
            sending = [asyncio.create_task(dying.publish("receipts", b"decided")) for _ in range(3)]
            await asyncio.sleep(0)  # now paho has them, and writes them in the next turn of the loop
            dying.abort("It stood still.")
            for each in sending:
                with pytest.raises(ConnectionLost):
                    await each
        assert [each.payload for each in await take(watcher, 1)] == [b"lost"]


def make_impatient(connection: Connection) -> None:
    """Give up on what is not answered within a tenth of a second, now that the connection stands."""
    assert isinstance(connection, PahoSession)
    connection.options = replace(connection.options, timeout=0.1)


async def test_a_refusal_in_puback_is_raised() -> None:
    async with scripted(welcome(puback=0x87)) as server, to(server.port)(options()) as connection:
        with pytest.raises(PublishRefused, match="Not authorized") as refused:
            await connection.publish("t", b"")
        assert refused.value.reason == 0x87


async def test_a_reason_below_0x80_in_puback_is_success() -> None:
    async with scripted(welcome(puback=0x10)) as server, to(server.port)(options()) as connection:
        await connection.publish("t", b"nobody listens")


async def test_a_refused_subscription_is_raised() -> None:
    async with scripted(welcome(suback=0x87)) as server, to(server.port)(options()) as connection:
        with pytest.raises(SubscribeRefused, match=r"'t'.*Not authorized"):
            await connection.subscribe("t")


async def test_limits_are_read_from_connack() -> None:
    found: dict[Property, PropertyValue] = {
        Property.MAXIMUM_PACKET_SIZE: 5000,
        Property.RECEIVE_MAXIMUM: 7,
        Property.RETAIN_AVAILABLE: 0,
        Property.ASSIGNED_CLIENT_IDENTIFIER: "given",
    }
    async with scripted(welcome(found)) as server, to(server.port)(options()) as connection:
        limits = connection.limits
        assert (limits.protocol, limits.maximum_packet_size, limits.receive_maximum) == (5, 5000, 7)
        assert (limits.retain_available, limits.client_id) == (False, "given")


async def test_no_packet_is_larger_than_the_broker_takes() -> None:
    found: dict[Property, PropertyValue] = {Property.MAXIMUM_PACKET_SIZE: 5000}
    async with scripted(welcome(found)) as server, to(server.port)(options()) as connection:
        fits = 5000 - 3 - 2 - len("topic") - 2 - 1  # fixed header, topic's length, topic, packet id, properties
        await connection.publish("topic", bytes(fits))
        with pytest.raises(PacketTooLarge, match="5001 bytes"):
            await connection.publish("topic", bytes(fits + 1))
        await connection.publish("topic", b"still connected")
        assert [len(each.payload) for each in server.published()] == [fits, 15]


async def test_no_more_is_in_flight_than_the_broker_takes() -> None:
    held: list[int] = []

    def answer(packet: Packet) -> bytes | None:
        if isinstance(packet, packets.Publish):
            held.append(packet.packet_id)
            return b""
        return welcome({Property.RECEIVE_MAXIMUM: 2})(packet)

    async with scripted(answer) as server, to(server.port)(options()) as connection:
        publishing = [asyncio.create_task(connection.publish("t", b"%d" % number)) for number in range(6)]
        acknowledged = 0
        while acknowledged < len(publishing):
            await server.until(lambda: len(held) == min(acknowledged + 2, len(publishing)))  # noqa: B023
            await connection.subscribe("nothing came behind those two")
            assert len(held) == min(acknowledged + 2, len(publishing))
            server.writers[0].write(packets.puback(held[acknowledged]))
            await publishing[acknowledged]
            acknowledged += 1
        assert [each.payload for each in server.published()] == [b"%d" % number for number in range(6)]


async def test_a_publish_is_waited_for_without_a_deadline() -> None:
    async with scripted(welcome(puback=None)) as server, to(server.port)(options()) as connection:
        make_impatient(connection)
        publishing = asyncio.create_task(connection.publish("t", b""))
        await server.until(lambda: bool(server.published()))
        done, _ = await asyncio.wait([publishing], timeout=0.3)
        assert not done
        server.writers[0].write(packets.puback(server.published()[0].packet_id))
        await publishing


async def test_an_unanswered_subscribe_ends_the_connection() -> None:
    def answer(packet: Packet) -> bytes | None:
        return b"" if isinstance(packet, packets.Subscribe) else welcome()(packet)

    async with scripted(answer) as server, to(server.port)(options()) as connection:
        make_impatient(connection)
        with pytest.raises(ConnectionLost, match=r"SUBSCRIBE within 0.1 s"):
            await connection.subscribe("t")
        with pytest.raises(ConnectionLost):
            await take(connection, 1)


@pytest.mark.parametrize(
    "rubbish",
    [
        pytest.param(b"\xff\xff\xff\xff\xff\xff", id="no packet"),
        pytest.param(b"\x32\x01\x00", id="a PUBLISH cut short"),
        pytest.param(b"\x30\x05\x00\x01t\x01\x7f", id="an unknown property"),
        pytest.param(b"\x30\x06\x00\x02\xff\xfe\x00x", id="a topic that is not UTF-8"),
        pytest.param(b"\x90\x01\x00", id="a SUBACK cut short"),
    ],
)
async def test_rubbish_from_the_broker_ends_the_connection_only(rubbish: bytes) -> None:
    def answer(packet: Packet) -> bytes | None:
        return rubbish if isinstance(packet, packets.Publish) else welcome()(packet)

    async with scripted(answer) as server, to(server.port)(options()) as connection:
        with pytest.raises(ConnectionLost):
            await connection.publish("t", b"")
        with pytest.raises(ConnectionLost):
            await take(connection, 1)


async def test_an_older_broker_is_spoken_to_in_its_version() -> None:
    async with EmbeddedBroker(versions=[4]) as broker, to(broker.port)(options()) as connection:
        assert connection.limits.protocol == 4
        await _exchange(connection)


async def test_a_broker_that_hangs_up_on_mqtt_5_is_tried_with_3_1_1() -> None:
    def answer(packet: Packet) -> bytes | None:
        return None if isinstance(packet, packets.Connect) and packet.version == 5 else welcome()(packet)

    async with scripted(answer) as server, to(server.port)(options()) as connection:
        assert connection.limits.protocol == 4


async def test_a_broker_that_is_silent_on_mqtt_5_is_tried_with_3_1_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As amqtt 0.12.1 is. The time for an answer is over as soon as it begins, the first time; then it is as given."""
    seconds, timeout = iter([0.0]), asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda delay: timeout(next(seconds, delay)))

    def answer(packet: Packet) -> bytes | None:
        return b"" if isinstance(packet, packets.Connect) and packet.version == 5 else welcome()(packet)

    async with scripted(answer) as server, to(server.port)(options()) as connection:
        assert connection.limits.protocol == 4
        await connection.publish("t", b"")
        assert [packet.version for packet in server.received if isinstance(packet, packets.Connect)] == [5, 4]


async def _exchange(connection: Connection) -> None:
    await connection.subscribe("t")
    await connection.publish("t", b"payload", retain=True)
    (delivery,) = await take(connection, 1)
    assert (delivery.payload, delivery.qos) == (b"payload", 1)
    await connection.unsubscribe("t")


async def test_nothing_listens() -> None:
    with pytest.raises(BrokerUnreachable, match="Nothing listens at mqtt://127"):
        await _enter(to(free_port()))


async def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(BrokerUnreachable, match=r"'nowhere\.invalid' cannot be resolved"):
        await _enter(connector(Endpoint.parse("mqtt://nowhere.invalid")))


async def test_a_server_that_says_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(BrokerUnreachable, match=r"did not answer within 0.1 s"),
    ):
        await _enter(to(silent.getsockname()[1]), patience=0.1)


async def test_a_server_that_hangs_up() -> None:
    async with scripted(lambda _: None) as server:
        with pytest.raises(BrokerUnreachable, match="hung up"):
            await _enter(to(server.port))  # it is seen at once


async def test_a_broker_that_is_busy() -> None:
    async with scripted(welcome(code=0x89)) as server:
        with pytest.raises(BrokerUnreachable, match="try again later"):
            await _enter(to(server.port))


@pytest.mark.parametrize("version", [4, 5])
async def test_a_wrong_password(version: int) -> None:
    async with EmbeddedBroker(users={"anna": "right"}, versions=[version]) as broker:
        url = f"mqtt://127.0.0.1:{broker.port}"
        async with connector(Endpoint.parse(url, user="anna", password="right"))(options()) as connection:
            await _exchange(connection)
        with pytest.raises(BrokerRefused, match=r"user 'anna'.*check user and password") as refused:
            await _enter(connector(Endpoint.parse(url, user="anna", password="wrong")))
        assert "wrong" not in str(refused.value)
        with pytest.raises(BrokerRefused, match="anonymous"):
            await _enter(connector(Endpoint.parse(url)))


async def _enter(connect: Connector, patience: float = LAST_RESORT) -> None:
    async with connect(options(timeout=patience)):
        pytest.fail("it connected")


async def test_cancelling_while_connecting_leaves_nothing_open() -> None:
    async with scripted(lambda _: b"") as server:
        connecting = asyncio.create_task(_enter(to(server.port)))
        await server.until(lambda: bool(server.received))
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_many_connections_in_one_process() -> None:
    async with EmbeddedBroker() as broker:
        connect = to(broker.port)

        async def one(number: int) -> None:
            async with connect(options()) as connection:
                await connection.subscribe(f"own/{number}")
                await connection.publish(f"own/{number}", b"")
                await take(connection, 1)

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(one(number))


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 1000, 100_000])
async def test_packets_are_put_together_however_they_come(cut: int) -> None:
    """Small and large ones, many at once, in pieces of every size."""
    payloads = [b"small", bytes(3), bytes([1]) * 3_000_000, b"", *[b"one of many"] * 3 * PACKETS_AT_ONCE, b"last"]
    stream = b"".join(
        packets.publish_head(5, packets.Publish("t", payload, 1, packet_id=number)) + payload
        for number, payload in enumerate(payloads, 1)
    )
    pieces = [stream[at : at + cut] for at in range(0, min(len(stream), 400 * cut), cut)]
    pieces.append(stream[sum(map(len, pieces)) :])
    async with scripted(welcome()) as server, to(server.port)(options()) as connection:
        for piece in pieces:
            server.writers[0].write(piece)
            await asyncio.sleep(0)
        assert [each.payload for each in await take(connection, len(payloads))] == payloads
        await server.until(lambda: sum(isinstance(each, packets.Puback) for each in server.received) == len(payloads))
        acknowledged = [each.packet_id for each in server.received if isinstance(each, packets.Puback)]
        assert acknowledged == list(range(1, len(payloads) + 1))


async def test_what_does_not_fit_into_the_socket_at_once_is_sent_when_it_does() -> None:
    """The broker reads nothing until all is queued, and then more than a socket's buffer."""
    async with scripted(welcome()) as server, to(server.port)(options()) as connection:
        socket_of_the_broker = server.writers[0].transport
        assert isinstance(socket_of_the_broker, asyncio.Transport)
        socket_of_the_broker.pause_reading()
        bodies = [bytes([number]) * 2_000_000 for number in range(8)]
        publishing = [asyncio.create_task(connection.publish("t", body)) for body in bodies]
        await asyncio.sleep(0)
        socket_of_the_broker.resume_reading()
        await asyncio.gather(*publishing)
        assert [each.payload for each in server.published()] == bodies


async def test_a_broker_that_falls_silent_is_seen_by_the_keepalive() -> None:
    brief = replace(options(), keepalive=1)
    async with scripted(welcome()) as server, to(server.port)(brief) as connection:
        with pytest.raises(ConnectionLost, match="Keep alive timeout"):
            await take(connection, 1)
        assert any(isinstance(each, packets.Pingreq) for each in server.received)


async def test_of_a_payload_that_is_larger_than_any_of_ours_a_byte_is_kept() -> None:
    """Seen to fail: 500 messages of 0.9 MB on a broker without ACL cost an aggregator 107 MB, a window of them."""
    async with EmbeddedBroker() as broker:
        reader = to(broker.port)(replace(options(), largest=1000))
        async with reader as connection, to(broker.port)(options()) as other:
            await connection.subscribe("t")
            for payload in (bytes(1000), bytes(1001), b"after"):
                await other.publish("t", payload)
            taken = await take(connection, 3)
    assert [delivery.payload for delivery in taken] == [bytes(1000), b"\0", b"after"]
