"""Pausing a federation from outside its process: a file in the store holds the reason until it is removed.

A file holds across restarts and needs no port, no topic and no right except to the store.
"""

from contextlib import suppress
from pathlib import Path

from midge.storage.files import atomic_write

_FILE = "paused"
_LONGEST = 300


def pause(directory: Path, why: str) -> None:
    """Refuse updates, from a few seconds from now on. Devices keep theirs and rest.

    Raises:
        OSError: it cannot be written.
    """
    atomic_write(directory / _FILE, why.strip()[:_LONGEST].encode())


def resume(directory: Path) -> bool:
    """Accept updates again; return whether it was paused."""
    was = (directory / _FILE).exists()
    (directory / _FILE).unlink(missing_ok=True)
    return was


def paused(directory: Path) -> str | None:
    """Why the federation is paused; None if it is not."""
    with suppress(FileNotFoundError):
        return (directory / _FILE).read_text(errors="replace") or "the operator paused it"
    return None
