"""Checkpoints of a store: safetensors files, and a row for each that says what it must be.

A file is there before its row is durable: a row without its file would stand for a checkpoint that is none, a file
without its row is only a stray one.
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

from midge.storage.database import Database
from midge.storage.failpoints import failpoint
from midge.storage.files import atomic_write, narrow
from midge.wire import frames

log = logging.getLogger("aggregator")

KEEP_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything up to `lsn`: arrays of the model, plain values of the model, state of the core."""

    lsn: int
    arrays: dict[str, npt.NDArray[Any]]
    values: dict[str, Any]
    core: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pruning:
    """What the checkpoints that stay need, and the files of those that do not."""

    dropped: tuple[tuple[int, str], ...]
    """By lsn, the file."""
    needed: int
    """The first record whose body a checkpoint may need."""
    oldest_base: int
    """The oldest version that a checkpoint may step back to."""


class CheckpointTable:
    """Of one store's directory and open database."""

    def __init__(self, directory: Path, database: Database) -> None:
        self._directory, self._database = directory, database

    def tidy(self) -> None:
        """Remove what a kill cut short, and narrow the modes that earlier versions left to the umask."""
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
        db.execute(
            "INSERT OR REPLACE INTO checkpoints (lsn, file, sha256, oldest_body, oldest_base, updates) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (checkpoint.lsn, name, hashlib.sha256(data).digest(), oldest_body, oldest_base, updates),
        )

    def pruning(self) -> Pruning:
        """What can go now."""
        rows = self._database.connection.execute(
            "SELECT lsn, file, oldest_body, oldest_base FROM checkpoints ORDER BY lsn DESC"
        ).fetchall()
        # Bodies stay for as long as any checkpoint that is kept may need them: the newest one may be damaged.
        kept, dropped = rows[:KEEP_CHECKPOINTS], rows[KEEP_CHECKPOINTS:]
        return Pruning(
            dropped=tuple((lsn, file) for lsn, file, _, _ in dropped),
            needed=min(min(lsn + 1, body) for lsn, _, body, _ in kept),
            oldest_base=min(base for *_, base in kept),
        )

    def forget(self, db: sqlite3.Connection, pruning: Pruning) -> None:
        """Take rows out; `removed` follows once that is durable."""
        db.executemany("DELETE FROM checkpoints WHERE lsn = ?", [(lsn,) for lsn, _ in pruning.dropped])

    def removed(self, pruning: Pruning) -> None:
        """Delete the files, last of all: until then a restart may find them in the table."""
        for _, file in pruning.dropped:
            (self._directory / file).unlink(missing_ok=True)

    def keep_newest(self, db: sqlite3.Connection) -> int:
        """Take all rows but the newest out; how many these were."""
        return db.execute("DELETE FROM checkpoints WHERE lsn < (SELECT max(lsn) FROM checkpoints)").rowcount

    def remove_others(self) -> None:
        """Delete all files that no row speaks of, among them what was being written when the power went."""
        known = {file for (file,) in self._database.connection.execute("SELECT file FROM checkpoints")}
        for path in self._directory.glob("*checkpoint-*.safetensors*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    # --------------------------------------------------------------------- reading

    def all(self) -> Iterator[Checkpoint]:
        """Those whose bytes are what was written, newest first."""
        rows = self._database.connection.execute("SELECT lsn, file, sha256 FROM checkpoints ORDER BY lsn DESC")
        for lsn, file, sha256 in rows.fetchall():
            try:
                data = (self._directory / file).read_bytes()
            except OSError as error:
                log.warning("The checkpoint %s cannot be read (%s): an older one is used.", file, error.strerror)
                continue
            # A damaged one is passed over, not refused: an older one and the journal give the same model.
            if hashlib.sha256(data).digest() != sha256:
                log.warning("The checkpoint %s is damaged: an older one is used. See to the disk.", file)
            else:
                arrays = load_tensors(data)
                plain = frames.unpack(arrays.pop("plain").tobytes())
                yield Checkpoint(lsn, arrays, plain["values"], plain["core"])
