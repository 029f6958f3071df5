"""The database of a store: one process at a time, transactions that are durable or not at all, and errors in words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midge.aggregator.store.consistency import check_consistency
from midge.aggregator.store.errors import StoreError, StoreFull, StoreInUse
from midge.storage.database import Database, DatabaseError, DiskFull, InUse, Unwritable


class StoreDatabase:
    """`store.db` in the directory of a store, with the lock beside it."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._database = Database(self.directory / "store.db", lock=self.directory / "lock")

    def _open(self, tables: str) -> bool:
        """Lock, compare the files, and open; return whether the comparison proved them complete.

        Raises:
            StoreInUse: another aggregator has it open.
            StoreFull: there is no room to make it.
            StoreError: the directory cannot be written, or is of another version of Midge.
        """
        try:
            self._database.lock()
            # Before anything is opened for writing: SQLite deletes its log, including frames that it considers invalid.
            proven = check_consistency(self.directory)
            self._database.open(tables)
        except StoreError:
            self._database.close()
            raise
        except Unwritable as error:
            raise StoreError(
                f"The store {self.directory} cannot be written ({error}): name a directory that can."
            ) from error
        except InUse as error:
            raise StoreInUse(
                f"The store {self.directory} is in use by another aggregator: stop it, or name another store."
            ) from error
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise self._unreadable(error) from error
        return proven

    @property
    def _full(self) -> StoreFull:
        return StoreFull(f"The disk of the store {self.directory} is full.")

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._database.path} cannot be read ({error}): restore it, or begin with a new store.")

    def _broken(self, error: Exception) -> StoreError:
        return StoreError(
            f"The store {self.directory} cannot be written any more ({error}): see to its disk and start again. "
            "All that was receipted is in it."
        )

    @property
    def _open_db(self) -> sqlite3.Connection:
        return self._database.connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: when the block ends, all of it is durable; if it raises, nothing is written.

        Raises:
            StoreFull: there is no room.
            StoreError: it cannot be written.
        """
        try:
            with self._database.transaction() as db:
                yield db
        except DiskFull as error:
            raise self._full from error
        except DatabaseError as error:
            raise self._broken(error) from error

    def query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Read rows.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return self._open_db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
