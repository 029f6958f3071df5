"""Migrations of a store's database from earlier formats.

A migration is one transaction, and before it the database is copied beside itself: the Midge that wrote it can continue
with the copy.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from midge.aggregator.store.errors import StoreError
from midge.aggregator.store.frame_table import checksums
from midge.aggregator.store.meta_table import row_checksum
from midge.storage.files import PRIVATE, atomic_rename

FORMAT = 2
FORMAT_NAME, MIDGE_NAME = "format", "midge"
"""Names in the metadata: the format, and the Midge that migrated to it."""


def version() -> str:
    """The version of this Midge."""
    try:
        return metadata.version("midge")
    except metadata.PackageNotFoundError:  # run from a folder
        return "?"


def refuse_newer(directory: Path, form: object, midge: object) -> None:
    """Refuse a store of a later Midge.

    Raises:
        StoreError: it is of one.
    """
    if not isinstance(form, int) or not 1 <= form <= FORMAT:
        of = f"start Midge {midge}, which wrote it" if midge else "start the Midge that wrote it"
        raise StoreError(f"The store {directory} has format {form}; Midge {version()} reads up to {FORMAT}: {of}.")


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Migrate an open database to the current format, if it has a lineage. Missing tables exist already.

    Raises:
        sqlite3.Error: the migration failed; the database is unchanged.
        OSError: the copy failed.
    """
    found = db.execute("SELECT value FROM meta WHERE name = ?", (FORMAT_NAME,)).fetchone()
    if found is None or found[0] == FORMAT:
        return
    _copy(db, path.with_name(f"{path.name}.format-{found[0]}.bak"))
    db.execute("BEGIN IMMEDIATE")
    with db:
        for form in range(found[0], FORMAT):
            _MIGRATIONS[form](db)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(FORMAT_NAME, FORMAT), (MIDGE_NAME, version())])


def _copy(db: sqlite3.Connection, path: Path) -> None:
    """A durable copy of the current database, as one file."""
    partial = path.with_name(f"{path.name}.tmp")
    with suppress(FileNotFoundError):
        partial.unlink()
    os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, PRIVATE))
    with closing(sqlite3.connect(partial)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    atomic_rename(partial, path)


def _to_2(db: sqlite3.Connection) -> None:
    """Add checksums of frames and of rows, and the number of updates decided on at each checkpoint."""
    for table, columns in _ADDED.items():
        there = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
        for column, kind in columns.items():
            if column not in there:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    db.execute(
        "UPDATE checkpoints SET updates = "
        "(SELECT count(*) FROM journal WHERE kind = 'update' AND journal.lsn <= checkpoints.lsn)"
    )
    rows = db.execute("SELECT lsn, file, sha256, oldest_body, oldest_base, updates FROM checkpoints").fetchall()
    db.executemany("UPDATE checkpoints SET crc = ? WHERE lsn = ?", [(row_checksum(row), row[0]) for row in rows])
    for version_, span in db.execute("SELECT version, span FROM frames").fetchall():
        name = version_, span
        data, parts = db.execute("SELECT data, parts FROM frames WHERE version = ? AND span = ?", name).fetchone()
        db.execute(
            "UPDATE frames SET digest = ?, crc = ? WHERE version = ? AND span = ?",
            (*checksums(*name, parts, bytes(data)), *name),
        )


_ADDED = {
    "journal": {"segment": "INTEGER", "place": "INTEGER", "size": "INTEGER"},
    "frames": {"digest": "BLOB", "crc": "INTEGER"},
    "checkpoints": {"updates": "INTEGER NOT NULL DEFAULT 0", "crc": "INTEGER"},
}
_MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = MappingProxyType({1: _to_2})
"""By format, the migration to the next."""
