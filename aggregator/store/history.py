"""The history of a federation in its store: verdicts, staleness, scores, bytes and health, by periods.

Recent periods are short and old ones long, so that a year needs less than a megabyte. What follows from the journal
(verdicts, staleness, steps, releases) is counted exactly once, whatever is killed: each row names the last record in
it, and records after that are counted again at the next start. The rest (scores, bytes, health) may lack what was
observed since the last write. No row names a device.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import Any

from midge.aggregator.core import records as rec
from midge.aggregator.store.meta_table import Query, row_checksum
from midge.wire import frames
from midge.wire.clocks import SANE
from midge.wire.errors import WireError

TABLE = """
CREATE TABLE IF NOT EXISTS history (
    began INTEGER NOT NULL, seconds INTEGER NOT NULL, lsn INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (began, seconds)
) WITHOUT ROWID;
"""
TIERS = ((10, 20 * 60), (60, 3 * 3600), (600, 2 * 86_400), (3600, 60 * 86_400), (86_400, 3650 * 86_400))
"""Seconds of a period, and the age from which on it is merged into the next longer one; the last are deleted. The
shortest are for the beginning of a history, in which much happens."""
_MERGE_EVERY = 3600.0
"""Seconds between two merges, which write several pages for a few rows."""
METRICS = 16
"""Most metrics of each kind that are kept."""
_DIGITS = 4
"""Binary digits of a staleness that are kept: exact below 16 steps, within 12 % above."""
_RECORDS = "SELECT lsn, kind, record FROM journal WHERE lsn > ? AND kind IN ('update', 'step', 'release') ORDER BY lsn"
_ALL = "SELECT began, seconds, lsn, data, crc FROM history"


@dataclass(slots=True)
class ScoreRange:
    """The values of one metric in a period."""

    number: int = 0
    mean: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, other: "ScoreRange") -> None:
        """Add later values."""
        self.number += other.number
        self.mean += (other.mean - self.mean) * other.number / self.number
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass(slots=True)
class FederatedScore:
    """The newest federated result for one metric: over the devices, on their own data."""

    mean: float
    low: float
    """The tenth percentile of devices."""
    high: float
    """The ninetieth."""
    devices: int


@dataclass(slots=True)
class Period:
    """What happened in a period."""

    began: int
    """Seconds since 1970, a multiple of `seconds`."""
    seconds: int
    lsn: int = 0
    """The last record that is in it."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Final ones from the journal; temporary refusals and duplicates as observed."""
    staleness: Counter[int] = field(default_factory=Counter)
    """Accepted updates by staleness in steps, rounded down to four binary digits."""
    steps: int = 0
    releases: int = 0
    version: int = 0
    """The newest version at its end; 0 if none was released in it."""
    bytes_in: int = 0
    bytes_out: int = 0
    devices: int = 0
    """The most devices that were connected at a time."""
    states: dict[str, float] = field(default_factory=dict)
    """Seconds in each state of health; what is missing was not served."""
    evaluation: dict[str, ScoreRange] = field(default_factory=dict)
    """Results of the aggregator's own evaluation, by metric."""
    federated: dict[str, FederatedScore] = field(default_factory=dict)

    def count(self, record: rec.Record) -> None:
        """Count a record."""
        self.lsn = record.lsn
        match record:
            case rec.UpdateRecord():
                self.verdicts[record.verdict] += 1
                if record.verdict == "accepted":
                    self.staleness[rounded(record.staleness)] += 1
            case rec.StepRecord():
                self.steps += 1
            case rec.ReleaseRecord():
                self.releases += 1
                self.version = record.version
            case _:
                pass

    def add(self, later: "Period") -> None:
        """Add a later one."""
        self.lsn, self.version = max(self.lsn, later.lsn), later.version or self.version
        self.verdicts.update(later.verdicts)
        self.staleness.update(later.staleness)
        self.steps += later.steps
        self.releases += later.releases
        self.bytes_in += later.bytes_in
        self.bytes_out += later.bytes_out
        self.devices = max(self.devices, later.devices)
        for state, seconds in later.states.items():
            self.states[state] = self.states.get(state, 0.0) + seconds
        for name, scores in later.evaluation.items():
            self.score(name, scores)
        self.federated = {**self.federated, **later.federated}

    def score(self, name: str, scores: ScoreRange) -> None:
        """Add results of a metric."""
        if name in self.evaluation or len(self.evaluation) < METRICS:
            self.evaluation.setdefault(name, ScoreRange()).add(scores)

    def row(self) -> tuple[Any, ...]:
        """The row in the table."""
        plain = [
            dict(self.verdicts),
            [[tau, number] for tau, number in sorted(self.staleness.items())],
            [self.steps, self.releases, self.version, self.bytes_in, self.bytes_out, self.devices],
            {state: round(seconds, 1) for state, seconds in self.states.items()},
            {name: list(astuple(scores)) for name, scores in self.evaluation.items()},
            {name: list(astuple(score)) for name, score in self.federated.items()},
        ]
        columns = (self.began, self.seconds, self.lsn, frames.pack(plain))
        return (*columns, row_checksum(columns))

    @classmethod
    def of(cls, row: Sequence[Any]) -> "Period | None":
        """The period of a row; None if it is damaged."""
        *columns, crc = row
        with suppress(WireError, TypeError, ValueError, OverflowError):
            if row_checksum(columns) == crc:
                began, seconds, lsn, data = columns
                verdicts, staleness, (steps, releases, version, up, down, devices), states, own, theirs, *_ = (
                    frames.unpack(data)
                )
                return cls(
                    began,
                    seconds,
                    lsn,
                    Counter(verdicts),
                    Counter(dict(staleness)),
                    steps,
                    releases,
                    version,
                    up,
                    down,
                    devices,
                    states,
                    {name: ScoreRange(*scores) for name, scores in own.items()},
                    {name: FederatedScore(*score) for name, score in theirs.items()},
                )
        return None


class HistoryTable:
    """The history of one open store."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self.pending: list[rec.Record] = []
        """Durable records that are not counted yet: they are counted at the next look."""
        self._closed: list[Period] = []
        """Periods that are over and not written yet."""
        self._current = Period(0, TIERS[0][0])
        self._first = self._at = self._merged = 0.0
        """When it began, the newest time, and when old periods were last merged; 0 if no time is known."""

    def load(self) -> None:
        """Continue the newest period, and count the records after it. Damaged ones are passed over."""
        periods = [period for _, period in rows(self._query) if period is not None]
        mark = max((period.lsn for period in periods), default=0)
        if periods:
            self._current = periods[-1]
            self._first, self._at = float(periods[0].began), float(self._current.began)
        for _, kind, packed in self._query(_RECORDS, (mark,)):
            with suppress(WireError, TypeError):
                self.pending.append(rec.unpack(kind, packed))

    def follow(self, at: float) -> Period:
        """The current period at a time, in seconds since 1970; it never goes back."""
        self._count()
        return self._advance(at)

    def _count(self) -> None:
        """Count the pending records, at the newest known time."""
        pending, self.pending = self.pending, []
        for record in pending:
            if isinstance(record, rec.ReleaseRecord):
                self._advance(record.at)
            self._current.count(record)

    def _advance(self, at: float) -> Period:
        if at <= max(self._at, SANE):
            return self._current
        self._at = at
        short, usual = TIERS[0][0], TIERS[1][0]
        if self._current.began == 0:  # records from before any time was known
            self._current.began = int(at) // short * short
            self._first = self._first or float(self._current.began)
        elif at >= (end := self._current.began + self._current.seconds):
            self._closed.append(self._current)
            began = int(at) // usual * usual
            # Short ones only at first: merging them costs more writes than all others.
            width = usual if began >= max(end, self._first + TIERS[0][1]) else short
            self._current = Period(int(at) // width * width, width, self._current.lsn)
        return self._current

    @property
    def _unwritten(self) -> list[Period]:
        return [*self._closed, self._current] if self._current.began else []

    def write(self, db: sqlite3.Connection) -> None:
        """Write what is new, and merge old periods. Call `written` once that is durable."""
        self._count()
        _put(db, self._unwritten)
        if self._at < self._merged + _MERGE_EVERY:
            return
        self._merged = self._at
        for (width, age), (longer, _) in pairwise(TIERS):
            _merge(db, width, longer, int(self._at - age) // longer * longer)
        db.execute("DELETE FROM history WHERE began < ?", (int(self._at - TIERS[-1][1]),))

    def written(self) -> None:
        """What was written is durable."""
        self._closed.clear()

    def periods(self) -> list[Period]:
        """All periods, oldest first, with what is not written yet."""
        self._count()
        found = {(period.began, period.seconds): period for _, period in rows(self._query) if period is not None}
        found |= {(period.began, period.seconds): period for period in self._unwritten}
        return [found[place] for place in sorted(found)]


def rows(query: Query) -> Iterator[tuple[tuple[Any, ...], Period | None]]:
    """All rows, oldest first, each with its period; None if it is damaged, none if the store has no history yet."""
    if query("SELECT 1 FROM sqlite_schema WHERE name = 'history'"):
        for row in query(f"{_ALL} ORDER BY began, seconds DESC"):
            yield row, Period.of(row)


def rounded(staleness: int) -> int:
    """A staleness with its first four binary digits."""
    spare = max(0, staleness.bit_length() - _DIGITS)
    return staleness >> spare << spare


def _put(db: sqlite3.Connection, periods: Iterable[Period]) -> None:
    db.executemany("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?)", [period.row() for period in periods])


def _merge(db: sqlite3.Connection, width: int, longer: int, before: int) -> None:
    """Merge the periods of a width that began before a time into longer ones."""
    old = db.execute(f"{_ALL} WHERE seconds = ? AND began < ? ORDER BY began", (width, before)).fetchall()
    if not old:
        return
    merged: dict[int, Period] = {}
    for period in map(Period.of, old):
        if period is not None:
            began = period.began // longer * longer
            if began not in merged:
                there = db.execute(f"{_ALL} WHERE began = ? AND seconds = ?", (began, longer)).fetchone()
                merged[began] = (there and Period.of(there)) or Period(began, longer)
            merged[began].add(period)
    db.execute("DELETE FROM history WHERE seconds = ? AND began < ?", (width, before))
    _put(db, merged.values())


def total(periods: Iterable[Period]) -> Period:
    """All of them as one, in the order of time."""
    found = Period(0, 0)
    for period in periods:
        found.add(period)
    return found
