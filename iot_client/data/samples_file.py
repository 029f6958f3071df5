"""The file of a device's samples: segments of rows, and the read position of each source."""

import ast
import logging
import math
import os
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing, suppress
from operator import eq
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from midge.storage.database import MODES, Database, DatabaseError, DiskFull

log = logging.getLogger("iot_client")

_PAGE = 4096
_MAGIC, _ALIKE = b"SQLite format 3\0", 12
"""First bytes of a database, and how many of them a damaged one still has."""
_TABLES = """
CREATE TABLE IF NOT EXISTS segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL, crc INTEGER, at REAL
);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_WITH_TRACES, _WITHOUT_TRACES = 0, 1
"""Values of user_version: whether free pages may hold bytes of rows that were removed."""
_CRC, _COLUMNS = " crc", " columns"
"""Marks that are not read positions: the checksum of the others, and the columns of the rows."""


class SamplesError(Exception):
    """The samples' file cannot be used; the message says why and what to do."""


class SamplesFile:
    """An open file. Threads must take turns.

    Args:
        path: the file; a damaged one is moved aside, because rows can be collected again.
        columns: what its rows hold.
        expires: whether `expire` will be called: no byte of a removed row may stay then.

    Raises:
        SamplesError: it cannot be used, or holds other columns.
    """

    def __init__(self, path: Path, columns: tuple[object, ...], *, expires: bool = False) -> None:
        self.path = path
        self.marks: dict[str, str] = {}
        """Read position of each source; written in one transaction with the rows."""
        self.written = 0
        """Bytes written to the disk since the start, in whole pages."""
        self.segments: list[tuple[int, int]] = []
        """Number and rows of each segment, oldest first."""
        self.times: dict[int, float] = {}
        """By segment, when its first row came at the latest, in seconds since 1970; infinity while that is unknown."""
        self._damaged = path.with_name(f"{path.name}.damaged")
        self._expires, self._traces = expires, True
        """Whether bytes of removed rows may be in the log or in free pages."""
        # A power cut may lose the newest segments: nothing depends on them. The log is kept short, to spare the card.
        pragmas = ("wal_autocheckpoint=64", "journal_size_limit=0", f"secure_delete={'ON' if expires else 'OFF'}")
        self.database = Database(path, synchronous="NORMAL", pragmas=pragmas, threads=True)
        try:
            self._open()
            self._check_columns(repr(columns))
        except (sqlite3.Error, DiskFull, DatabaseError) as error:
            self.database.close()
            raise SamplesError(f"The samples {path} cannot be used ({error}): move the file away.") from error
        except SamplesError:
            self.database.close()
            raise

    def _open(self) -> None:
        path = self.path
        try:
            if path.exists():
                examine_samples(path, segments=False)
        except sqlite3.Error as error:
            if sum(map(eq, path.read_bytes()[:16], _MAGIC)) < _ALIKE:
                raise  # not damaged samples, but another kind of file
            log.warning("The samples %s are damaged (%s): they start over; the file is kept as .damaged.", path, error)
            for each in ("-wal", "-shm"):
                path.with_name(path.name + each).unlink(missing_ok=True)
            path.replace(self._damaged)
        self.database.open(_TABLES)
        known = {row[1] for row in self.database.connection.execute("PRAGMA table_info(segments)")}
        for column in ("crc INTEGER", "at REAL"):  # what files of an earlier Midge lack
            if column.split()[0] not in known:
                self.database.connection.execute(f"ALTER TABLE segments ADD COLUMN {column}")
        if not self._expires:
            self.database.connection.execute(f"PRAGMA user_version = {_WITH_TRACES}")

    def _check_columns(self, columns: str) -> None:
        found = dict(self.database.connection.execute("SELECT name, value FROM marks"))
        if _intact(found):
            self.marks = {name: value for name, value in found.items() if name != _CRC}
        else:
            log.warning("The read positions in %s are damaged: files are read again from their beginning.", self.path)
        if self.marks.setdefault(_COLUMNS, columns) != columns:
            raise SamplesError(
                f"{self.path} holds other columns, {_described(self.marks[_COLUMNS])}: move it away to begin again "
                f"with {_described(columns)}."
            )

    def rows(self, width: int) -> npt.NDArray[np.float32]:
        """All undamaged rows of this width, oldest first. To be called once, before `write`."""
        parts = [np.empty((0, width), np.float32)]
        query = "SELECT number, data, crc, at FROM segments ORDER BY number"
        for place, data, crc, at in self.database.connection.execute(query):
            rows = np.empty((0, width), np.float32)
            if crc not in (None, zlib.crc32(data)):
                log.warning("%d bytes of samples in %s are damaged, and left out.", len(data), self.path)
            elif (values := np.frombuffer(data, np.float32)).size % width == 0:
                rows = values.reshape(-1, width)
            parts.append(rows)
            self.segments.append((place, len(rows)))
            self.times[place] = math.inf if at is None else at
        return np.concatenate(parts)

    def expire(self, before: float, now: float) -> None:
        """Remove the segments up to the newest one that is dated before a time, with every byte of removed rows.

        What has no date, or one after `now`, is dated `now`. A damaged file that was put aside expires as well.

        Raises:
            DiskFull: there is no room.
            DatabaseError: it cannot be written.
        """
        old = [place for place, (number, _) in enumerate(self.segments, 1) if self.times[number] < before]
        gone, kept = self.segments[: max(old, default=0)], self.segments[max(old, default=0) :]
        late = [number for number, _ in kept if self.times[number] > now]
        if gone or late:
            with self.database.transaction() as db:
                db.executemany("DELETE FROM segments WHERE number = ?", [(number,) for number, _ in gone])
                db.executemany("UPDATE segments SET at = ? WHERE number = ?", [(now, number) for number in late])
            self.segments = kept
            self.times = {number: min(self.times[number], now) for number, _ in kept}
            self._traces = self._traces or bool(gone)
        if self._traces:
            self._erase_traces()
        with suppress(FileNotFoundError):
            aside = self._damaged.stat().st_mtime
            if aside < before:
                self._damaged.unlink()
            elif aside > now:
                os.utime(self._damaged, (now, now))

    def _erase_traces(self) -> None:
        """Erase removed rows from the log, and once from pages that were freed while no row expired."""
        with self.database.transaction() as db:  # errors become the database's own
            ((version,),) = db.execute("PRAGMA user_version").fetchall()
            if version == _WITH_TRACES:
                db.execute("PRAGMA temp_store = MEMORY")
                db.execute("VACUUM")
                db.execute(f"PRAGMA user_version = {_WITHOUT_TRACES}")
            ((pages,),) = db.execute("PRAGMA page_count").fetchall()
            ((busy, logged, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._traces = bool(busy)  # while a reader has it open; the next call tries again
        self.written += _PAGE * (max(logged, 0) + (2 * pages if version == _WITH_TRACES else 0))

    def write(self, new: npt.NDArray[np.float32], capacity: int, marks: Mapping[str, str], at: float) -> None:
        """Add rows as a segment, and remove segments that `capacity` rows do not need; `marks` are added to ours.

        `at` is when the first of them came, in seconds since 1970; infinity while that is unknown.

        Raises:
            DiskFull: there is no room.
            DatabaseError: it cannot be written.
        """
        old = self._expired_segments(len(new), capacity)
        marks = {**self.marks, **marks}
        marks[_CRC] = _checksum(marks)
        with self.database.transaction() as db:
            row = new.tobytes(), zlib.crc32(new.tobytes()), at
            segment = db.execute("INSERT INTO segments (data, crc, at) VALUES (?, ?, ?)", row).lastrowid
            db.executemany("DELETE FROM segments WHERE number = ?", [(each,) for each in old])
            db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", list(marks.items()))
        assert segment is not None
        self.segments = [*self.segments[len(old) :], (segment, len(new))]
        self._traces = self._traces or bool(old)
        self.times[segment] = at
        self.written += 2 * (-(-new.nbytes // _PAGE) + 3) * _PAGE  # into the log, and from there into the file

    def _expired_segments(self, new: int, capacity: int) -> list[int]:
        """Numbers of the segments that are not needed once `new` rows are added: the others fill the ring."""
        left, old = new + sum(rows for _, rows in self.segments), []
        for segment, rows in self.segments:
            left -= rows
            if left < capacity:
                break
            old.append(segment)
        return old


def examine_samples(path: Path, *, segments: bool = True) -> None:
    """Verify the content of a file of samples.

    Raises:
        sqlite3.Error: it is damaged.
    """
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        if (checked := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(checked[0]))
        with path.open("rb") as file:
            if file.read(20)[18:] not in MODES:
                raise sqlite3.DatabaseError("its header is damaged")
        if segments and "crc" in {row[1] for row in db.execute("PRAGMA table_info(segments)")}:
            for number, data, crc in db.execute("SELECT number, data, crc FROM segments"):
                if crc not in (None, zlib.crc32(data)):
                    raise sqlite3.DatabaseError(f"rows of segment {number} are damaged")
            if not _intact(dict(db.execute("SELECT name, value FROM marks"))):
                raise sqlite3.DatabaseError("the read positions of the sources are damaged")


def _checksum(marks: Mapping[str, str]) -> str:
    """CRC-32 of all marks except the checksum, which files of an earlier Midge lack."""
    return str(zlib.crc32(repr(sorted(each for each in marks.items() if each[0] != _CRC)).encode()))


def _intact(marks: Mapping[str, str]) -> bool:
    return marks.get(_CRC) in (None, _checksum(marks))


def _described(columns: str) -> str:
    """The columns that a file was made for, as text."""
    with suppress(ValueError, SyntaxError, TypeError):
        *features, label, kind = ast.literal_eval(columns)
        return f"{', '.join(features)} {'without a label' if label is None else f'with the label {label}'} ({kind})"
    return columns
