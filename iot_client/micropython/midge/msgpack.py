"""Msgpack, as far as headers need it: nil, bool, int, float, str, bin, arrays and maps. Known names are numbers."""

import struct

from midge.names import NAMES

_DEPTH = 8
"""Arrays and maps within one another: no header has more."""
_HEADS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i"}
_HEADS[0xD3] = ">q"
_LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_COUNTS = {0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}


def pack(value):
    """A value as msgpack."""
    out = bytearray()
    _write(out, value)
    return out


def unpack(data):
    """The value that fills `data`. Keys of maps are text; those of later versions are passed over.

    Raises:
        ValueError: it is no msgpack, cut short, or something follows.
    """
    reader = _Reader(data)
    value = reader.value(_DEPTH)
    if reader.at != len(data):
        raise ValueError("bytes follow the value")
    return value


def word(value):
    """The name that a number stands for; what is none stays as it is."""
    return NAMES[value] if isinstance(value, int) and 0 <= value < len(NAMES) else value


def _write(out, value):
    if value is None:
        out.append(0xC0)
    elif value is True or value is False:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _write_int(out, value)
    elif isinstance(value, float):
        out.extend(struct.pack(">Bd", 0xCB, value))
    elif isinstance(value, str):
        data = value.encode()
        _write_head(out, len(data), 0xA0, 32, 0xD9)
        out.extend(data)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _write_head(out, len(value), 0, 0, 0xC4)
        out.extend(value)
    elif isinstance(value, (tuple, list)):
        _write_head(out, len(value), 0x90, 16, 0xDB)
        for each in value:
            _write(out, each)
    else:
        _write_head(out, len(value), 0x80, 16, 0xDD)
        for key, each in value.items():
            _write(out, NAMES.index(key) if key in NAMES else key)
            _write(out, NAMES.index(each) if key == "kind" and each in NAMES else each)


def _write_int(out, value):
    if -32 <= value < 128:
        out.append(value & 0xFF)
    elif value < 0:
        out.extend(struct.pack(">Bq", 0xD3, value))
    elif value < 0x10000:
        out.extend(struct.pack(">BH", 0xCD, value))
    elif value <= 0xFFFFFFFF:
        out.extend(struct.pack(">BI", 0xCE, value))
    else:
        out.extend(struct.pack(">BQ", 0xCF, value))


def _write_head(out, size, short, limit, long):
    """A length: within the first byte below `limit`; then in 8 (of str and bin only), 16 or 32 bits."""
    if size < limit:
        out.append(short | size)
    elif size < 256 and long in (0xC4, 0xD9):
        out.extend(struct.pack(">BB", long, size))
    elif size < 0x10000:
        out.extend(struct.pack(">BH", long + 1, size))
    else:
        out.extend(struct.pack(">BI", long + 2, size))


class _Reader:
    def __init__(self, data):
        self._data = data
        self.at = 0

    def value(self, depth):
        head = self._number(">B")
        if head < 0x80:
            return head
        if head < 0x90:
            return self._map(head & 15, depth)
        if head < 0xA0:
            return self._array(head & 15, depth)
        if head < 0xC0:
            return str(self._bytes(head & 31), "utf-8")
        if head >= 0xE0:
            return head - 256
        if head in (0xC0, 0xC2, 0xC3):
            return None if head == 0xC0 else head == 0xC3
        if head in _HEADS:
            return self._number(_HEADS[head])
        if head in _LENGTHS:
            data = self._bytes(self._number(_LENGTHS[head]))
            return bytes(data) if head < 0xD0 else str(data, "utf-8")
        if head in _COUNTS:
            count = self._number(_COUNTS[head])
            return self._array(count, depth) if head < 0xDE else self._map(count, depth)
        raise ValueError("an extension of msgpack")

    def _bytes(self, size):
        if size > len(self._data) - self.at:
            raise ValueError("msgpack is cut short")
        self.at += size
        return self._data[self.at - size : self.at]

    def _number(self, form):
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _items(self, count, depth):
        if not depth or count > len(self._data) - self.at:
            raise ValueError("msgpack is too deep, or cut short")

    def _array(self, count, depth):
        self._items(count, depth)
        return [self.value(depth - 1) for _ in range(count)]

    def _map(self, count, depth):
        self._items(count, depth)
        found = {}
        for _ in range(count):
            key, value = word(self.value(depth - 1)), self.value(depth - 1)
            if isinstance(key, str):
                found[key] = word(value) if key == "kind" else value
        return found
