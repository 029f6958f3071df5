import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midge.broker.embedded import packets
from midge.broker.embedded.mqtt_types import (
    MAX_VARINT,
    Property,
    PropertyValue,
    ProtocolError,
    Reader,
    Reason,
    properties,
    text,
    varint,
)
from midge.broker.embedded.packets import (
    Connect,
    Disconnect,
    Packet,
    Parser,
    Pingreq,
    Puback,
    Publish,
    Subscribe,
    Unsubscribe,
    Version,
)

VERSIONS = st.sampled_from([4, 5])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TOPICS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
PACKET_IDS = st.integers(1, 65535)


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def spell(sent: Packet, version: Version) -> bytes:
    """A client's side of the codec, for the tests."""
    none = b"\0" if version == 5 else b""
    match sent:
        case Connect():
            flags = sent.clean << 1
            payload = text(sent.client_id)
            if (will := sent.will) is not None:
                flags |= 4 | will.qos << 3 | will.retain << 5
                payload += none + text(will.topic) + struct.pack("!H", len(will.payload)) + will.payload
            if sent.user is not None:
                flags |= 0x80
                payload += text(sent.user)
            if sent.password is not None:
                flags |= 0x40
                payload += struct.pack("!H", len(sent.password)) + sent.password
            found = properties(sent.properties) if version == 5 else b""
            return packet(0x10, text("MQTT") + struct.pack("!BBH", version, flags, sent.keepalive) + found + payload)
        case Publish():
            return packets.publish_head(version, sent) + sent.payload
        case Puback():
            return packets.puback(sent.packet_id)
        case Subscribe():
            filters = b"".join(text(each) + bytes([options]) for each, options in sent.filters)
            return packet(0x82, struct.pack("!H", sent.packet_id) + none + filters)
        case Unsubscribe():
            return packet(0xA2, struct.pack("!H", sent.packet_id) + none + b"".join(map(text, sent.filters)))
        case Pingreq():
            return b"\xc0\0"
        case Disconnect():
            return b"\xe0\0" if version == 4 else packet(0xE0, bytes([sent.reason]))


@st.composite
def publishes(draw: st.DrawFn, version: Version) -> Publish:
    qos = draw(st.integers(0, 1))
    found: dict[Property, PropertyValue] = {}
    if version == 5:
        found = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    Property.PAYLOAD_FORMAT: st.integers(0, 1),
                    Property.MESSAGE_EXPIRY: st.integers(0, 2**32 - 1),
                    Property.CONTENT_TYPE: TEXT,
                    Property.CORRELATION_DATA: st.binary(max_size=9),
                    Property.USER_PROPERTY: st.tuples(TEXT, TEXT),
                },
            )
        )
    return Publish(
        topic=draw(TOPICS),
        payload=draw(st.binary(max_size=300)),
        qos=qos,
        retain=draw(st.booleans()),
        duplicate=bool(qos) and draw(st.booleans()),
        packet_id=draw(PACKET_IDS) if qos else 0,
        properties=properties(found)[1:],
    )


@st.composite
def connects(draw: st.DrawFn, version: Version) -> Connect:
    user = draw(st.none() | TEXT)
    will = draw(st.none() | st.builds(Publish, TOPICS, st.binary(max_size=9), st.integers(0, 1), st.booleans()))
    found: dict[Property, PropertyValue] = {}
    if version == 5:
        found = draw(st.sampled_from([{}, {Property.RECEIVE_MAXIMUM: 3}, {Property.SESSION_EXPIRY: 0}]))
    return Connect(
        version=version,
        client_id=draw(TEXT),
        clean=draw(st.booleans()),
        keepalive=draw(st.integers(0, 65535)),
        will=will,
        user=user,
        password=draw(st.none() | st.binary(max_size=9)) if user is not None or version == 5 else None,
        properties=found,
    )


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Version, list[Packet]]:
    """A CONNECT and what a client may send after it."""
    version: Version = 5 if draw(VERSIONS) == 5 else 4
    options = st.integers(0, 2)
    following = st.one_of(
        publishes(version),
        st.builds(Puback, PACKET_IDS),
        st.builds(Subscribe, PACKET_IDS, st.lists(st.tuples(TOPICS, options), min_size=1, max_size=3).map(tuple)),
        st.builds(Unsubscribe, PACKET_IDS, st.lists(TOPICS, min_size=1, max_size=3).map(tuple)),
        st.just(Pingreq()),
        st.builds(Disconnect, st.just(0) if version == 4 else st.sampled_from([0, 4])),
    )
    return version, [draw(connects(version)), *draw(st.lists(following, max_size=5))]


@given(session=sessions(), data=st.data())
def test_packets_come_back_however_the_stream_is_cut(
    session: tuple[Version, list[Packet]], data: st.DataObject
) -> None:
    version, sent = session
    stream = b"".join(spell(each, version) for each in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = Parser(1 << 20)
    received: list[Packet] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += parser.feed(stream[start:end])
    assert received == sent


@given(session=sessions())
def test_packets_come_back_byte_by_byte(session: tuple[Version, list[Packet]]) -> None:
    version, sent = session
    parser = Parser(1 << 20)
    stream = b"".join(spell(each, version) for each in sent)
    assert [each for byte in stream for each in parser.feed(bytes([byte]))] == sent


@given(data=st.binary(max_size=60))
@example(b"\x10\xff\xff\xff\xff")
@example(b"\x10\x0c\0\4MQTT\5\2\0\0\0\0\0")
def test_any_bytes_are_packets_or_a_protocol_error(data: bytes) -> None:
    feed(Parser(1 << 20), data)


@given(version=VERSIONS, first=st.integers(0, 255), body=st.binary(max_size=60))
def test_any_body_is_a_packet_or_a_protocol_error(version: Version, first: int, body: bytes) -> None:
    feed(connected(version), packet(first, body))


@given(session=sessions(), data=st.data())
def test_a_damaged_stream_is_packets_or_a_protocol_error(
    session: tuple[Version, list[Packet]], data: st.DataObject
) -> None:
    version, sent = session
    stream = bytearray(b"".join(spell(each, version) for each in sent))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    feed(Parser(1 << 20), bytes(stream))


def feed(parser: Parser, data: bytes) -> list[Packet]:
    received = []
    try:
        for each in parser.feed(data):
            received.append(each)  # noqa: PERF402  # those before the error count
    except ProtocolError as error:
        assert error.reason >= 0x80  # noqa: PT017  # an error is allowed, not wanted
    return received


def connected(version: Version) -> Parser:
    parser = Parser(1 << 20)
    list(parser.feed(spell(Connect(version, "id", clean=True, keepalive=0), version)))
    return parser


@pytest.mark.parametrize(
    ("version", "data", "reason"),
    [
        (4, b"\x10\0", Reason.PROTOCOL_ERROR),  # a second CONNECT
        (4, b"\x34\6\0\1t\0\1x", Reason.QOS_NOT_SUPPORTED),
        (4, b"\x36\6\0\1t\0\1x", Reason.MALFORMED_PACKET),  # QoS 3
        (4, b"\x38\3\0\1t", Reason.MALFORMED_PACKET),  # a duplicate at QoS 0
        (4, b"\x32\5\0\1t\0\0", Reason.PROTOCOL_ERROR),  # packet id 0
        (4, b"\x30\3\0\1+", Reason.TOPIC_NAME_INVALID),
        (4, b"\x30\2\0\0", Reason.TOPIC_NAME_INVALID),
        (4, b"\x30\3\0\1\xff", Reason.MALFORMED_PACKET),
        (4, b"\x30\3\0\1\0", Reason.MALFORMED_PACKET),
        (5, b"\x30\7\0\1t\3\x23\0\1", Reason.TOPIC_ALIAS_INVALID),
        (5, b"\x30\x08\0\1t\4\1\0\1\0", Reason.PROTOCOL_ERROR),  # a property twice
        (5, b"\x30\6\0\1t\2\1\2", Reason.PROTOCOL_ERROR),  # a flag of 2
        (5, b"\x30\6\0\1t\2\x25\1", Reason.PROTOCOL_ERROR),  # a property of another packet
        (4, b"\x80\6\0\1\0\1t\0", Reason.MALFORMED_PACKET),  # SUBSCRIBE with the wrong flags
        (4, b"\x82\2\0\1", Reason.PROTOCOL_ERROR),
        (4, b"\x82\6\0\1\0\1t\3", Reason.MALFORMED_PACKET),
        (4, b"\x82\6\0\1\0\1t\4", Reason.MALFORMED_PACKET),  # an option of MQTT 5
        (4, b"\x82\x0a\0\1\0\5#/bad\0", Reason.TOPIC_FILTER_INVALID),
        (5, b"\x82\x09\0\1\2\x0b\1\0\1t\0", Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
        (4, b"\xc0\1\0", Reason.MALFORMED_PACKET),
        (4, b"\x50\2\0\1", Reason.PROTOCOL_ERROR),  # PUBREC
        (4, b"\xf0\0", Reason.PROTOCOL_ERROR),  # AUTH
        (4, b"\x30\xff\xff\xff\x7f", Reason.PACKET_TOO_LARGE),
        (4, b"\x30\xff\xff\xff\xff", Reason.MALFORMED_PACKET),
    ],
)
def test_what_a_client_may_not_send(version: Version, data: bytes, reason: Reason) -> None:
    with pytest.raises(ProtocolError) as wrong:
        list(connected(version).feed(data))
    assert wrong.value.reason == reason


@pytest.mark.parametrize(
    ("name", "level", "flags"),
    [(b"MQTT", 3, 2), (b"MQIsdp", 3, 2), (b"HTTP", 4, 2), (b"MQTT", 4, 3), (b"MQTT", 4, 0x1A), (b"MQTT", 4, 0x42)],
)
def test_a_connect_that_is_none(name: bytes, level: int, flags: int) -> None:
    body = struct.pack("!H", len(name)) + name + bytes([level, flags, 0, 0]) + text("id")
    with pytest.raises(ProtocolError):
        list(Parser(1000).feed(packet(0x10, body)))


def test_the_first_packet_is_connect() -> None:
    with pytest.raises(ProtocolError, match="not CONNECT"):
        list(Parser(1000).feed(b"\xc0"))


@given(value=st.integers(0, MAX_VARINT))
def test_lengths_come_back(value: int) -> None:
    assert Reader(memoryview(varint(value))).varint() == value


@pytest.mark.parametrize("data", [b"\x80\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\1", b"\x80"])
def test_a_length_is_spelled_in_one_way(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Reader(memoryview(data)).varint()


def test_a_slow_giant_is_not_parsed_again_for_every_byte() -> None:
    parser = connected(4)
    body = text("t") + bytes(500_000)
    stream = packet(0x30, body)
    pieces = [stream[start : start + 100] for start in range(0, len(stream), 100)]
    received = [each for piece in pieces for each in parser.feed(piece)]
    assert received == [Publish("t", bytes(500_000))]
