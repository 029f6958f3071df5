"""The journal of decisions: one row for each record, its body in the row or in a segment beside the database."""

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.store.checkpoint_table import entered
from midge.aggregator.store.errors import StoreDamaged, StoreError, what_to_do
from midge.aggregator.store.meta_table import Query
from midge.aggregator.store.segments import Segments
from midge.storage.failpoints import failpoint
from midge.wire.errors import WireError

INLINE, INLINE_TOGETHER = 4096, 32 * 1024
"""Most bytes of a body in its row, and of all bodies of a transaction: for few small bodies, one sync is better than
two."""
_PAGE = 1000
"""Rows read at once: those of a replay may exceed the memory."""
_ROWS = "SELECT lsn, kind, record, body, crc, segment, place, size FROM journal"
_INSERT = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the journal, with its body."""

    record: rec.Record
    body: bytes | memoryview | None
    site: bytes | memoryview | None = None
    """With an accepted update at a gateway, its device's values of the site's tensors."""


class JournalTable:
    """The journal of one store's directory and open database."""

    def __init__(self, directory: Path, query: Query) -> None:
        self._directory, self._query = directory, query
        self._segments = Segments(directory)
        self.decided = 0
        """Updates decided on since the store began."""
        self._pruned = 0
        """The lsn up to which no row has a body any more."""

    def recover(self, *, proven: bool) -> None:
        """Cut off bodies without a row, left by a power cut between the two writes. Keep them unless `proven`."""
        # A segment is named after the first lsn in it, so its rows are those up to the next segment's first lsn.
        for first, following in self._segments.ranges():
            known = self._query(
                "SELECT segment, place + size, lsn FROM journal WHERE lsn >= ? AND lsn < ? AND segment IS NOT NULL "
                "ORDER BY lsn DESC LIMIT 1",
                (first, following),
            )
            if known:
                ((segment, end, lsn),) = known
                # Only behind an intact record: the place in a damaged row says nothing about the end.
                if segment == first and self._whole(lsn):
                    self._segments.recover(first, end, keep=not proven)
            elif not self._query("SELECT 1 FROM journal WHERE lsn = ?", (first,)):
                self._segments.recover(first, 0, keep=not proven)

    def _whole(self, lsn: int) -> bool:
        try:
            self.at(lsn)
        except StoreError:
            return False
        return True

    def close(self) -> None:
        self._segments.close()

    # --------------------------------------------------------------------- writing

    @property
    def mark(self) -> tuple[int, int]:
        """Where the next body goes."""
        return self._segments.mark

    def cut(self, mark: tuple[int, int]) -> None:
        """Remove the bodies of a failed transaction: otherwise the next one's would follow a gap."""
        self._segments.cut(mark)

    def insert(self, db: sqlite3.Connection, entries: Sequence[Entry]) -> int:
        """Add records, their larger bodies first: a row may refer only to a durable body.

        Returns the checksum of the last row.
        """
        rows: list[tuple[Any, ...]] = []
        together = 0
        for entry in entries:
            record = rec.pack(entry.record)
            # Over record and body: a body in the place of another one is damage as well.
            crc = checksum(record, entry.body)
            rows.append((entry.record.lsn, rec.kind(entry.record), record, entry.body, crc, None, None, None))
            together += 0 if entry.body is None else len(entry.body)
        if together > INLINE_TOGETHER:
            rows = self._write_bodies(rows)
            failpoint("commit.bodies")
        db.executemany(_INSERT, rows)
        return int(rows[-1][4])

    def _write_bodies(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows, with larger bodies moved into a segment, durably."""
        large = [row for row in rows if row[3] is not None and len(row[3]) > INLINE]
        places = iter(self._segments.write(large[0][0], [row[3] for row in large]) if large else ())
        return [
            (*row[:3], None, row[4], *next(places), len(row[3])) if row[3] is not None and len(row[3]) > INLINE else row
            for row in rows
        ]

    def rewrite(self, db: sqlite3.Connection, record: rec.Record) -> bool:
        """Replace a record by one of the same lsn, without its body; return whether it still existed."""
        packed = rec.pack(record)
        (inline, segment, place, size) = db.execute(
            "SELECT body IS NOT NULL, segment, place, size FROM journal WHERE lsn = ?", (record.lsn,)
        ).fetchone()
        # Overwritten in place: a segment is deleted only as a whole, and the body must be gone now.
        cleared = segment is not None and self._segments.clear(segment, place, size)
        db.execute(
            "UPDATE journal SET record = ?, body = NULL, segment = NULL, crc = ? WHERE lsn = ?",
            (packed, checksum(packed, None), record.lsn),
        )
        return bool(inline) or cleared

    def prune(self, db: sqlite3.Connection, needed: int, keep: int) -> None:
        """Remove bodies before an lsn, and records that are `keep` older than that."""
        # Only what became unnecessary since the last time: the remaining rows are many.
        ((first,),) = db.execute(
            "SELECT min(lsn) FROM journal WHERE lsn >= ? AND lsn < ? AND body IS NOT NULL", (self._pruned, needed)
        )
        if first is not None:
            # Rows that only lost their bodies would stay where they are, and no later row fills the space between them:
            # a page would hold what a few rows with bodies left of it, for as long as they are kept.
            rows = db.execute(f"{_ROWS} WHERE lsn >= ? AND lsn < ?", (first, needed)).fetchall()
            db.execute("DELETE FROM journal WHERE lsn >= ? AND lsn < ?", (first, needed))
            db.executemany(_INSERT, ((*row[:3], None, *row[4:]) for row in rows))
        db.execute("DELETE FROM journal WHERE lsn < ?", (needed - keep,))

    def pruned(self, needed: int) -> None:
        """Delete the files to which only older rows refer, after the transaction of `prune` is durable."""
        self._pruned = needed
        self._segments.drop(before=needed)

    # --------------------------------------------------------------------- reading

    def entries(self, after: int) -> Iterator[Entry]:
        """The records after an lsn, in order.

        Raises:
            StoreError: a record is damaged or missing.
        """
        expected = after + 1
        while rows := self._query(f"{_ROWS} WHERE lsn > ? ORDER BY lsn LIMIT ?", (expected - 1, _PAGE)):
            for row in rows:
                # A gap is damage, even if each row is intact: the missing record was promised to a device.
                if row[0] != expected:
                    raise self.damaged(expected)
                expected += 1
                yield self._entry(*row)

    def at(self, lsn: int) -> Entry:
        """One record.

        Raises:
            StoreError: it is missing or damaged.
        """
        rows = self._query(f"{_ROWS} WHERE lsn = ?", (lsn,))
        if not rows:
            raise self.damaged(lsn)
        return self._entry(*rows[0])

    def _entry(  # noqa: PLR0917 - a row
        self,
        lsn: int,
        kind: str,
        record: bytes,
        body: bytes | None,
        crc: int,
        segment: int | None,
        place: int,
        size: int,
    ) -> Entry:
        try:
            if segment is not None:
                body = self._segments.read(segment, place, size)
            if checksum(record, body) != crc:
                raise self.damaged(lsn)
        except TypeError as error:  # a damaged column has another type
            raise self.damaged(lsn) from error
        try:
            return Entry(rec.unpack(kind, record), body)
        except WireError as error:
            raise StoreDamaged(
                f"The journal in {self._directory} holds what this version of Midge does not know ({error}): start "
                f"with the version that wrote it. If it was this one: {self._at_stake(lsn)}"
            ) from error

    def damaged(self, lsn: int) -> StoreDamaged:
        """The error for a missing or damaged record."""
        return StoreDamaged(
            f"The journal in {self._directory} is damaged at record {lsn}: what was decided from there on would be "
            f"lost. {self._at_stake(lsn)}"
        )

    def _at_stake(self, lsn: int) -> str:
        at_stake = self.decided - decided_before(self._query, lsn)
        return what_to_do(self._directory, max(at_stake, 0))


def decided_before(query: Query, lsn: int) -> int:
    """Number of updates decided on before a record, since the store began."""
    newest = next((row for row in entered(query) if row.lsn < lsn), None)
    before, since = (0, 0) if newest is None else (newest.updates, newest.lsn)
    ((behind,),) = query("SELECT count(*) FROM journal WHERE lsn > ? AND lsn < ? AND kind = 'update'", (since, lsn))
    return before + int(behind)


def checksum(record: bytes, body: bytes | memoryview | None) -> int:
    """Checksum of a row: over the packed record and its body."""
    return zlib.crc32(body or b"", zlib.crc32(record))
