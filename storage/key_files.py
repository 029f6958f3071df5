"""Keys as users give them: PEM, or a file with it."""

from pathlib import Path

from midge.wire.signing import KeyUnusable


def read_key(key: bytes | str | Path, name: str = "the key") -> tuple[bytes, str]:
    """A key's bytes, and its name for messages: that of its file, or the given one.

    Raises:
        KeyUnusable: the file cannot be read.
    """
    if isinstance(key, bytes):
        return key, name
    try:
        return Path(key).read_bytes(), str(key)
    except OSError as error:
        raise KeyUnusable(f"The key {key} cannot be read: {error.strerror}.") from error
