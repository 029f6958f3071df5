"""Zstandard as the last stage, if the extra is installed.

A frame may declare any size, and a decoder that trusts it reserves it: 32 kB can ask for a gigabyte. So the declared
size is checked first, the window is bounded, and no more is read than the codec can have written.
"""

from typing import Any

from midge.wire.errors import WireError
from midge.wire.frames import Buffer

LEVEL = 3
WINDOW = 2**23
"""Largest window in bytes; level 3 needs 2 MiB at most."""
_MISSING = "zstandard is not installed: pip install 'midge[zstd]'"


def available() -> bool:
    """Whether Zstandard is installed here."""
    return _module() is not None


def compress(data: bytes) -> bytes:
    """Compress into one frame.

    Raises:
        WireError: zstandard is not installed.
    """
    squeezed: bytes = _needed().ZstdCompressor(level=LEVEL).compress(data)
    return squeezed


def decompress(data: Buffer, limit: int) -> bytes:
    """The content of one frame, of at most `limit` bytes.

    Raises:
        WireError: it is larger, it is no frame, something follows it, or zstandard is not installed.
    """
    zstandard = _needed()
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= limit:
            raise WireError(f"a compressed delta that does not say that it is of at most {limit} bytes")
        # In one call: the stream interface joins its pieces, which takes twice the memory.
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
