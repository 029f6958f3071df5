"""Frames of a store: what was published and is to be published again, byte for byte."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from midge.aggregator.model.model import Frame
from midge.storage.database import Database

TABLE = """
CREATE TABLE IF NOT EXISTS frames (
    version INTEGER NOT NULL, span INTEGER NOT NULL, data BLOB NOT NULL, parts INTEGER NOT NULL,
    offered INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (version, span)
);
"""


@dataclass(frozen=True, slots=True)
class Published:
    """A frame in the store: what is offered to devices, and what is only kept to step back with."""

    version: int
    span: int
    size: int
    parts: int
    offered: bool


class FrameTable:
    """Of one store's open database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, db: sqlite3.Connection, new: Iterable[tuple[Frame, int]]) -> None:
        """Enter frames, each with its number of parts. One that is there stays."""
        # A replay makes frames again that are here; the number of parts that they were announced with stays.
        db.executemany(
            "INSERT OR IGNORE INTO frames (version, span, data, parts) VALUES (?, ?, ?, ?)",
            [(frame.version, frame.span, frame.data, parts) for frame, parts in new],
        )

    def withdraw(self, db: sqlite3.Connection, gone: Iterable[tuple[int, int]], *, keep: bool) -> None:
        """No longer offer frames, by version and span; `keep` keeps their bytes."""
        # Kept where earlier versions are stepped back to: they are needed for as long as updates may come of them.
        statement = "UPDATE frames SET offered = 0" if keep else "DELETE FROM frames"
        db.executemany(f"{statement} WHERE version = ? AND span = ?", list(gone))

    def prune(self, db: sqlite3.Connection, oldest_base: int) -> None:
        """Let those go that are neither offered nor needed to step back to a version."""
        # A step leads to its version and a snapshot stands for it: of the oldest base only the latter is needed.
        db.execute("DELETE FROM frames WHERE offered = 0 AND version < ? + (span > 0)", (oldest_base,))

    def published(self) -> list[Published]:
        """All of them, without their bytes."""
        rows = self._database.connection.execute(
            "SELECT version, span, length(data), parts, offered FROM frames ORDER BY version, span"
        )
        return [Published(version, span, size, parts, bool(offered)) for version, span, size, parts, offered in rows]

    def data(self, version: int, span: int) -> bytes | None:
        """A frame's bytes; None if it is not there."""
        row = self._database.connection.execute(
            "SELECT data FROM frames WHERE version = ? AND span = ?", (version, span)
        ).fetchone()
        return None if row is None else bytes(row[0])
