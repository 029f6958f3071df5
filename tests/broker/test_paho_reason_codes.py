"""Every reason code that fits into a byte, in each packet that has one, through paho's own parser."""

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from midge.broker import BrokerError, ConnectionLost, PublishRefused, SubscribeRefused, connector
from midge.broker.embedded import packets
from midge.broker.embedded.packets import Packet
from midge.broker.mqtt.paho_reason_codes import CARRIERS, name_all_codes
from tests.broker.scripted import Answer, scripted
from tests.broker.test_paho_connection import welcome
from tests.broker.worlds import options, somewhere, take

CODES = range(256)
UNKNOWN = 0x95
"""In PUBACK and SUBACK; MQTT 5 has it, "Packet too large", in CONNACK and DISCONNECT only."""

RETURN_CODES = {
    1: "Unsupported protocol version",
    2: "Client identifier not valid",
    3: "Server unavailable",
    4: "Bad user name or password",
    5: "Not authorized",
}
"""Of MQTT 3.1.1; a broker that knows no other may answer a CONNECT of MQTT 5 with one."""


def answering(request: type[Packet], acknowledgement: int) -> Answer:
    """A broker that answers each request with the next reason code."""
    codes = iter(CODES)

    def answer(packet: Packet) -> bytes | None:
        if not isinstance(packet, request):
            return welcome()(packet)
        assert isinstance(packet, packets.Publish | packets.Subscribe | packets.Unsubscribe)
        code, no_properties = bytes([next(codes)]), b"\0"
        rest = code if acknowledgement == PacketTypes.PUBACK else no_properties + code
        return bytes([acknowledgement << 4, 2 + len(rest)]) + packet.packet_id.to_bytes(2, "big") + rest

    return answer


def name_of(packet: int, code: int) -> str:
    return str(ReasonCode(packet, identifier=code))


async def test_puback() -> None:
    broker = answering(packets.Publish, PacketTypes.PUBACK)
    async with scripted(broker) as server, connector(somewhere(server.port))(options()) as connection:
        for code in CODES:
            if code < 0x80:
                await connection.publish("t", b"")
                continue
            with pytest.raises(PublishRefused) as refused:
                await connection.publish("t", b"")
            assert refused.value.reason == code
            assert name_of(PacketTypes.PUBACK, code) in str(refused.value)
            if code == UNKNOWN:
                assert str(refused.value) == (
                    "The broker refused the message: reason 0x95: a message is larger than it takes; raise "
                    "message_size_limit or max_packet_size, or give smaller chunks."
                )


async def test_suback() -> None:
    broker = answering(packets.Subscribe, PacketTypes.SUBACK)
    async with scripted(broker) as server, connector(somewhere(server.port))(options()) as connection:
        for code in CODES:
            if code < 0x80:
                await connection.subscribe("t")
                continue
            with pytest.raises(SubscribeRefused) as refused:
                await connection.subscribe("t")
            assert f"({name_of(PacketTypes.SUBACK, code)})" in str(refused.value)
            if code == UNKNOWN:
                assert "(reason 0x95)" in str(refused.value)


async def test_unsuback() -> None:
    broker = answering(packets.Unsubscribe, PacketTypes.UNSUBACK)
    async with scripted(broker) as server, connector(somewhere(server.port))(options()) as connection:
        for _ in CODES:
            await connection.unsubscribe("t")


async def test_connack() -> None:
    """Whatever is not success refuses the connection, with the name of its reason."""
    code = 0

    def answer(packet: Packet) -> bytes | None:
        return packets.connack(packet.version, code) if isinstance(packet, packets.Connect) else welcome()(packet)

    async with scripted(answer) as server:
        connect = connector(somewhere(server.port))
        async with connect(options()) as connection:
            await connection.publish("t", b"")
        for code in CODES[1:]:
            with pytest.raises(BrokerError) as refused:
                async with connect(options()):
                    pass
            if code not in RETURN_CODES and code != 0x84:
                assert name_of(PacketTypes.CONNACK, code) in str(refused.value)
            if code in RETURN_CODES and code != 0x01:
                assert RETURN_CODES[code] in str(refused.value)
            assert [each.version for each in server.received if isinstance(each, packets.Connect)][-1] == (
                4 if code in {0x01, 0x84} else 5  # another version is wanted, and tried
            )


async def test_disconnect() -> None:
    async with scripted(welcome()) as server:
        for code in CODES:
            async with connector(somewhere(server.port))(options()) as connection:
                server.writers[-1].write(packets.disconnect(code))
                with pytest.raises(ConnectionLost) as lost:
                    await take(connection, 1)
            taken_over = code == 0x8E
            assert lost.value.taken_over == taken_over
            if not taken_over:
                assert f"ended the connection: {name_of(PacketTypes.DISCONNECT, code)}" in str(lost.value)


@pytest.mark.parametrize("packet", CARRIERS)
def test_names_are_found_by_code_and_codes_by_name(packet: int) -> None:
    """Also once the names have been completed twice."""
    name_all_codes()
    names = [name_of(packet, code) for code in CODES]
    assert [ReasonCode(packet, name).value for name in names] == list(CODES)
    assert names[0xFF] == "reason 0xFF"


def test_known_names_stay() -> None:
    assert name_of(PacketTypes.CONNACK, 0x95) == name_of(PacketTypes.DISCONNECT, 0x95) == "Packet too large"
