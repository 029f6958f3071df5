"""Zstandard as the last stage, where the extra is installed.

A frame may declare any size, and a decoder that trusts it makes room for it: 32 kB can ask for a gigabyte. So the size
is looked at first, the window is bounded, and no more is read than the codec can have written.
"""

from typing import Any

from midge.wire.errors import WireError
from midge.wire.frames import Buffer

LEVEL = 3
WINDOW = 2**23
"""Bytes of a window that is taken; level 3 asks for 2 MiB at most."""
_MISSING = "zstandard is not installed: pip install 'midge[zstd]'"


def available() -> bool:
    """Whether this process can do it."""
    return _module() is not None


def compress(data: bytes) -> bytes:
    """One frame.

    Raises:
        WireError: zstandard is not installed.
    """
    squeezed: bytes = _needed().ZstdCompressor(level=LEVEL).compress(data)
    return squeezed


def decompress(data: Buffer, limit: int) -> bytes:
    """What one frame holds, where that is at most `limit` bytes.

    Raises:
        WireError: it is more, it is no frame, something follows it, or zstandard is not installed.
    """
    zstandard = _needed()
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= limit:
            raise WireError(f"a compressed delta that does not say that it is of at most {limit} bytes")
        # In one piece: an object that takes a stream puts its output together from pieces, twice the memory.
        decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        found: bytes = decoder.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError("no Zstandard frame, or one that is cut short, or followed by something") from error
    if len(found) != size:
        raise WireError("a Zstandard frame of another size than it says")
    return found


def _module() -> Any:
    try:
        import zstandard  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return zstandard


def _needed() -> Any:
    module = _module()
    if module is None:
        raise WireError(_MISSING)
    return module
