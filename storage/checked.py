"""A file's content behind its checksum: what rotted, or is another's, is told from what was written."""

import hashlib
import struct

_HEAD = struct.Struct("<4sB16s")
_MAGIC, _FORMAT = b"MdgF", 1


class Rotten(ValueError):
    """The content is not what was written."""


def with_checksum(data: bytes, about: str = "") -> bytes:
    """Content for a file.

    Args:
        data: the content.
        about: whose it is: it must be said again to read it.
    """
    return _HEAD.pack(_MAGIC, _FORMAT, _digest(data, about)) + data


def content(file: bytes, about: str = "") -> bytes:
    """What `with_checksum` was given; what has no checksum is of an earlier Midge, and returned as it is.

    Raises:
        Rotten: it is not what was written, or is another's.
    """
    if file[:4] != _MAGIC:
        return file
    if len(file) < _HEAD.size:
        raise Rotten("the file is cut short")
    _, form, digest = _HEAD.unpack_from(file)
    data = file[_HEAD.size :]
    if form != _FORMAT or digest != _digest(data, about):
        raise Rotten("the file is damaged, of another device, or of a newer Midge")
    return data


def _digest(data: bytes, about: str) -> bytes:
    return hashlib.sha256(hashlib.sha256(about.encode()).digest() + data).digest()[:16]
