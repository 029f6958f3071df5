"""Frames of a store: published ones, to be published again byte for byte.

A frame has a checksum, and so has its row: a flipped bit in a snapshot would keep every new device out. A damaged frame
is never published. Its row stays until it is removed from the broker.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from midge.aggregator.model.model import REGISTERED, Frame
from midge.aggregator.store.meta_table import Query, row_checksum
from midge.wire import chunks

log = logging.getLogger("aggregator")

TABLE = """
CREATE TABLE IF NOT EXISTS frames (
    version INTEGER NOT NULL, span INTEGER NOT NULL, data BLOB NOT NULL, parts INTEGER NOT NULL,
    offered INTEGER NOT NULL DEFAULT 1, digest BLOB, crc INTEGER, PRIMARY KEY (version, span)
);
"""
_ADD = "INSERT OR IGNORE INTO frames (version, span, data, parts, digest, crc, offered) VALUES (?, ?, ?, ?, ?, ?, ?)"
_OFFER = "UPDATE frames SET offered = 1 WHERE version = ? AND span = ?"
_REPLACE = "UPDATE frames SET data = ?, digest = ?, crc = ? WHERE version = ? AND span = ?"
_CUT = "UPDATE frames SET parts = ?, digest = ?, crc = ? WHERE version = ? AND span = ? AND parts < ?"


@dataclass(frozen=True, slots=True)
class Published:
    """A frame in the store, either offered to devices or kept only to step back."""

    version: int
    span: int
    size: int
    parts: int
    offered: bool
    whole: bool = True
    """Whether no damage is known; otherwise it is kept only to be removed from the broker."""


class FrameTable:
    """The frames of one open store."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._rotten: dict[tuple[int, int], int] = {}
        """Damaged frames, each with its number of parts."""
        self._garbled: set[tuple[Any, Any]] = set()
        """Rows whose version or span is damaged."""

    # --------------------------------------------------------------------- writing

    def add(self, db: sqlite3.Connection, new: Iterable[tuple[Frame, int]]) -> None:
        """Add frames, each with its number of parts. An existing one keeps its bytes, unless it is damaged.

        The largest number of parts is kept: those topics must be cleared later. A registered version without parts is
        kept, and not offered.
        """
        for frame, parts in new:
            name = frame.version, frame.span
            if name in self._garbled:
                self._garbled.discard(name)
                self._rotten[name] = parts
            if name in self._rotten:
                digest, crc = checksums(*name, self._rotten.pop(name), frame.data)
                db.execute(_REPLACE, (frame.data, digest, crc, *name))
                log.warning("The frame of version %d over %d is made again.", *name)
            else:
                checked = checksums(*name, parts, frame.data)
                kept = frame.span == REGISTERED  # and offered only while a name stands for it
                db.execute(_ADD, (*name, frame.data, parts, *checked, not kept or parts > 0))
                if kept and parts:
                    db.execute(_OFFER, name)
                db.execute(_CUT, (parts, *checked, *name, parts))

    def withdraw(self, db: sqlite3.Connection, gone: Iterable[tuple[int, int]], *, keep: bool) -> None:
        """Stop offering frames, by version and span; `keep` keeps the bytes of undamaged ones."""
        # Kept to step back to earlier versions: they are needed as long as updates based on them may come.
        for name in gone:
            kept = (keep or name[1] == REGISTERED) and self._rotten.pop(name, None) is None
            statement = "UPDATE frames SET offered = 0" if kept else "DELETE FROM frames"
            db.execute(f"{statement} WHERE version = ? AND span = ?", name)

    def prune(self, db: sqlite3.Connection, oldest_base: int, registered: frozenset[int] | None) -> None:
        """Remove frames that are neither offered nor needed to step back to a version, nor registered."""
        # A step leads to its version and a snapshot stands for it: of the oldest base only the latter is needed.
        db.execute(
            "DELETE FROM frames WHERE offered = 0 AND version < ? + (span > 0) AND span <> ?", (oldest_base, REGISTERED)
        )
        if registered is not None:
            kept = db.execute("SELECT version FROM frames WHERE offered = 0 AND span = ?", (REGISTERED,)).fetchall()
            gone = [(version, REGISTERED) for (version,) in kept if version not in registered]
            db.executemany("DELETE FROM frames WHERE version = ? AND span = ?", gone)
        db.executemany("DELETE FROM frames WHERE version = ? AND span = ?", self._garbled)
        self._garbled.clear()

    # --------------------------------------------------------------------- reading

    def published(self) -> list[Published]:
        """All frames, without their bytes. Implausible rows are left out."""
        rows = self._query(
            "SELECT version, span, length(data), parts, offered, digest, crc FROM frames ORDER BY version, span"
        )
        found = []
        for version, span, size, parts, offered, digest, crc in rows:
            if crc is None or crc == row_checksum((version, span, parts, digest)):
                whole = (version, span) not in self._rotten
                found.append(Published(version, span, size, parts, bool(offered), whole=whole))
            elif (version, span) not in self._garbled:
                log.warning("The entry of a frame is damaged, said to be of version %s over %s.", version, span)
                self._garbled.add((version, span))
        return found

    def data(self, version: int, span: int) -> bytes | None:
        """A frame's bytes; None if it is missing or damaged."""
        name = version, span
        if name in self._rotten:
            return None
        rows = self._query("SELECT data, parts, digest, crc FROM frames WHERE version = ? AND span = ?", name)
        if not rows:
            return None
        data, parts, digest, crc = rows[0]
        if crc is not None and (not isinstance(data, bytes) or checksums(*name, parts, data) != (digest, crc)):
            log.warning("The frame of version %d over %d is damaged; it is not published. See to the disk.", *name)
            self._rotten[name] = parts
            return None
        return bytes(data)

    def rotten(self) -> Iterator[tuple[int, int]]:
        """Every damaged frame, by version and span; reads all of them."""
        for version, span in self._query("SELECT version, span FROM frames ORDER BY version, span"):
            if self.data(version, span) is None:
                yield version, span


def checksums(version: int, span: int, parts: int, data: bytes) -> tuple[bytes, int]:
    """Checksums of a frame's bytes, and of its row."""
    digest = chunks.checksum(data)
    return digest, row_checksum((version, span, parts, digest))
