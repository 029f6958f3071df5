"""Data types of MQTT packets; MQTT 5, sections 1.5 and 2.2.2. Pure.

Input is untrusted: every reader here returns a value or raises `ProtocolError`.
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

MAX_VARINT = 268_435_455

PropertyValue = int | str | bytes | tuple[str, str]


class Reason(IntEnum):
    """Reason codes that this broker sends; MQTT 5, section 2.4."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION_EXISTED = 0x11
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_ID_NOT_VALID = 0x85
    BAD_USER_OR_PASSWORD = 0x86
    SERVER_BUSY = 0x89
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEPALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    QOS_NOT_SUPPORTED = 0x9B
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1


class ProtocolError(Exception):
    """The peer violated the protocol, or uses a feature that is not offered here."""

    def __init__(self, message: str, reason: Reason = Reason.MALFORMED_PACKET) -> None:
        super().__init__(message)
        self.reason = reason


class Property(IntEnum):
    """Identifiers of properties; MQTT 5, section 2.2.2.2."""

    PAYLOAD_FORMAT = 1
    MESSAGE_EXPIRY = 2
    CONTENT_TYPE = 3
    RESPONSE_TOPIC = 8
    CORRELATION_DATA = 9
    SUBSCRIPTION_IDENTIFIER = 11
    SESSION_EXPIRY = 17
    ASSIGNED_CLIENT_IDENTIFIER = 18
    SERVER_KEEPALIVE = 19
    AUTHENTICATION_METHOD = 21
    AUTHENTICATION_DATA = 22
    REQUEST_PROBLEM = 23
    WILL_DELAY = 24
    REQUEST_RESPONSE = 25
    RESPONSE_INFORMATION = 26
    SERVER_REFERENCE = 28
    REASON_STRING = 31
    RECEIVE_MAXIMUM = 33
    TOPIC_ALIAS_MAXIMUM = 34
    TOPIC_ALIAS = 35
    MAXIMUM_QOS = 36
    RETAIN_AVAILABLE = 37
    USER_PROPERTY = 38
    MAXIMUM_PACKET_SIZE = 39
    WILDCARDS_AVAILABLE = 40
    SUBSCRIPTION_IDENTIFIERS_AVAILABLE = 41
    SHARED_SUBSCRIPTIONS_AVAILABLE = 42


_FLAGS: Final = frozenset({1, 23, 25, 36, 37, 40, 41, 42})
"""One byte, 0 or 1."""
_U16: Final = frozenset({19, 33, 34, 35})
_U32: Final = frozenset({2, 17, 24, 39})
_TEXT: Final = frozenset({3, 8, 18, 21, 26, 28, 31})
_BINARY: Final = frozenset({9, 22})
_NOT_ZERO: Final = frozenset({33, 35, 39})


class Reader:
    """Reads the fields of one packet in order."""

    __slots__ = ("_data", "position")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count > self.left:
            raise ProtocolError("A packet ends before its fields do.")
        taken = self._data[self.position : self.position + count]
        self.position += count
        return taken

    def since(self, start: int) -> memoryview:
        """What has been read from position `start` on."""
        return self._data[start : self.position]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def varint(self) -> int:
        """A variable byte integer in its shortest form."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and byte == 0:
                    break
                return value
        raise ProtocolError("A length is not spelled as MQTT spells lengths.")

    def binary(self) -> bytes:
        return bytes(self.take(self.u16()))

    def text(self) -> str:
        try:
            text = self.binary().decode()
        except UnicodeDecodeError:
            raise ProtocolError("A string is not UTF-8.") from None
        if "\0" in text:
            raise ProtocolError("A string holds a NUL.")
        return text

    def packet_id(self) -> int:
        packet_id = self.u16()
        if packet_id == 0:
            raise ProtocolError("A packet id is zero.", Reason.PROTOCOL_ERROR)
        return packet_id

    def properties(self, allowed: frozenset[Property]) -> dict[Property, PropertyValue]:
        """The properties, each at most once, except user properties, of which the last is kept."""
        inside = Reader(self.take(self.varint()))
        found: dict[Property, PropertyValue] = {}
        while inside.left:
            number = inside.varint()
            try:
                name = Property(number)
            except ValueError:
                raise ProtocolError(f"There is no property {number}.") from None
            if name not in allowed:
                raise ProtocolError(f"A packet has property {number}, which it may not have.", Reason.PROTOCOL_ERROR)
            if name in found and name is not Property.USER_PROPERTY:
                raise ProtocolError(f"A packet has property {number} twice.", Reason.PROTOCOL_ERROR)
            found[name] = inside._property(name)
        return found

    def _property(self, name: Property) -> PropertyValue:
        value: PropertyValue
        if name in _FLAGS:
            value = self.u8()
            if value > 1:
                raise ProtocolError(f"Property {name.value} is neither 0 nor 1.", Reason.PROTOCOL_ERROR)
        elif name in _U16:
            value = self.u16()
        elif name in _U32:
            value = self.u32()
        elif name in _TEXT:
            value = self.text()
        elif name in _BINARY:
            value = self.binary()
        elif name is Property.SUBSCRIPTION_IDENTIFIER:
            value = self.varint()
        else:
            value = (self.text(), self.text())
        if value == 0 and name in _NOT_ZERO:
            raise ProtocolError(f"Property {name.value} is zero.", Reason.PROTOCOL_ERROR)
        return value


def varint(value: int) -> bytes:
    """Encode a variable byte integer."""
    assert 0 <= value <= MAX_VARINT
    spelled = bytearray()
    while value > 0x7F:
        spelled.append(value & 0x7F | 0x80)
        value >>= 7
    spelled.append(value)
    return bytes(spelled)


def text(value: str) -> bytes:
    """Encode a string: its length in two bytes, then UTF-8."""
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded


def properties(values: Mapping[Property, PropertyValue]) -> bytes:
    """Encode properties, preceded by their length."""
    spelled = bytearray()
    for name, value in values.items():
        spelled.append(name)
        match value:
            case int() if name in _FLAGS:
                spelled.append(value)
            case int() if name in _U16:
                spelled += struct.pack("!H", value)
            case int() if name in _U32:
                spelled += struct.pack("!I", value)
            case int():
                spelled += varint(value)
            case str():
                spelled += text(value)
            case bytes():
                spelled += struct.pack("!H", len(value)) + value
            case (key, word):
                spelled += text(key) + text(word)
    return varint(len(spelled)) + bytes(spelled)
