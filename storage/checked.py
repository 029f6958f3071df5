"""A file's content with a checksum in front, which detects bit rot and files of another owner."""

import hashlib
import struct

_HEAD = struct.Struct("<4sB16s")
_MAGIC, _FORMAT = b"MdgF", 1


class Rotten(ValueError):
    """The content is not what was written."""


def with_checksum(data: bytes, about: str = "") -> bytes:
    """The content of a file: the checksum, then the data.

    Args:
        data: the content.
        about: names the owner; reading needs the same bytes.
    """
    return _HEAD.pack(_MAGIC, _FORMAT, _digest(data, about)) + data


def content(file: bytes, about: str = "") -> bytes:
    """Return the data that was passed to `with_checksum`.

    A file of an earlier Midge has no checksum and is returned as it is.

    Raises:
        Rotten: the data is damaged, or belongs to another owner.
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
