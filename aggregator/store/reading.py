"""Read-only access to a store: beside a running aggregator, on a read-only mount, from a backup."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from midge.aggregator.core import records as rec
from midge.aggregator.model.model import Frame
from midge.aggregator.store import meta_table
from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.migrations import FORMAT, FORMAT_NAME, MIDGE_NAME, migrate, refuse_newer
from midge.aggregator.store.store import TABLES, Store
from midge.storage.database import no_room
from midge.storage.read_only import read_only
from midge.wire import frames
from midge.wire.schema import Schema


@contextmanager
def reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """The store's database as of this moment, read-only.

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
        if no_room(error):  # errors of the block, which copies
            raise
        raise StoreError(f"{path} cannot be read ({error}).") from error


class ReadOnlyStore(Store):
    """A store that is never changed, as of the moment when it is opened. Writes are discarded."""

    def __enter__(self) -> Self:
        """Open it for reading.

        Raises:
            StoreError: there is none, or it cannot be read.
        """
        self._closing = ExitStack()
        try:
            self._database.adopt(self._migrated(self._closing.enter_context(reading(self.directory))))
            meta = meta_table.values(self.query)
            if meta:
                self.lineage, self.schema = meta["lineage"], Schema.unpacked(frames.unpack(meta["schema"]))
        except BaseException:
            self.close()
            raise
        return self

    def _migrated(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """The database in the current format; for an earlier one, a migrated copy."""
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
            raise StoreError(f"The store {self.directory} is empty: nothing was ever written into it.")
        meta = dict(db.execute("SELECT name, value FROM meta"))
        if not meta or meta[FORMAT_NAME] == FORMAT:
            return db
        refuse_newer(self.directory, meta[FORMAT_NAME], meta.get(MIDGE_NAME))
        path = Path(self._closing.enter_context(TemporaryDirectory(prefix="midge-")), "store.db")
        copy = self._closing.enter_context(closing(sqlite3.connect(path)))
        db.backup(copy)
        copy.executescript(TABLES)
        migrate(copy, path)
        return copy

    def close(self) -> None:
        super().close()
        self._closing.close()

    def add_frames(self, new: Iterable[tuple[Frame, int]]) -> None:
        """Discard the frames that a replay makes again."""

    def note_release(self, record: rec.ReleaseRecord, generation: int, digest: bytes) -> None:
        """Discard a release that a replay makes again."""
