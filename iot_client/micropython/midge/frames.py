"""A frame, which every payload is: a u16 length, a header of that length, a body."""

import struct

from midge import msgpack


def encode(header, body=b""):
    """A payload."""
    packed = msgpack.pack(header)
    frame = bytearray(2 + len(packed) + len(body))
    struct.pack_into("<H", frame, 0, len(packed))
    frame[2 : 2 + len(packed)] = packed
    frame[2 + len(packed) :] = body
    return frame


def decode(payload):
    """The header as a dict, and the body as a view of the payload.

    Raises:
        ValueError: it is no frame.
    """
    view = memoryview(payload)
    if len(view) < 2:
        raise ValueError("a frame has at least 2 bytes")
    end = 2 + (view[0] | view[1] << 8)
    header = msgpack.unpack(view[2:end]) if end <= len(view) else None
    if not isinstance(header, dict):
        raise ValueError("the header is no map, or cut short")
    return header, view[end:]
