"""The device's outbox: what was trained and not yet settled, on disk.

One SQLite file in WAL mode with synchronous=FULL: an update that is stored survives a power cut, and only a receipt of
the aggregator removes it. The identity is 64 random bits made with the file; a copy of the file is the same outbox.
"""

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from wire import frames
from wire.errors import WireError
from wire.messages import Update

FORMAT = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS updates (seq INTEGER PRIMARY KEY, header BLOB NOT NULL, body BLOB NOT NULL);
"""


class OutboxError(Exception):
    """The outbox cannot be used; the message says why and what to do."""


class Outbox:
    """A file, or memory for simulations where nothing needs to survive. From one thread; a context manager."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock: int | None = None
        self.identity = 0
        self.next_seq = 1

    def __enter__(self) -> Self:
        """Open or make it.

        Raises:
            OutboxError: it cannot be written, is in use by another device, or is no outbox.
        """
        if self.path is not None:
            self._take_lock(self.path)
        try:
            self._db = sqlite3.connect(":memory:" if self.path is None else self.path, isolation_level="IMMEDIATE")
        except sqlite3.Error as error:
            self._unlock()
            raise self._unusable(error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
        except sqlite3.Error as error:
            self.close()
            raise self._unusable(error) from error
        if meta.get("format", FORMAT) != FORMAT:
            self.close()
            raise OutboxError(f"The outbox {self.path} has format {meta['format']}; this Midge reads {FORMAT}.")
        if not meta:
            with self._db:
                self._begin(secrets.randbits(63))
        else:
            self.identity, self.next_seq = meta["identity"], meta["next"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unusable(self, error: Exception) -> OutboxError:
        return OutboxError(
            f"The outbox {self.path} cannot be used ({error}). Move the file away to begin a new one; updates that "
            "it holds and that were not yet sent are lost with it."
        )

    def close(self) -> None:
        self._db.close()
        self._unlock()

    def _take_lock(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise OutboxError(
                f"The outbox {path} cannot be written ({error.strerror}): name a place that can."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._unlock()
            raise OutboxError(f"The outbox {path} is in use by another device: give each device its own.") from error

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self, identity: int) -> None:
        self.identity, self.next_seq = identity, 1
        rows = [("format", FORMAT), ("identity", identity), ("next", 1)]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def held(self) -> list[Update]:
        """The headers of what waits, in order.

        Raises:
            OutboxError: one of them cannot be read.
        """
        try:
            rows = self._db.execute("SELECT header FROM updates ORDER BY seq").fetchall()
            return [frames.validate(Update, frames.unpack(header)) for (header,) in rows]
        except (sqlite3.Error, WireError) as error:
            raise self._unusable(error) from error

    def body(self, seq: int) -> bytes:
        """The encoded delta of an update that waits."""
        (body,) = self._db.execute("SELECT body FROM updates WHERE seq = ?", (seq,)).fetchone()
        return bytes(body)

    def store(self, update: Update, body: bytes) -> None:
        """Keep an update under its seq, which must be the next. When this returns it survives a power cut."""
        assert update.seq == self.next_seq
        with self._db:
            self._db.execute("INSERT INTO updates VALUES (?, ?, ?)", (update.seq, _pack(update), body))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'next'", (update.seq + 1,))
        self.next_seq = update.seq + 1

    def forget(self, through: int) -> None:
        """Remove every update up to a seq: a receipt settled them."""
        with self._db:
            self._db.execute("DELETE FROM updates WHERE seq <= ?", (through,))

    def renew(self, keep: Iterable[int]) -> None:
        """Take a new identity; only these updates move over, numbered from 1."""
        kept = {update.seq: update for update in self.held()}
        moved = [(kept[seq], self.body(seq)) for seq in sorted(keep)]
        identity = secrets.randbits(63)
        with self._db:
            self._db.execute("DELETE FROM updates")
            self._begin(identity)
            for number, (update, body) in enumerate(moved, start=1):
                again = update.model_copy(update={"outbox": identity, "seq": number, "first": 1})
                self._db.execute("INSERT INTO updates VALUES (?, ?, ?)", (number, _pack(again), body))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'next'", (len(moved) + 1,))
        self.next_seq = len(moved) + 1


def _pack(update: Update) -> bytes:
    return frames.pack(update.model_dump())
