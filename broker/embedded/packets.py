"""MQTT 3.1.1 and 5 packets from a server's point of view. Pure.

Any bytes decode to packets or raise `ProtocolError`. QoS 2, topic aliases, subscription identifiers, shared
subscriptions and enhanced authentication are not offered; CONNACK says so, and a client that uses them nevertheless
gets a reason code.

Reading: `Parser.feed`. Writing: functions that return bytes; `publish_head` leaves the payload out, so that one payload
can be sent to many without a copy.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from midge.broker.embedded.mqtt_types import (
    Property,
    PropertyValue,
    ProtocolError,
    Reader,
    Reason,
    properties,
    text,
    varint,
)
from midge.broker.mqtt.topic_filters import check_filter, check_topic

Version = Literal[4, 5]
"""4 is MQTT 3.1.1."""

LARGEST = 268_435_460
"""The largest packet in MQTT, in bytes with its fixed header."""

_PUBLISH_PROPERTIES = frozenset(
    {
        Property.PAYLOAD_FORMAT,
        Property.MESSAGE_EXPIRY,
        Property.CONTENT_TYPE,
        Property.RESPONSE_TOPIC,
        Property.CORRELATION_DATA,
        Property.USER_PROPERTY,
    }
)
_WILL_PROPERTIES = _PUBLISH_PROPERTIES | {Property.WILL_DELAY}
_CONNECT_PROPERTIES = frozenset(
    {
        Property.SESSION_EXPIRY,
        Property.AUTHENTICATION_METHOD,
        Property.AUTHENTICATION_DATA,
        Property.REQUEST_PROBLEM,
        Property.REQUEST_RESPONSE,
        Property.RECEIVE_MAXIMUM,
        Property.TOPIC_ALIAS_MAXIMUM,
        Property.USER_PROPERTY,
        Property.MAXIMUM_PACKET_SIZE,
    }
)
_SUBSCRIBE_PROPERTIES = frozenset({Property.SUBSCRIPTION_IDENTIFIER, Property.USER_PROPERTY})
_UNSUBSCRIBE_PROPERTIES = frozenset({Property.USER_PROPERTY})
_ACK_PROPERTIES = frozenset({Property.REASON_STRING, Property.USER_PROPERTY})
_DISCONNECT_PROPERTIES = frozenset(
    {Property.SESSION_EXPIRY, Property.SERVER_REFERENCE, Property.REASON_STRING, Property.USER_PROPERTY}
)


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; also the will inside CONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int = 0
    """0 at QoS 0."""
    properties: bytes = b""
    """Encoded, without their length: they are forwarded unread."""


@dataclass(frozen=True, slots=True)
class Connect:
    """The first packet of a connection."""

    version: Version
    client_id: str
    clean: bool
    keepalive: int
    will: Publish | None = None
    user: str | None = None
    password: bytes | None = field(default=None, repr=False)
    properties: Mapping[Property, PropertyValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Puback:
    """Acknowledges a message, whether accepted or refused."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Filters, each with its option byte: bits 0 and 1 are the QoS."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Filters to unsubscribe from."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pingreq:
    """Keepalive ping."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Normal end. With reason 0x04 the will is published nevertheless."""

    reason: int = 0
    session_expiry: int | None = None


Packet = Connect | Publish | Puback | Subscribe | Unsubscribe | Pingreq | Disconnect

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 10, 12, 14
_FLAGS = {CONNECT: 0, PUBACK: 0, SUBSCRIBE: 2, UNSUBSCRIBE: 2, PINGREQ: 0, DISCONNECT: 0}


class Parser:
    """Splits a stream of bytes into packets. After a `ProtocolError` it must not be fed again."""

    def __init__(self, maximum_packet_size: int) -> None:
        """Start before CONNECT.

        Args:
            maximum_packet_size: the largest packet, in bytes, with its fixed header.
        """
        self.version: Version | None = None
        """The version in CONNECT; None before."""
        self._maximum = maximum_packet_size
        self._kept = bytearray()
        """The beginning of an incomplete packet."""
        self._wanted = 2
        """Bytes needed before parsing is worth another try."""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Packet]:
        """Yield the packets that `data` completes.

        Raises:
            ProtocolError: the peer violated the protocol; packets before that have been yielded.
        """
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            data, self._kept = self._kept, bytearray()
        view = memoryview(data).toreadonly()
        start = 0
        while start < len(view):
            length, size = self._measure(view[start : start + 5])
            if size is None or start + size > len(view):
                self._wanted = 2 if size is None else size
                self._kept = bytearray(view[start:])
                return
            yield self._decode(view[start], view[start + length : start + size])
            start += size

    def _measure(self, head: memoryview) -> tuple[int, int | None]:
        """The lengths of a packet's fixed header and of the packet; None if the header is incomplete."""
        if self.version is None and head[0] != CONNECT << 4:
            raise ProtocolError("The first packet is not CONNECT.", Reason.PROTOCOL_ERROR)
        remaining = 0
        for index, byte in enumerate(head[1:]):
            remaining |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                size = 2 + index + remaining
                if size > self._maximum:
                    raise ProtocolError(f"A packet of {size} bytes is too large.", Reason.PACKET_TOO_LARGE)
                return 2 + index, size
        if len(head) == 5:
            raise ProtocolError("A packet's length is not spelled as MQTT spells lengths.")
        return 0, None

    def _decode(self, first: int, body: memoryview) -> Packet:
        if (self.version is None) != (first >> 4 == CONNECT):
            raise ProtocolError("CONNECT is the first packet, and comes once.", Reason.PROTOCOL_ERROR)
        packet = decode(first, body, self.version or 4)
        if isinstance(packet, Connect):
            self.version = packet.version
        return packet


def decode(first: int, body: memoryview, version: Version) -> Packet:
    """Decode one packet from its first byte and what follows its fixed header.

    Raises:
        ProtocolError: it is not one that a client may send.
    """
    kind, flags = first >> 4, first & 0x0F
    if kind == PUBLISH:
        return _publish(flags, Reader(body), version)
    if kind not in _FLAGS:
        raise ProtocolError(f"Packets of type {kind} are not taken here.", Reason.PROTOCOL_ERROR)
    if flags != _FLAGS[kind]:
        raise ProtocolError(f"A packet of type {kind} has the flags {flags}.")
    reader = Reader(body)
    packet: Packet
    match kind:
        case 1:
            packet = _connect(reader)
        case 4:
            packet = _puback(reader, version)
        case 8:
            packet = _subscribe(reader, version)
        case 10:
            packet = _unsubscribe(reader, version)
        case 12:
            packet = Pingreq()
        case _:
            packet = _disconnect(reader, version)
    if reader.left:
        raise ProtocolError("A packet continues after its last field.")
    return packet


def _topic(topic: str) -> str:
    try:
        return check_topic(topic)
    except ValueError as error:
        raise ProtocolError(str(error), Reason.TOPIC_NAME_INVALID) from None


def _filter(topic_filter: str) -> str:
    try:
        return check_filter(topic_filter)
    except ValueError as error:
        raise ProtocolError(str(error), Reason.TOPIC_FILTER_INVALID) from None


def _publish(flags: int, reader: Reader, version: Version) -> Publish:
    qos = flags >> 1 & 3
    duplicate = bool(flags & 8)
    if qos == 3 or (duplicate and qos == 0):
        raise ProtocolError("A PUBLISH has flags that cannot be.")
    if qos == 2:
        raise ProtocolError("QoS 2 is not offered.", Reason.QOS_NOT_SUPPORTED)
    topic = reader.text()
    packet_id = reader.packet_id() if qos else 0
    raw = b""
    if version == 5:
        start = reader.position
        found = reader.properties(_PUBLISH_PROPERTIES | {Property.TOPIC_ALIAS})
        if Property.TOPIC_ALIAS in found:
            raise ProtocolError("Topic aliases are not offered.", Reason.TOPIC_ALIAS_INVALID)
        length = Reader(reader.since(start))
        length.varint()
        raw = bytes(length.take(length.left))
    return Publish(_topic(topic), bytes(reader.take(reader.left)), qos, bool(flags & 1), duplicate, packet_id, raw)


def _connect(reader: Reader) -> Connect:
    name, level = reader.binary(), reader.u8()
    if (name, level) not in {(b"MQTT", 4), (b"MQTT", 5)}:
        raise ProtocolError(
            f"Protocol {name[:16]!r} {level} is not offered: MQTT 3.1.1 and 5 are.", Reason.UNSUPPORTED_PROTOCOL_VERSION
        )
    version: Version = 5 if level == 5 else 4
    flags, keepalive = reader.u8(), reader.u16()
    will_qos = flags >> 3 & 3
    if flags & 1 or will_qos == 3 or (not flags & 4 and flags & 0x38) or (version == 4 and flags & 0xC0 == 0x40):
        raise ProtocolError("A CONNECT has flags that cannot be.")
    found = reader.properties(_CONNECT_PROPERTIES) if version == 5 else {}
    if Property.AUTHENTICATION_DATA in found and Property.AUTHENTICATION_METHOD not in found:
        raise ProtocolError("Authentication data come without a method.", Reason.PROTOCOL_ERROR)
    client_id = reader.text()
    will = None
    if flags & 4:
        if version == 5:
            reader.properties(_WILL_PROPERTIES)
        topic, payload = _topic(reader.text()), reader.binary()
        if will_qos == 2:
            raise ProtocolError("QoS 2 is not offered.", Reason.QOS_NOT_SUPPORTED)
        will = Publish(topic, payload, will_qos, bool(flags & 0x20))
    user = reader.text() if flags & 0x80 else None
    password = reader.binary() if flags & 0x40 else None
    return Connect(version, client_id, bool(flags & 2), keepalive, will, user, password, found)


def _puback(reader: Reader, version: Version) -> Puback:
    packet_id = reader.packet_id()
    if version == 5 and reader.left:
        reader.u8()
        if reader.left:
            reader.properties(_ACK_PROPERTIES)
    return Puback(packet_id)


def _subscribe(reader: Reader, version: Version) -> Subscribe:
    packet_id = reader.packet_id()
    if version == 5 and Property.SUBSCRIPTION_IDENTIFIER in reader.properties(_SUBSCRIBE_PROPERTIES):
        raise ProtocolError("Subscription identifiers are not offered.", Reason.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED)
    filters = []
    while reader.left:
        topic_filter, options = _filter(reader.text()), reader.u8()
        unused = 0xC0 if version == 5 else 0xFC
        if options & 3 == 3 or options & unused or options & 0x30 == 0x30:
            raise ProtocolError("A subscription has options that cannot be.")
        filters.append((topic_filter, options))
    if not filters:
        raise ProtocolError("A SUBSCRIBE names no filter.", Reason.PROTOCOL_ERROR)
    return Subscribe(packet_id, tuple(filters))


def _unsubscribe(reader: Reader, version: Version) -> Unsubscribe:
    packet_id = reader.packet_id()
    if version == 5:
        reader.properties(_UNSUBSCRIBE_PROPERTIES)
    filters = []
    while reader.left:
        filters.append(_filter(reader.text()))
    if not filters:
        raise ProtocolError("An UNSUBSCRIBE names no filter.", Reason.PROTOCOL_ERROR)
    return Unsubscribe(packet_id, tuple(filters))


def _disconnect(reader: Reader, version: Version) -> Disconnect:
    if version == 4 or not reader.left:
        return Disconnect()
    reason = reader.u8()
    found = reader.properties(_DISCONNECT_PROPERTIES) if reader.left else {}
    expiry = found.get(Property.SESSION_EXPIRY)
    return Disconnect(reason, expiry if isinstance(expiry, int) else None)


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + varint(len(body)) + body


def connack(
    version: Version,
    reason: int,
    *,
    session_present: bool = False,
    found: Mapping[Property, PropertyValue] | None = None,
) -> bytes:
    """The answer to CONNECT. For version 4, `reason` is a return code of 3.1.1."""
    body = bytes((session_present, reason))
    return _packet(0x20, body + properties(found or {}) if version == 5 else body)


def publish_head(version: Version, packet: Publish) -> bytes:
    """A PUBLISH up to its payload, which must follow."""
    body = text(packet.topic)
    if packet.qos:
        body += struct.pack("!H", packet.packet_id)
    if version == 5:
        body += varint(len(packet.properties)) + packet.properties
    first = 0x30 | packet.duplicate << 3 | packet.qos << 1 | packet.retain
    return bytes((first,)) + varint(len(body) + len(packet.payload)) + body


def puback(packet_id: int) -> bytes:
    """Success, in the form that both versions have."""
    return struct.pack("!BBH", 0x40, 2, packet_id)


def suback(version: Version, packet_id: int, reasons: Iterable[int]) -> bytes:
    """One reason code for each filter: the QoS granted, or a refusal."""
    return _packet(0x90, struct.pack("!H", packet_id) + (b"\0" if version == 5 else b"") + bytes(reasons))


def unsuback(version: Version, packet_id: int, reasons: Iterable[int]) -> bytes:
    """One reason code for each filter; 3.1.1 has none."""
    return _packet(0xB0, struct.pack("!H", packet_id) + (b"\0" + bytes(reasons) if version == 5 else b""))


PINGRESP = b"\xd0\x00"


def disconnect(reason: int) -> bytes:
    """The broker's own DISCONNECT; MQTT 5 only."""
    return _packet(0xE0, bytes((reason,)))
