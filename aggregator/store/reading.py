"""A store that is only read: beside a running aggregator, on a read-only mount, from a backup."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from midge.aggregator.model.model import Frame
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.store import FORMAT, Store
from midge.storage.database import no_room
from midge.storage.read_only import read_only
from midge.wire import frames
from midge.wire.schema import Schema


@contextmanager
def reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """The store's database as of this moment, to be read only.

    Raises:
        StoreError: there is none, or it cannot be read.
        sqlite3.Error, OSError: there is no room for what the block writes.
    """
    path = directory / "store.db"
    if not path.is_file():
        raise StoreError(f"{directory} is no store of an aggregator: there is no store.db in it.")
    try:
        with read_only(path, lock=directory / "lock") as db:
            yield db
    except (sqlite3.Error, OSError) as error:
        if no_room(error):  # of who copies it
            raise
        raise StoreError(f"{path} cannot be read ({error}).") from error


class ReadOnlyStore(Store):
    """A store of which nothing is changed, as of the moment in which it is opened. What would be written is not."""

    def __enter__(self) -> Self:
        """Open it to be read.

        Raises:
            StoreError: there is none, or it cannot be read.
        """
        self._closing = ExitStack()
        try:
            self._database.adopt(self._closing.enter_context(reading(self.directory)))
            self._read_meta()
        except BaseException:
            self.close()
            raise
        return self

    def _read_meta(self) -> None:
        meta = dict(self.query("SELECT name, value FROM meta"))
        if not meta:
            return
        if meta["format"] != FORMAT:
            raise StoreError(
                f"{self._database.path} has format {meta['format']}; this version of Midge reads {FORMAT}."
            )
        self.lineage, self.schema = meta["lineage"], Schema.unpacked(frames.unpack(meta["schema"]))

    def close(self) -> None:
        super().close()
        self._closing.close()

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        """Keep nothing: what a replay makes again is not wanted."""
