"""Metadata of a store: a few values by name, with checksums in a separate table."""

import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from midge.wire import frames

TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sums (name TEXT PRIMARY KEY, crc INTEGER NOT NULL) WITHOUT ROWID;
"""
Query = Callable[..., list[tuple[Any, ...]]]
"""Runs a read statement; its errors are those of a store."""


def values(query: Query) -> dict[str, Any]:
    """All values by name."""
    return dict(query("SELECT name, value FROM meta"))


def enter(db: sqlite3.Connection, name: str, value: Any) -> None:
    """Set a value."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
    db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?)", (name, row_checksum((name, value))))


def remove(db: sqlite3.Connection, name: str) -> None:
    """Remove a value."""
    db.execute("DELETE FROM meta WHERE name = ?", (name,))
    db.execute("DELETE FROM sums WHERE name = ?", (name,))


def unproven(query: Query) -> dict[str, Any]:
    """Values without a checksum: of an earlier format, or inserted manually."""
    known = {name for (name,) in query("SELECT name FROM sums")}
    return {name: value for name, value in values(query).items() if name not in known}


def rotten(query: Query, meta: Mapping[str, Any]) -> Iterator[str]:
    """Names of damaged values."""
    if query("SELECT 1 FROM sqlite_schema WHERE name = 'sums'"):
        for name, crc in query("SELECT name, crc FROM sums ORDER BY name"):
            if name in meta and row_checksum((name, meta[name])) != crc:
                yield name


def row_checksum(row: Sequence[Any]) -> int:
    """CRC-32 of the columns of a row in any of the store's tables, without the checksum itself."""
    return zlib.crc32(frames.pack(list(row)))
