"""Checkpoints of a store: safetensors files, and a row for each with its digest.

A file is written before its row is durable: a row without its file would stand for a missing checkpoint, while a file
without its row is only a stray file.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from midge.aggregator.store.meta_table import Query, row_checksum
from midge.storage.failpoints import failpoint
from midge.storage.files import atomic_write, narrow
from midge.wire import frames

log = logging.getLogger("aggregator")

TABLE = """
CREATE TABLE IF NOT EXISTS checkpoints (
    lsn INTEGER PRIMARY KEY, file TEXT NOT NULL, sha256 BLOB NOT NULL, oldest_body INTEGER NOT NULL,
    oldest_base INTEGER NOT NULL, updates INTEGER NOT NULL DEFAULT 0, crc INTEGER
);
"""
KEEP_CHECKPOINTS = 3
_COLUMNS = "lsn, file, sha256, oldest_body, oldest_base, updates"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state up to `lsn`: arrays of the model, plain values of the model, state of the core."""

    lsn: int
    arrays: dict[str, npt.NDArray[Any]]
    values: dict[str, Any]
    core: dict[str, Any]
    registered: frozenset[int] | None = None
    """Registered versions, of which frames are kept; None keeps those of all."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """What the remaining checkpoints need, and the files of the others."""

    dropped: tuple[tuple[int, str], ...]
    """Files by lsn."""
    needed: int
    """The first record whose body a checkpoint may need."""
    oldest_base: int
    """The oldest version that a checkpoint may step back to."""


@dataclass(frozen=True, slots=True)
class Entered:
    """The row of a checkpoint."""

    lsn: int
    file: str
    sha256: bytes
    oldest_body: int
    oldest_base: int
    updates: int
    """Number of updates decided on since the store began."""


class CheckpointTable:
    """The checkpoints of one open store."""

    def __init__(self, directory: Path, query: Query) -> None:
        self._directory, self._query = directory, query
        self.damaged = False
        """Whether a damaged one was skipped for an older one."""

    def tidy(self) -> None:
        """Remove files of interrupted writes, and narrow the modes that earlier versions left to the umask."""
        for stray in self._directory.glob("*checkpoint-*.safetensors*.tmp"):
            stray.unlink(missing_ok=True)
        for older in self._directory.glob("checkpoint-*"):
            narrow(older)

    # --------------------------------------------------------------------- writing

    def write(
        self, db: sqlite3.Connection, checkpoint: Checkpoint, *, oldest_body: int, oldest_base: int, updates: int
    ) -> None:
        """Write one; it counts once the transaction is durable.

        Raises:
            OSError: its file cannot be written.
        """
        arrays = dict(checkpoint.arrays)
        plain = frames.pack({"values": checkpoint.values, "core": checkpoint.core, "updates": updates})
        arrays["plain"] = np.frombuffer(plain, np.uint8)
        data = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        name = f"checkpoint-{checkpoint.lsn:012d}.safetensors"
        atomic_write(self._directory / name, data)
        failpoint("checkpoint.written")
        row = (checkpoint.lsn, name, hashlib.sha256(data).digest(), oldest_body, oldest_base, updates)
        db.execute(
            f"INSERT OR REPLACE INTO checkpoints ({_COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*row, row_checksum(row)),
        )

    def pruning(self) -> Pruning:
        """What can be removed now."""
        rows = entered(self._query)
        # Bodies stay as long as any kept checkpoint may need them, because the newest one may be damaged.
        kept, dropped = rows[:KEEP_CHECKPOINTS], rows[KEEP_CHECKPOINTS:]
        return Pruning(
            dropped=tuple((row.lsn, row.file) for row in dropped),
            needed=min(min(row.lsn + 1, row.oldest_body) for row in kept),
            oldest_base=min(row.oldest_base for row in kept),
        )

    def forget(self, db: sqlite3.Connection, pruning: Pruning) -> None:
        """Remove rows; call `removed` once that is durable."""
        db.executemany("DELETE FROM checkpoints WHERE lsn = ?", [(lsn,) for lsn, _ in pruning.dropped])

    def removed(self, pruning: Pruning) -> None:
        """Delete the files, last of all: until then a restart may find them in the table."""
        for _, file in pruning.dropped:
            (self._directory / file).unlink(missing_ok=True)

    def keep_newest(self, db: sqlite3.Connection) -> int:
        """Remove all rows but the newest; return their number."""
        return db.execute("DELETE FROM checkpoints WHERE lsn < (SELECT max(lsn) FROM checkpoints)").rowcount

    def remove_others(self) -> None:
        """Delete all files without a row, such as one whose write a power cut interrupted."""
        known = {row.file for row in entered(self._query)}
        for path in self._directory.glob("*checkpoint-*.safetensors*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    # --------------------------------------------------------------------- reading

    def all(self) -> Iterator[Checkpoint]:
        """Undamaged checkpoints, newest first."""
        rows = entered(self._query)
        ((count,),) = self._query("SELECT count(*) FROM checkpoints")
        if count > len(rows):
            log.warning("%d entries of checkpoints are damaged: others are used. See to the disk.", count - len(rows))
            self.damaged = True
        for row in rows:
            try:
                data = (self._directory / row.file).read_bytes()
            except OSError as error:
                log.warning("The checkpoint %s cannot be read (%s): another one is used.", row.file, error.strerror)
                self.damaged = True
                continue
            # A damaged one is skipped, not refused: an older one and the journal give the same model.
            if hashlib.sha256(data).digest() != row.sha256:
                log.warning("The checkpoint %s is damaged: another one is used. See to the disk.", row.file)
                self.damaged = True
            else:
                arrays = load_tensors(data)
                plain = frames.unpack(arrays.pop("plain").tobytes())
                yield Checkpoint(row.lsn, arrays, plain["values"], plain["core"])


def entered(query: Query) -> list[Entered]:
    """Undamaged rows, newest first; rows of an earlier format, or inserted manually, are not verified."""
    has = {name for _, name, *_ in query("PRAGMA table_info(checkpoints)")}
    columns = f"{_COLUMNS}, crc" if {"updates", "crc"} <= has else _COLUMNS.replace("updates", "0") + ", NULL"
    rows = query(f"SELECT {columns} FROM checkpoints ORDER BY lsn DESC")  # noqa: S608 - constants
    return [Entered(*row[:-1]) for row in rows if row[-1] in {None, row_checksum(row[:-1])}]
