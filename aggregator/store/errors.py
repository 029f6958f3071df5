"""Errors of a store, with messages for its operator."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from midge.storage.database import DiskFull, no_room


class StoreError(Exception):
    """The store cannot be used as it is; the message says why and what to do."""


class StoreInUse(StoreError):
    """An aggregator has it open."""


class StoreDamaged(StoreError):
    """A part of it, or of a backup, is damaged."""


class StoreFull(StoreError, DiskFull):
    """The disk is full. The failed write left nothing behind; everything written before it is intact."""


def what_to_do(directory: Path, at_stake: int | None, *, most: bool = False) -> str:
    """The end of a message about a store that has lost something."""
    many = "1 update that was" if at_stake == 1 else f"{at_stake} updates that were"
    many = "any number of updates that were" if at_stake is None else f"at most {many}" if most else many
    return (
        f"At stake: {many} receipted. Nothing was changed. Put back the file that is "
        "missing or wrong, or restore a backup; to go on without: "
        f"midge store salvage {directory} {directory}.new --accept-loss"
    )


@contextmanager
def making(what: str) -> Iterator[None]:
    """Translate errors of a block that makes something on a disk.

    Raises:
        StoreFull: there is no room.
        StoreError: it cannot be made.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if no_room(error):
            raise StoreFull(f"{what} cannot be made: there is no room on the disk. Nothing is left of it.") from error
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{what} cannot be made ({why}).") from error
