"""What can still be read of a store whose files rotted: rows that prove themselves, whatever SQLite makes of the file.

A record of the journal has a checksum of its own, a checkpoint is proven by its digest. So it does no harm to look for
them in images of the database that SQLite would not make: with all frames of its log, and with the whole ones only.
The original is read, and never written; images are made in a temporary folder.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from midge.aggregator.core import records as rec
from midge.aggregator.store import meta_table
from midge.aggregator.store.device_erasure import intact
from midge.aggregator.store.journal import checksum
from midge.aggregator.store.reading import reading
from midge.aggregator.store.segments import Segments
from midge.aggregator.store.store import Checkpoint
from midge.storage.files import atomic_write
from midge.storage.read_only import kept_closed
from midge.storage.wal import Log, LogFrame, applied, read_log
from midge.wire import chunks, lineage
from midge.wire import frames as packing
from midge.wire.errors import WireError
from midge.wire.schema import Schema

COLUMNS = ("lsn", "kind", "record", "body", "crc", "segment", "place", "size")
_LOOKS = 3
_MOST = 10**7
"""Records that are looked for one by one at most: a number in a row that rotted may be any."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record that could be read."""

    columns: tuple[Any, ...]
    record: rec.Record
    whole: bool
    """Whether record and body are what was written; otherwise the body rotted, is gone, or was let go as not needed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that could be read."""

    checkpoint: Checkpoint
    file: str
    sha256: bytes
    oldest_body: int
    oldest_base: int
    updates: int | None
    """How many updates were decided on up to there; None if that is not known."""
    proven: bool
    """Whether a row of the database has its digest; without one, that it can be read is all that is known."""

    @property
    def lsn(self) -> int:
        return self.checkpoint.lsn

    @property
    def bodies(self) -> list[int]:
        """Records whose bodies it needs."""
        return needed_bodies(self.checkpoint)


@dataclass(slots=True)
class Evidence:
    """All that could be read."""

    meta: dict[str, Any] = field(default_factory=dict)
    schema: Schema | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    checkpoints: list[Kept] = field(default_factory=list)
    """Newest first."""
    beside: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    """Rows of the tables beside the journal, by table: devices that were withdrawn, and when each was heard."""
    log: Log = field(default_factory=lambda: Log((), 0))
    newest: int = 0
    """The highest number that any part tells of."""
    running: bool = False
    unsound: tuple[str, ...] = ()
    """What SQLite finds wrong with the structure of the database, as it reads it."""
    oldest_needed: int | None = None
    """The first record whose body a checkpoint may need; None if that cannot be read."""
    frames: int = 0
    rotten_frames: list[str] = field(default_factory=list)
    rotten_names: int = 0
    """Entries of withdrawn devices that are not what was written."""
    rotten_meta: list[str] = field(default_factory=list)
    stored: tuple[str, ...] = ()
    """Files of checkpoints that the database knows."""


def gather(directory: Path, *, own: bool = False) -> Evidence:
    """Read all parts of a store, beside a running aggregator or not.

    Args:
        directory: the store's.
        own: whether only what SQLite makes of the database counts, and not what can be found besides.

    Raises:
        OSError: a file cannot be read at all.
        StoreError: nor can the database of a running aggregator.
    """
    found = Evidence()
    with images(directory) as (found.running, found.log, paths):
        stored: dict[str, dict[str, Any]] = {}
        ways = paths[-1:] if own else paths
        for path in ways:
            with _looking_into(path) as db:
                for row in _each(db, "SELECT * FROM checkpoints"):
                    stored.setdefault(str(row["file"]), dict(row))
                for table in ("forgotten", "seen"):
                    rows = [tuple(row) for row in _each(db, f"SELECT * FROM {table}")]  # noqa: S608 - a constant
                    if table == "forgotten":
                        found.rotten_names = max(found.rotten_names, sum(not intact(row[0]) for row in rows))
                        rows = [row for row in rows if intact(row[0])]
                    if len(rows) > len(found.beside.get(table, ())):
                        found.beside[table] = rows
                _read_rows(db, directory, found)
        # Nothing proves metadata: those of whole pages first.
        for path in ways[2:] + ways[:2]:
            with _looking_into(path) as db:
                _read_meta(db, found)
        with _looking_into(paths[-1]) as db:
            said = [str(line) for (line,) in _each(db, "PRAGMA integrity_check(20)")]
            found.unsound = tuple(line for line in said or ["it cannot be read"] if line != "ok")
            _read_frames(db, found)
            (found.oldest_needed,) = next(
                iter(_each(db, "SELECT min(min(lsn + 1, oldest_body)) FROM checkpoints")), (None,)
            )
    found.checkpoints = sorted(_checkpoints(directory, stored), key=lambda kept: -kept.lsn)
    found.stored = tuple(stored)
    if found.running:
        _let_go(directory, found)
    for kept in () if own else found.checkpoints:
        _read_about(kept, found)
    found.newest = max([0, *found.rows, *(kept.lsn for kept in found.checkpoints)])
    return found


def _let_go(directory: Path, found: Evidence) -> None:
    """Leave out what a running aggregator has removed, or written, since its database was looked at."""
    found.checkpoints = [kept for kept in found.checkpoints if kept.proven]
    with reading(directory) as db:
        there = {str(row[0]) for row in db.execute("SELECT file FROM checkpoints")}
        found.stored = tuple(file for file in found.stored if file in there)
        (needed,) = db.execute("SELECT min(min(lsn + 1, oldest_body)) FROM checkpoints").fetchone()
        found.oldest_needed = max(needed or 0, found.oldest_needed or 0)


@contextmanager
def images(directory: Path) -> Iterator[tuple[bool, Log, list[Path]]]:
    """Whether it runs, the log, and databases to look into, the furthest first; the last is what SQLite makes of it."""
    with TemporaryDirectory(prefix="midge-") as folder, kept_closed(directory / "lock") as closed:
        if not closed:
            own = Path(folder, "0.db")
            with reading(directory) as db, closing(sqlite3.connect(own)) as copy:
                db.backup(copy)
                log = _settled_log(directory)
            yield True, log, [own]
            return
        database = _bytes(directory / "store.db")
        log = read_log(_bytes(directory / "store.db-wal"), database)
        ways: list[Sequence[LogFrame]] = [log.frames[: log.believed]]
        if log.believed < len(log.frames):
            whole = [frame for frame in log.frames[: log.committed] if frame.whole]
            ways = [log.frames[: log.committed], log.frames, whole, *ways]
        paths = [Path(folder, f"{number}.db") for number in range(len(ways))]
        for path, frames in zip(paths, ways, strict=True):
            atomic_write(path, applied(database, frames))
        yield False, log, paths


def _settled_log(directory: Path) -> Log:
    """The log of a running store; what is not whole was only just being written if it is whole at a second look."""
    log = Log((), 0)
    for _ in range(_LOOKS):
        with (directory / "store.db").open("rb") as file:
            log = read_log(_bytes(directory / "store.db-wal"), file.read(100))
        if not log.damaged:
            break
    return log


@contextmanager
def _looking_into(path: Path) -> Iterator[sqlite3.Connection]:
    """An image, of which what cannot be read is passed over."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        db.text_factory = lambda data: data.decode(errors="replace")
        db.row_factory = sqlite3.Row
        yield db


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _each(db: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()) -> Iterator[sqlite3.Row]:
    """Rows as far as they can be read."""
    with suppress(sqlite3.Error, OverflowError):
        yield from db.execute(statement, values)


def _read_frames(db: sqlite3.Connection, found: Evidence) -> None:
    for row in _each(db, "SELECT * FROM frames"):
        found.frames += 1
        data, digest = row["data"], dict(row).get("digest")
        whole = isinstance(data, bytes) and (digest is None or digest == chunks.checksum(data))
        if whole and row["span"] == 0:
            try:
                lineage.decode_snapshot(data)
            except (WireError, ValueError):
                whole = False
        if not whole:
            found.rotten_frames.append(f"the frame of version {row['version']} over {row['span']} has rotted")


def _read_meta(db: sqlite3.Connection, found: Evidence) -> None:
    values = {str(name): value for name, value in _each(db, "SELECT name, value FROM meta")}
    rotten = set(meta_table.rotten(lambda *words: list(_each(db, *words)), values))
    found.rotten_meta += [f"{name} has rotted" for name in sorted(rotten)]
    for name, value in values.items():
        if name in rotten or value is None:
            continue
        found.meta.setdefault(name, value)
        if name == "schema" and found.schema is None:
            with suppress(WireError, ValueError, TypeError, KeyError):
                found.schema = Schema.unpacked(packing.unpack(bytes(value)))
                found.meta[name] = value


def _read_about(kept: Kept, found: Evidence) -> None:
    """Take from a checkpoint of what it is, if the database cannot tell."""
    lineage_, schema = kept.checkpoint.values.get("lineage"), kept.checkpoint.values.get("schema")
    if found.schema is None and schema is not None:
        with suppress(WireError, ValueError, TypeError, KeyError):
            found.schema = Schema.unpacked(schema)
            found.meta["schema"] = packing.pack(schema)
    if not isinstance(found.meta.get("lineage"), bytes) and isinstance(lineage_, bytes):
        found.meta["lineage"] = lineage_


# ------------------------------------------------------------------------------ journal


def _read_rows(db: sqlite3.Connection, directory: Path, found: Evidence) -> None:
    """Take what this image has and the ones before had not."""
    there = {name for _, name, *_ in _each(db, "PRAGMA table_info(journal)")}
    columns_ = ", ".join(name if name in there else "NULL" for name in COLUMNS)
    statement = f"SELECT {columns_} FROM journal"  # noqa: S608 - constants
    segments = Segments(directory)
    seen = 0
    for columns in _each(db, f"{statement} ORDER BY lsn"):
        seen = max(seen, columns[0])
        _take(tuple(columns), segments, found)
    # Behind a page that cannot be read, each record is asked for alone: the way to its page may be whole.
    (last,) = next(iter(_each(db, "SELECT max(lsn) FROM journal")), (0,))
    known = max(found.rows, default=0)
    for lsn in range(seen + 1, min(max(last or 0, known), seen + _MOST) + 1):
        if lsn not in found.rows:
            for columns in _each(db, f"{statement} WHERE lsn = ?", (lsn,)):
                _take(tuple(columns), segments, found)


def _take(columns: tuple[Any, ...], segments: Segments, found: Evidence) -> None:
    lsn, kind, packed, body, crc, segment, place, size = columns
    before = found.rows.get(lsn)
    if before is not None and before.whole:
        return
    if segment is not None:
        with suppress(OSError, OverflowError, TypeError, ValueError):
            body = segments.read(segment, place, size)
    try:
        record = rec.unpack(kind, packed)
        whole = checksum(packed, body) == crc
    except (WireError, TypeError, ValueError):
        return
    if record.lsn == lsn and (whole or before is None):
        found.rows[lsn] = Row(columns, record, whole)


# -------------------------------------------------------------------------- checkpoints


def _checkpoints(directory: Path, stored: dict[str, dict[str, Any]]) -> Iterator[Kept]:
    for path in directory.glob("checkpoint-*.safetensors"):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        digest, row = hashlib.sha256(data).digest(), stored.get(path.name, {})
        if row and row["sha256"] != digest:
            continue
        with suppress(SafetensorError, WireError, ValueError, TypeError, KeyError, IndexError):
            checkpoint, updates = _unpacked(data)
            yield Kept(
                checkpoint,
                path.name,
                digest,
                oldest_body=min([checkpoint.lsn + 1, *needed_bodies(checkpoint)]),
                oldest_base=row.get("oldest_base", 0),
                updates=row.get("updates", updates),
                proven=bool(row),
            )


def _unpacked(data: bytes) -> tuple[Checkpoint, int | None]:
    """A checkpoint, and how many updates had been decided on; None of an earlier Midge."""
    arrays: dict[str, npt.NDArray[Any]] = load_tensors(data)
    plain = packing.unpack(np.asarray(arrays.pop("plain")).tobytes())
    checkpoint = Checkpoint(int(plain["core"]["lsn"]), arrays, plain["values"], plain["core"])
    return checkpoint, plain.get("updates")


def needed_bodies(checkpoint: Checkpoint) -> list[int]:
    """Records whose bodies a checkpoint needs: updates that wait for their step, and statistics."""
    core = checkpoint.core
    return [item[0] for item in core["buffer"]] + list(core["statistics"].values())
