"""Evidence in a damaged store: rows that verify by checksum, even if SQLite cannot read the file.

A record of the journal has a checksum of its own, a checkpoint has a digest. So it is safe to search for them in images
of the database that SQLite would not make: with all frames of its log, and with the undamaged ones only. The original
is only read; images are made in a temporary folder.
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
from midge.aggregator.model.model import REGISTERED
from midge.aggregator.store import meta_table
from midge.aggregator.store.device_erasure import intact
from midge.aggregator.store.frame_table import checksums
from midge.aggregator.store.history import Period
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
"""Most records that are searched for one by one: a number in a damaged row may be anything."""


@dataclass(frozen=True, slots=True)
class Row:
    """A readable record."""

    columns: tuple[Any, ...]
    record: rec.Record
    whole: bool
    """Whether record and body are undamaged; otherwise the body is damaged, lost, or was removed as not needed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A readable checkpoint."""

    checkpoint: Checkpoint
    file: str
    sha256: bytes
    oldest_body: int
    oldest_base: int
    updates: int | None
    """Updates decided on up to there; None if unknown."""
    proven: bool
    """Whether a row of the database has its digest; otherwise only that it can be read is known."""

    @property
    def lsn(self) -> int:
        return self.checkpoint.lsn

    @property
    def bodies(self) -> list[int]:
        """Records whose bodies it needs."""
        return needed_bodies(self.checkpoint)


@dataclass(slots=True)
class Evidence:
    """Everything that could be read."""

    meta: dict[str, Any] = field(default_factory=dict)
    schema: Schema | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    checkpoints: list[Kept] = field(default_factory=list)
    """Newest first."""
    beside: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    """Rows of the tables beside the journal, by table: withdrawn devices, when each was last active, the history."""
    log: Log = field(default_factory=lambda: Log((), 0))
    newest: int = 0
    """The highest lsn that any part refers to."""
    running: bool = False
    unsound: tuple[str, ...] = ()
    """Structural damage of the database that SQLite reports."""
    oldest_needed: int | None = None
    """The first record whose body a checkpoint may need; None if that cannot be read."""
    frames: int = 0
    damaged_frames: list[str] = field(default_factory=list)
    damaged_registered: list[str] = field(default_factory=list)
    """Registered versions whose values are not whole."""
    registered: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """Rows of registered versions that are whole, by version."""
    damaged_names: int = 0
    """Damaged entries of withdrawn devices."""
    damaged_history: int = 0
    """Damaged periods of the history."""
    damaged_meta: list[str] = field(default_factory=list)
    stored: tuple[str, ...] = ()
    """Files of checkpoints in the database."""


def gather(directory: Path, *, own: bool = False) -> Evidence:
    """Read all parts of a store, also beside a running aggregator.

    Args:
        directory: the store's.
        own: whether to use only what SQLite reads, without searching images.

    Raises:
        OSError: a file cannot be read at all.
        StoreError: the database of a running aggregator cannot be read.
    """
    found = Evidence()
    with images(directory) as (found.running, found.log, paths):
        stored: dict[str, dict[str, Any]] = {}
        ways = paths[-1:] if own else paths
        for path in ways:
            with _looking_into(path) as db:
                for row in _each(db, "SELECT * FROM checkpoints"):
                    stored.setdefault(str(row["file"]), dict(row))
                for table in ("forgotten", "seen", "history"):
                    rows = [tuple(row) for row in _each(db, f"SELECT * FROM {table}")]  # noqa: S608 - a constant
                    if table == "forgotten":
                        found.damaged_names = max(found.damaged_names, sum(not intact(row[0]) for row in rows))
                        rows = [row for row in rows if intact(row[0])]
                    if table == "history":
                        found.damaged_history = sum(Period.of(row) is None for row in rows)
                        rows = [row for row in rows if Period.of(row) is not None]
                    if len(rows) > len(found.beside.get(table, ())):
                        found.beside[table] = rows
                _read_rows(db, directory, found)
                _read_registered(db, found)
        # Metadata have no proof: those of undamaged pages first.
        for path in ways[2:] + ways[:2]:
            with _looking_into(path) as db:
                _read_meta(db, found)
        with _looking_into(paths[-1]) as db:
            lines = [str(line) for (line,) in _each(db, "PRAGMA integrity_check(20)")]
            found.unsound = tuple(line for line in lines or ["it cannot be read"] if line != "ok")
            _read_frames(db, found)
            (found.oldest_needed,) = next(
                iter(_each(db, "SELECT min(min(lsn + 1, oldest_body)) FROM checkpoints")), (None,)
            )
    found.checkpoints = sorted(_checkpoints(directory, stored), key=lambda kept: -kept.lsn)
    found.stored = tuple(stored)
    if found.running:
        _drop_concurrent_changes(directory, found)
    for kept in () if own else found.checkpoints:
        _read_metadata_of(kept, found)
    found.newest = max([0, *found.rows, *(kept.lsn for kept in found.checkpoints)])
    return found


def _drop_concurrent_changes(directory: Path, found: Evidence) -> None:
    """Leave out what a running aggregator has removed, or written, since its database was read."""
    found.checkpoints = [kept for kept in found.checkpoints if kept.proven]
    with reading(directory) as db:
        there = {str(row[0]) for row in db.execute("SELECT file FROM checkpoints")}
        found.stored = tuple(file for file in found.stored if file in there)
        (needed,) = db.execute("SELECT min(min(lsn + 1, oldest_body)) FROM checkpoints").fetchone()
        found.oldest_needed = max(needed or 0, found.oldest_needed or 0)


@contextmanager
def images(directory: Path) -> Iterator[tuple[bool, Log, list[Path]]]:
    """Whether it runs, the log, and databases to search, the newest first; the last is what SQLite reads."""
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
        ways: list[Sequence[LogFrame]] = [log.frames[: log.readable]]
        if log.readable < len(log.frames):
            whole = [frame for frame in log.frames[: log.committed] if frame.whole]
            ways = [log.frames[: log.committed], log.frames, whole, *ways]
        paths = [Path(folder, f"{number}.db") for number in range(len(ways))]
        for path, frames in zip(paths, ways, strict=True):
            atomic_write(path, applied(database, frames))
        yield False, log, paths


def _settled_log(directory: Path) -> Log:
    """The log of a running store; a frame is damaged only if it is so at a second read, after concurrent writes."""
    log = Log((), 0)
    for _ in range(_LOOKS):
        with (directory / "store.db").open("rb") as file:
            log = read_log(_bytes(directory / "store.db-wal"), file.read(100))
        if not log.damaged:
            break
    return log


@contextmanager
def _looking_into(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an image, in which unreadable parts are skipped."""
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
        if whole and row["span"] in {0, REGISTERED}:
            try:
                lineage.decode_snapshot(data)
            except (WireError, ValueError):
                whole = False
        if not whole and row["span"] == REGISTERED:
            found.damaged_registered.append(f"the registered version {row['version']} is damaged")
        elif not whole:
            found.damaged_frames.append(f"the frame of version {row['version']} over {row['span']} is damaged")


def _read_registered(db: sqlite3.Connection, found: Evidence) -> None:
    for row in _each(db, "SELECT * FROM frames WHERE span = ?", (REGISTERED,)):
        values = dict(row)
        with suppress(TypeError, ValueError, KeyError):
            version, data, digest = int(values["version"]), bytes(values["data"]), values["digest"]
            if digest == chunks.checksum(data):
                checked = checksums(version, REGISTERED, int(values["parts"]), data)
                found.registered[version] = (version, REGISTERED, data, int(values["parts"]), *checked)


def _read_meta(db: sqlite3.Connection, found: Evidence) -> None:
    values = {str(name): value for name, value in _each(db, "SELECT name, value FROM meta")}
    rotten = set(meta_table.rotten(lambda *words: list(_each(db, *words)), values))
    found.damaged_meta += [f"{name} is damaged" for name in sorted(rotten)]
    for name, value in values.items():
        if name in rotten or value is None:
            continue
        found.meta.setdefault(name, value)
        if name == "schema" and found.schema is None:
            with suppress(WireError, ValueError, TypeError, KeyError):
                found.schema = Schema.unpacked(packing.unpack(bytes(value)))
                found.meta[name] = value


def _read_metadata_of(kept: Kept, found: Evidence) -> None:
    """Take metadata from a checkpoint if the database has none."""
    lineage_, schema = kept.checkpoint.values.get("lineage"), kept.checkpoint.values.get("schema")
    if found.schema is None and schema is not None:
        with suppress(WireError, ValueError, TypeError, KeyError):
            found.schema = Schema.unpacked(schema)
            found.meta["schema"] = packing.pack(schema)
    if not isinstance(found.meta.get("lineage"), bytes) and isinstance(lineage_, bytes):
        found.meta["lineage"] = lineage_


# ------------------------------------------------------------------------------ journal


def _read_rows(db: sqlite3.Connection, directory: Path, found: Evidence) -> None:
    """Add what this image has and earlier ones lacked."""
    there = {name for _, name, *_ in _each(db, "PRAGMA table_info(journal)")}
    columns_ = ", ".join(name if name in there else "NULL" for name in COLUMNS)
    statement = f"SELECT {columns_} FROM journal"  # noqa: S608 - constants
    segments = Segments(directory)
    seen = 0
    for columns in _each(db, f"{statement} ORDER BY lsn"):
        seen = max(seen, columns[0])
        _take(tuple(columns), segments, found)
    # Behind an unreadable page, each record is requested alone: the path to its page may be intact.
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
    """A checkpoint, and the number of updates decided on; None for an earlier Midge."""
    arrays: dict[str, npt.NDArray[Any]] = load_tensors(data)
    plain = packing.unpack(np.asarray(arrays.pop("plain")).tobytes())
    checkpoint = Checkpoint(int(plain["core"]["lsn"]), arrays, plain["values"], plain["core"])
    return checkpoint, plain.get("updates")


def needed_bodies(checkpoint: Checkpoint) -> list[int]:
    """Records whose bodies a checkpoint needs: updates that wait for their step, and statistics."""
    core = checkpoint.core
    return [item[0] for item in core["buffer"]] + list(core["statistics"].values())
