"""Recent rows of a device's own data: in memory for training, on disk to survive a reboot. They never leave the device.

A ring buffer of the newest rows, bounded in rows and in bytes. They are written in batches, one segment each, rarely
enough that a flash card lives for years; a power cut loses the rows that were not yet written, and nothing else.
"""

import ast
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from operator import eq
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.intake import Intake
from midge.iot_client.data.row_reader import Kind, RowReader
from midge.storage.database import Database, DatabaseError, DiskFull
from midge.wire.moments import SENTINEL, Moments

log = logging.getLogger("iot_client")

Array = npt.NDArray[np.float32]

EVERY = 300.0
"""Least seconds between two writes, unless a batch is full."""
BATCH = 1024
"""Rows that are written at once."""
LEAST = 32
"""Least rows for statistics."""
CLIP = 10.0
"""Robust deviations from the median beyond which a value is an outlier: never reached by a normal distribution."""
DEVIATION = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
TELL_EVERY = 3600.0
"""Seconds between two warnings of one kind of unusable value."""
OBSERVED = "observe"
"""The source of rows that a program gives."""
_PAGE = 4096
_MAGIC, _ALIKE = b"SQLite format 3\0", 12
"""First bytes of a database, and how many of them a damaged one still has."""
_TABLES = """
CREATE TABLE IF NOT EXISTS segments (number INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL, crc INTEGER);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_CRC = " crc"
"""The mark that holds the checksum of the others."""


class Source(Protocol):
    """A source of rows."""

    async def follow(self, samples: "Samples") -> None:
        """Add rows to the samples while it runs."""


class SamplesError(Exception):
    """The samples' file cannot be used; the message says why and what to do."""


class Samples:
    """The newest rows. `observe` and `arrays` may be called from any thread.

    Args:
        path: the file; None keeps them in memory.
        features: names of the inputs, in order.
        label: the name of the target; None for rows without one, such as those of an autoencoder, whose target is
            the input.
        kind: whether the label is a value or the number of a class, from 0; `reconstruction` without one.
        rows: most rows that are kept.
        size: most bytes in memory, and about twice that on disk; the stricter of the two limits applies.
        clip: robust deviations from the median at which outliers are clipped when rows are read; None clips nothing.
        every: least seconds between two writes.
        least: rows before `moments` returns statistics: those of fewer rows are noise.
        missing_values: numbers or words that stand for missing values, such as -9999, in every source.
        clock: seconds of a monotonic clock.

    Raises:
        ValueError: there are no features, or one has two names, or a label is missing or too many.
        SamplesError: the file cannot be used, or holds other columns.
    """

    def __init__(
        self,
        path: str | Path | None,
        features: Sequence[str],
        label: str | None = None,
        *,
        kind: Kind | None = None,
        rows: int = 10_000,
        size: int = 16 * 2**20,
        clip: float | None = CLIP,
        every: float = EVERY,
        least: int = LEAST,
        missing_values: Sequence[str | float] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.features, self.label = tuple(features), label
        self._reader = RowReader(self.features, label, kind, missing_values)
        self.kind, self.wanted = self._reader.kind, self._reader.wanted
        twice = sorted({name for name in self.wanted if self.wanted.count(name) > 1})
        if not self.features or twice:
            which = f"; {', '.join(map(repr, twice))} is there twice" if twice else ""
            raise ValueError(f"Samples have features and one label, each with a name of its own{which}.")
        self.capacity = min(rows, size // (4 * self._width))
        if self.capacity < 1:
            raise ValueError(f"{rows} rows in {size} bytes leave no room for one row of {self._width} values.")
        self._least = max(1, min(least, self.capacity))
        self.path = None if path is None else Path(path)
        self._clip, self._every, self._clock = clip, every, clock
        self._ring: Array = np.empty((self.capacity, self._width), np.float32)
        self._lock = threading.RLock()
        self.seen = 0
        """Number of rows kept since the start, plus those stored before."""
        self._taken = 0
        """Value of `seen` when a training last took the rows."""
        self._stored = 0
        """Value of `seen` when rows were last written."""
        self.unlabelled = 0
        """Rows without a label, or with nothing else, dropped since the start."""
        self.missing = 0
        """Missing values in the kept rows, since the start."""
        self.sentinels: dict[str, int] = {}
        """Values beyond any sensor's range, by column, since the start: they count as missing."""
        self.rejected: dict[str, int] = {}
        """Unusable values, lines and messages, by kind, since the start."""
        self.intakes: dict[str, Intake] = {}
        """Counts of each source, since the start."""
        self.on_row: Callable[[Array], None] | None = None
        """Called with the features of each arriving row, with or without a label, in the thread that adds it."""
        self._first_rejected = ""
        self._told: dict[str, float] = {}
        self._present: npt.NDArray[np.bool_] = np.zeros(len(self.features), bool)
        """Which features had a number in some row."""
        self.clipped = 0
        """Number of outliers in the rows that were last read."""
        self.written = 0
        """Bytes written to the disk since the start, in whole pages."""
        self.marks: dict[str, str] = {}
        """Read position of each source; written in one transaction with the rows."""
        self._due = clock() + every
        self._segments: list[tuple[int, int]] = []
        """Number and rows of each segment on disk, oldest first."""
        self._db: Database | None = None
        if self.path is not None:
            self._open(self.path)

    @property
    def _width(self) -> int:
        return len(self.wanted)

    def intake(self, source: str) -> Intake:
        """The counts of a source."""
        return self.intakes.setdefault(source, Intake(source))

    def received(self) -> list[dict[str, Any]]:
        """The counts of all sources, as plain values."""
        with self._lock:
            return [each.packed() for each in self.intakes.values()]

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def new(self) -> int:
        """Rows since a training last took them."""
        return self.seen - self._taken

    # ---------------------------------------------------------------------- adding

    def observe(
        self,
        x: npt.ArrayLike | Sequence[Any] | Mapping[str, Any],
        y: float | None = None,
        *,
        intake: Intake | None = None,
        line: str | None = None,
        number_of_line: int | None = None,
    ) -> bool:
        """Add a row; return whether it is kept.

        Args:
            x: values in the order of `features`, NaN or None for missing ones; or values by name, with the label
                among them.
            y: the label, if x is no mapping.
            intake: the source that the row is counted for.
            line: the unparsed row, shown if it is dropped.
            number_of_line: line number in a file, from 1.

        Raises:
            ValueError: there are more or fewer values than features.
        """
        if isinstance(x, Mapping):
            y = x.get(self.label) if y is None and self.label is not None else y
            x = [x.get(name) for name in self.features]
        given = np.ravel(np.asarray(x, object))
        if len(given) != len(self.features):
            raise ValueError(f"a row has {len(self.features)} values ({', '.join(self.features)}), not {len(given)}")
        if self.label is not None:
            given = np.append(given, np.array([y], object))
        with self._lock, np.errstate(over="ignore"):
            counts = self.intake(OBSERVED) if intake is None else intake
            counts.read += 1
            values, wrong = self._reader.numbers(given)
            for name, why in wrong:
                if name != self.label:
                    counts.lose_value(name, why, _text(line, given), number_of_line)
                self.reject(name, why)
            whole_row = values.astype(np.float32)
            known = np.isfinite(whole_row)
            if (beyond := known & (np.abs(whole_row) > SENTINEL)).any():
                _note_sentinels(self.sentinels, self.wanted, np.flatnonzero(beyond), whole_row)
                known &= ~beyond
            whole_row[~known] = np.nan
            if self.on_row is not None and known[: len(self.features)].any():
                self.on_row(whole_row[: len(self.features)].copy())
            if (useless := self._reader.useless(known, given, values)) is not None:
                self.unlabelled += 1
                counts.drop(*useless, _text(line, given), number_of_line)
                return False
            counts.kept += 1
            self.missing += int(np.count_nonzero(~known))
            self._present |= known[: len(self.features)]
            self._ring[self.seen % self.capacity] = whole_row
            self.seen += 1
            if self.seen - self._stored >= min(BATCH, self.capacity) or self._clock() >= self._due:
                self.flush()
        return True

    def reject(self, kind: str, words: str) -> None:
        """Count an unusable value, and warn of it: the first time, and then once an hour.

        Args:
            kind: name of the counter, for example of a column.
            words: what came, and what it should be.
        """
        with self._lock:
            self.rejected[kind] = count = self.rejected.get(kind, 0) + 1
            self._first_rejected = self._first_rejected or words
            if count > 1 and self._clock() < self._told[kind] + TELL_EVERY:
                return
            self._told[kind] = self._clock()
        log.warning("%s; %d of this kind so far, and %d rows kept.", words, count, self.seen)

    @property
    def trouble(self) -> str | None:
        """Why no row was kept, as constant text; None once one was, or if none came."""
        if self.seen:
            return None
        if self._first_rejected:
            return self._first_rejected
        if problem := next((each.problem for each in self.intakes.values() if each.problem), None):
            return problem
        what = "a feature" if self.label is None else f"{self.label} and a feature"
        return f"no row had {what}" if self.unlabelled else None

    @property
    def absent(self) -> tuple[str, ...]:
        """Features that never had a number."""
        return tuple(name for name, there in zip(self.features, self._present, strict=True) if not there)

    # -------------------------------------------------------------------- reading

    def arrays(self, *, take: bool = True) -> tuple[Array, npt.NDArray[Any]]:
        """All rows, oldest first: x of shape (n, features), NaN for missing values, and y of shape (n,).

        Without a label, y is x: an autoencoder's target is its input.

        Values far from their channel's median are clipped to `clip` robust deviations from it, and counted in
        `clipped`; labels of a regression too. A channel in which one value fills more than half is not clipped.

        Args:
            take: whether these rows stop counting as new.
        """
        with self._lock:
            rows = self._rows()
            if take:
                self._taken = self.seen
        self.clipped = 0
        if self._clip is not None and len(rows):
            self.clipped = _clip(rows[:, :-1] if self.kind == "classification" else rows, self._clip)
        if self.label is None:
            return rows, rows
        y: npt.NDArray[Any] = rows[:, -1]
        return rows[:, :-1], y.astype(np.int64) if self.kind == "classification" else y

    def moments(self) -> dict[str, Moments]:
        """Normalisation statistics: of `input`, and for regression of `target`; none with fewer than `least` rows."""
        if self.scarce is not None:
            return {}
        x, y = self.arrays(take=False)
        found = {"input": Moments.of(x)}
        return {**found, "target": Moments.of(y[:, None])} if self.kind == "regression" else found

    @property
    def scarce(self) -> str | None:
        """Why there are no `moments` yet, as text; None once there are."""
        if len(self) >= self._least:
            return None
        return f"statistics need {self._least} rows, and there are fewer{f': {self.trouble}' if self.trouble else ''}"

    def _rows(self) -> Array:
        """A copy of the kept rows, oldest first."""
        at = self.seen % self.capacity
        return self._ring[:at].copy() if self.seen < self.capacity else np.roll(self._ring, -at, axis=0)

    # --------------------------------------------------------------------- the disk

    def flush(self) -> None:
        """Write unwritten rows; if that fails, they stay in memory and are written later."""
        with self._lock:
            self._due = self._clock() + self._every
            if self._db is None or self._stored == self.seen:
                return
            new = self._rows()[-min(self.seen - self._stored, len(self)) :]
            old = self._expired_segments(len(new))
            marks = {**self.marks, " new": str(self.new)}
            marks[_CRC] = _checksum(marks)
            try:
                with self._db.transaction() as db:
                    row = new.tobytes(), zlib.crc32(new.tobytes())
                    segment = db.execute("INSERT INTO segments (data, crc) VALUES (?, ?)", row).lastrowid
                    db.executemany("DELETE FROM segments WHERE number = ?", [(each,) for each in old])
                    db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", list(marks.items()))
            except (DiskFull, DatabaseError) as error:
                log.warning("Samples cannot be written to %s (%s): they stay in memory.", self.path, error)
                return
            assert segment is not None
            self._segments = [*self._segments[len(old) :], (segment, len(new))]
            self._stored = self.seen
            self.written += 2 * (-(-new.nbytes // _PAGE) + 3) * _PAGE  # into the log, and from there into the file

    def _expired_segments(self, new: int) -> list[int]:
        """Numbers of the segments that are not needed once `rows` are added: the others fill the ring."""
        left, old = new + sum(rows for _, rows in self._segments), []
        for segment, rows in self._segments:
            left -= rows
            if left < self.capacity:
                break
            old.append(segment)
        return old

    def close(self) -> None:
        """Write the remaining rows and close the file; later rows stay in memory."""
        with self._lock:
            self.flush()
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self, path: Path) -> None:
        # A power cut may lose the newest segments: nothing depends on them. The log is kept short, to spare the card.
        pragmas = ("wal_autocheckpoint=64", "journal_size_limit=0")
        database = Database(path, synchronous="NORMAL", pragmas=pragmas, threads=True)
        try:
            self._begin(database, path)
            db = database.connection
            self.marks = _marks(db, path)
            columns = repr((*self.features, self.label, self.kind))
            if self.marks.setdefault(" columns", columns) != columns:
                raise SamplesError(
                    f"{path} holds other columns, {_columns(self.marks[' columns'])}: move it away to begin again with "
                    f"{_columns(columns)}."
                )
            self._load(db)
            self._db = database
        except (sqlite3.Error, DiskFull, DatabaseError) as error:
            raise SamplesError(f"The samples {path} cannot be used ({error}): move the file away.") from error
        finally:
            if self._db is None:
                database.close()

    def _begin(self, database: Database, path: Path) -> None:
        """Open the file; a damaged one is moved aside, because rows can be collected again."""
        try:
            if path.exists():
                examine_samples(path, segments=False)
        except sqlite3.Error as error:
            if sum(map(eq, path.read_bytes()[:16], _MAGIC)) < _ALIKE:
                raise  # not damaged samples, but another kind of file
            log.warning("The samples %s are damaged (%s): they start over; the file is kept as .damaged.", path, error)
            for each in ("-wal", "-shm"):
                path.with_name(path.name + each).unlink(missing_ok=True)
            path.replace(path.with_name(f"{path.name}.damaged"))
        database.open(_TABLES)
        if "crc" not in {row[1] for row in database.connection.execute("PRAGMA table_info(segments)")}:
            database.connection.execute("ALTER TABLE segments ADD COLUMN crc INTEGER")

    def _load(self, db: sqlite3.Connection) -> None:
        parts = []
        for place, data, crc in db.execute("SELECT number, data, crc FROM segments ORDER BY number"):
            if crc not in (None, zlib.crc32(data)):
                log.warning("%d bytes of samples in %s are damaged, and left out.", len(data), self.path)
                continue
            rows = np.frombuffer(data, np.float32)
            if rows.size % self._width == 0:
                parts.append(rows.reshape(-1, self._width))
                self._segments.append((place, len(parts[-1])))
        if parts:
            kept = np.concatenate(parts)[-self.capacity :]
            self._ring[: len(kept)] = kept
            self.seen = self._stored = len(kept)
            self._present |= np.isfinite(kept[:, : len(self.features)]).any(axis=0)
        self._taken = max(0, self.seen - int(self.marks.pop(" new", "0")))


def lose_unclassed(
    samples: Samples, intake: Intake, said: str, classes: Sequence[str], *, text: str, line: int | None = None
) -> None:
    """Count a row whose label is none of the classes."""
    why = f"{samples.label} is {said[:60]!r}, none of {', '.join(classes)}"
    samples.reject("classes", why)
    samples.unlabelled += 1
    intake.lose(f"{samples.label} is none of the classes", why, text, line)


def _text(line: str | None, given: npt.NDArray[Any]) -> str:
    """A row as text; one from a program unless an integer is too long for that."""
    with suppress(ValueError):
        return line if line is not None else ", ".join(map(str, given))
    return "a row with a number that is too long"


def _checksum(marks: Mapping[str, str]) -> str:
    """CRC-32 of all marks except the checksum, which files of an earlier Midge lack."""
    return str(zlib.crc32(repr(sorted(each for each in marks.items() if each[0] != _CRC)).encode()))


def _marks_intact(marks: Mapping[str, str]) -> bool:
    return marks.get(_CRC) in (None, _checksum(marks))


def _marks(db: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The read positions and other marks; empty if they are damaged: then the sources are read again."""
    found = dict(db.execute("SELECT name, value FROM marks"))
    if _marks_intact(found):
        found.pop(_CRC, None)
        return found
    log.warning("The read positions in %s are damaged: files are read again from their beginning.", path)
    return {}


def examine_samples(path: Path, *, segments: bool = True) -> None:
    """Verify the content of a file of samples.

    Raises:
        sqlite3.Error: it is damaged.
    """
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
        if (checked := db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(checked[0]))
        if segments and "crc" in {row[1] for row in db.execute("PRAGMA table_info(segments)")}:
            for number, data, crc in db.execute("SELECT number, data, crc FROM segments"):
                if crc not in (None, zlib.crc32(data)):
                    raise sqlite3.DatabaseError(f"rows of segment {number} are damaged")
            if not _marks_intact(dict(db.execute("SELECT name, value FROM marks"))):
                raise sqlite3.DatabaseError("the read positions of the sources are damaged")


def _columns(mark: str) -> str:
    """The columns that a file was made for, as text."""
    with suppress(ValueError, SyntaxError, TypeError):
        *features, label, kind = ast.literal_eval(mark)
        return f"{', '.join(features)} {'without a label' if label is None else f'with the label {label}'} ({kind})"
    return mark


def _clip(rows: Array, deviations: float) -> int:
    """Clip each channel in place; return the number of outliers."""
    clipped = 0
    for channel in rows.T:
        present = channel[np.isfinite(channel)]
        if not present.size:
            continue
        middle = np.median(present)
        reach = np.float32(deviations * DEVIATION) * np.median(np.abs(present - middle))
        if reach > 0:
            beyond = np.abs(channel - middle) > reach  # NaN is never beyond
            clipped += int(np.count_nonzero(beyond))
            channel[beyond] = np.clip(channel[beyond], middle - reach, middle + reach)
    return clipped


def _note_sentinels(counts: dict[str, int], names: Sequence[str], places: npt.NDArray[np.intp], row: Array) -> None:
    for place in places:
        name = names[place]
        if name not in counts:
            log.warning("%s is %g, which no sensor measures: such values are taken for missing.", name, row[place])
        counts[name] = counts.get(name, 0) + 1
