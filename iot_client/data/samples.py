"""Recent rows of a device's own data: in memory for training, on disk to survive a reboot. They never leave the device.

A ring buffer of the newest rows, bounded in rows and in bytes. They are written in batches, one segment each, rarely
enough that a flash card lives for years; a power cut loses the rows that were not yet written, and nothing else.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midge.iot_client.data.intake import Intake
from midge.iot_client.data.row_reader import Kind, RowReader
from midge.iot_client.data.samples_file import SamplesFile
from midge.storage.database import DatabaseError, DiskFull
from midge.wire.clocks import SANE
from midge.wire.moments import SENTINEL, Moments

log = logging.getLogger("iot_client")

Array = npt.NDArray[np.float32]

EVERY = 300.0
"""Minimum seconds between two writes, unless a batch is full."""
BATCH = 1024
"""Rows that are written at once."""
LEAST = 32
"""Minimum rows for statistics, and by which those of a survey may grow."""
CLIP = 10.0
"""Robust deviations from the median beyond which a value is an outlier: never reached by a normal distribution."""
DEVIATION = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
TELL_EVERY = 3600.0
"""Seconds between two warnings of one kind of unusable value."""
OBSERVED = "observe"
"""The source of rows that a program gives."""
_NEW = " new"
"""Mark with the number of rows that no training has taken yet."""
_PLACE = " place"
"""Mark with the number of rows that were kept since the file was made."""


class Source(Protocol):
    """A source of rows."""

    async def follow(self, samples: "Samples") -> None:
        """Add rows to the samples while it runs."""


class Samples:
    """The newest rows. `observe` and `arrays` may be called from any thread.

    Args:
        path: the file; None keeps them in memory.
        features: names of the inputs, in order.
        label: the name of the target; None for rows without one, such as those of an autoencoder, whose target is the
            input.
        kind: whether the label is a value or the number of a class, from 0; `reconstruction` without one.
        rows: maximum number of rows kept.
        size: maximum bytes in memory, and about twice that on disk; the stricter of the two limits applies.
        clip: robust deviations from the median at which outliers are clipped when rows are read; None clips nothing.
        every: minimum seconds between two writes.
        least: rows before `moments` returns statistics: those of fewer rows are noise.
        expire: seconds after which a row is removed, also from the disk; None keeps it as long as there is room.
        missing_values: numbers or words that stand for missing values, such as -9999, in every source.
        clock: seconds of a monotonic clock.
        wall: seconds since 1970.

    Raises:
        ValueError: there are no features, or one occurs twice, or a label is missing or superfluous.
        SamplesError: the file cannot be used, or holds other columns.

    Examples:
        >>> samples = midge.Samples(None, ["speed", "heat"], label="power")
        >>> samples.observe({"speed": 1.2, "heat": 40.0, "power": 7.5})
        True
        >>> x, y = samples.arrays()
        >>> x.shape, y.shape
        ((1, 2), (1,))
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
        expire: float | None = None,
        missing_values: Sequence[str | float] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.features, self.label = tuple(features), label
        self._reader = RowReader(self.features, label, kind, missing_values)
        self.kind, self.wanted = self._reader.kind, self._reader.wanted
        twice = sorted({name for name in self.wanted if self.wanted.count(name) > 1})
        if not self.features or twice:
            which = f"; {', '.join(map(repr, twice))} is there twice" if twice else ""
            raise ValueError(f"Samples have features and one label, each with a name of its own{which}.")
        if expire is not None and not expire > 0:
            raise ValueError(f"Rows cannot expire after {expire:g} seconds: give a time above 0, or None to keep them.")
        self.capacity = min(rows, size // (4 * self._width))
        if self.capacity < 1:
            raise ValueError(f"{rows} rows in {size} bytes leave no room for one row of {self._width} values.")
        self._least = max(1, min(least, self.capacity))
        self.path = None if path is None else Path(path)
        self._clip, self._every, self._clock = clip, every, clock
        self._ring: Array = np.empty((self.capacity, self._width), np.float32)
        self._lock = threading.RLock()
        self._wall, self._lifetime = wall, math.inf if expire is None else expire
        self._times: npt.NDArray[np.float64] = np.full(self.capacity, np.inf)
        """When each row of the ring came at the latest, in seconds since 1970; infinity while no set clock says."""
        self.expired = 0
        """Rows that were removed because of their age, since the start."""
        self._floor = 0
        """Value of `seen` before the oldest row that has not expired."""
        self.seen = 0
        """Number of rows kept since the start, plus those stored before."""
        self._before = 0
        """Rows kept before all these, in earlier runs: they are gone."""
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
        self._due = clock() + every
        self._closed = False
        columns = (*self.features, self.label, self.kind)
        self._file = None if self.path is None else SamplesFile(self.path, columns, expires=expire is not None)
        self.marks: dict[str, str] = {} if self._file is None else self._file.marks
        """Read position of each source; stored with the rows."""
        if self._file is not None:
            self._load(self._file)

    @property
    def _width(self) -> int:
        return len(self.wanted)

    @property
    def written(self) -> int:
        """Bytes written to the disk since the start, in whole pages."""
        return 0 if self._file is None else self._file.written

    def intake(self, source: str) -> Intake:
        """The counts of a source."""
        return self.intakes.setdefault(source, Intake(source))

    def received(self) -> list[dict[str, Any]]:
        """The counts of all sources, as plain values."""
        with self._lock:
            return [each.packed() for each in self.intakes.values()]

    def __len__(self) -> int:
        return min(self.seen - self._floor, self.capacity)

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
            self._times[self.seen % self.capacity] = now if (now := self._wall()) >= SANE else math.inf
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
            self.expire()
            rows = self._rows()
            if take:
                self._taken = self.seen
        x, y, self.clipped = _cut(rows, self.kind, self._clip)
        return x, y

    def recorded(self) -> Array:
        """Rows as they came, oldest first: of shape (n, features), or with the label as the last column.

        Only whole blocks of `LEAST` rows, counted from the first row ever kept: what two calls return differs by at
        least as many rows, whatever came, fell out of the ring, expired, or was read again from the file.
        """
        with self._lock:
            self.expire()
            first = -(-(self.seen - len(self) + self._before) // LEAST) * LEAST - self._before
            end = (self.seen + self._before) // LEAST * LEAST - self._before
            if end > self._stored:
                self.flush()  # rows that a crash takes away would give their places to others
            return self._ring[np.arange(first, end) % self.capacity]

    def newest(self, most: int) -> tuple[Array, npt.NDArray[Any], int]:
        """The newest rows as `arrays` returns them, clipped by their own medians; and `seen` with the last of them."""
        with self._lock:
            self.expire()
            rows, seen = self._rows(most), self.seen
        x, y, _ = _cut(rows, self.kind, self._clip)
        return x, y, seen

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

    def _rows(self, most: int | None = None) -> Array:
        """A copy of the newest rows, oldest first; of all by default."""
        count = len(self) if most is None else min(most, len(self))
        return self._ring[np.arange(self.seen - count, self.seen) % self.capacity]

    # --------------------------------------------------------------------- the disk

    def expire(self) -> int:
        """Remove rows that are older than they may get, also from the disk; return how many.

        A wrong clock removes rows too early, and none too late: a row is no newer than this call, nor than later rows.
        """
        now = self._wall()
        if math.isinf(self._lifetime) or now < SANE:
            return 0
        with self._lock:
            places = np.arange(self.seen - len(self), self.seen) % self.capacity
            self._times[places] = np.minimum(self._times[places], now)
            old = np.flatnonzero(self._times[places] < now - self._lifetime)
            count = int(old[-1]) + 1 if old.size else 0
            self._ring[places[:count]] = np.nan
            self._floor = self.seen - len(self) + count
            self._taken, self.expired = max(self._taken, self._floor), self.expired + count
            self._stored = max(self._stored, self._floor)  # what was not written yet is not written any more
            if self._file is not None and not self._closed:
                try:
                    self._file.expire(now - self._lifetime, now)
                except (DiskFull, DatabaseError) as error:
                    log.warning("Expired rows cannot be removed from %s (%s); it is tried again.", self.path, error)
            return count

    def flush(self) -> None:
        """Write unwritten rows; if that fails, they stay in memory and are written later."""
        with self._lock:
            self._due = self._clock() + self._every
            if self._file is None or self._stored == self.seen or self._closed:
                return
            new = np.arange(self.seen - min(self.seen - self._stored, len(self)), self.seen) % self.capacity
            try:
                marks = {_NEW: str(self.new), _PLACE: str(self._before + self.seen)}
                self._file.write(self._ring[new], self.capacity, marks, float(self._times[new].min()))
            except (DiskFull, DatabaseError) as error:
                log.warning("Samples cannot be written to %s (%s): they stay in memory.", self.path, error)
                return
            self._stored = self.seen

    def close(self) -> None:
        """Write the remaining rows and close the file; later rows stay in memory."""
        with self._lock:
            self.flush()
            self._closed = True
            if self._file is not None:
                self._file.database.close()

    def _load(self, file: SamplesFile) -> None:
        kept = file.rows(self._width)[-self.capacity :]
        self._ring[: len(kept)] = kept
        self.seen = self._stored = len(kept)
        times = [file.times.get(number, math.inf) for number, rows in file.segments for _ in range(rows)]
        self._times[: len(kept)] = times[len(times) - len(kept) :]
        self._present |= np.isfinite(kept[:, : len(self.features)]).any(axis=0)
        self._taken = max(0, self.seen - int(self.marks.pop(_NEW, "0")))
        self._before = max(0, int(self.marks.pop(_PLACE, "0")) - self.seen)


def lose_unclassed(
    samples: Samples, intake: Intake, value: str, classes: Sequence[str], *, text: str, line: int | None = None
) -> None:
    """Count a row whose label is not one of the classes."""
    why = f"{samples.label} is {value[:60]!r}, none of {', '.join(classes)}"
    samples.reject("classes", why)
    samples.unlabelled += 1
    intake.lose(f"{samples.label} is none of the classes", why, text, line)


def _cut(rows: Array, kind: Kind, clip: float | None) -> tuple[Array, npt.NDArray[Any], int]:
    """Inputs and targets of rows, which are clipped in place, and the number of outliers."""
    clipped = 0
    if clip is not None and len(rows):
        clipped = _clip(rows[:, :-1] if kind == "classification" else rows, clip)
    if kind == "reconstruction":
        return rows, rows, clipped
    y: npt.NDArray[Any] = rows[:, -1]
    return rows[:, :-1], y.astype(np.int64) if kind == "classification" else y, clipped


def _text(line: str | None, given: npt.NDArray[Any]) -> str:
    """A row as text; one from a program unless an integer is too long for that."""
    with suppress(ValueError):
        return line if line is not None else ", ".join(map(str, given))
    return "a row with a number that is too long"


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
