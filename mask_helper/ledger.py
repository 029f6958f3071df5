"""The helper's journal: which updates it has seen, which sums it has dealt, and its answers until they are in use.

Seeds are never in it, only a hash of each: without the opening keys, a copy of the ledger answers nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from midge.mask_helper.dealing import Hand, Version, WaitingUpdate
from midge.storage.database import Database
from midge.storage.failpoints import failpoint
from midge.wire import frames, masking
from midge.wire.messages.masking import MaskEntry, Ticket

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT, lineage BLOB, device TEXT, outbox INTEGER, seq INTEGER, ticket BLOB,
    seed BLOB UNIQUE, key BLOB, dealt INTEGER DEFAULT 0, rejected TEXT DEFAULT '',
    UNIQUE (lineage, device, outbox, seq)
);
CREATE INDEX IF NOT EXISTS waiting ON entries (lineage) WHERE dealt = 0 AND rejected = '';
CREATE TABLE IF NOT EXISTS sums (number INTEGER PRIMARY KEY, lineage BLOB, answer BLOB);
CREATE TABLE IF NOT EXISTS versions (
    lineage BLOB, generation INTEGER, version INTEGER, digest BLOB, PRIMARY KEY (lineage, generation, version)
);
"""


class Ledger:
    """The journal in a directory, open in one process. Changes are made within `transaction`."""

    def __init__(self, directory: Path) -> None:
        self._database = Database(directory / "ledger.db", lock=directory / "ledger.lock")

    def open(self) -> None:
        """Open it, or make it.

        Raises:
            DatabaseError, DiskFull: it cannot be used.
        """
        self._database.open(_TABLES)
        with self._database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('store', ?)", (os.urandom(16),))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('dealt', 0)")

    def close(self) -> None:
        """Close it."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block changes, or nothing if it raises."""
        with self._database.transaction():
            yield
            failpoint("helper.writing")
        failpoint("helper.written")

    def _meta(self, name: str) -> bytes | int:
        ((value,),) = self._database.connection.execute("SELECT value FROM meta WHERE name = ?", (name,))
        return bytes(value) if isinstance(value, bytes) else int(value)

    @property
    def store(self) -> bytes:
        """Identifies this ledger, 16 bytes."""
        store = self._meta("store")
        assert isinstance(store, bytes)
        return store

    @property
    def dealt(self) -> int:
        """The number of the newest sum."""
        return int(self._meta("dealt"))

    # ---------------------------------------------------------------------- updates

    def state(self, lineage: bytes, ticket: Ticket) -> tuple[int, str] | None:
        """The sum that an update is in, and why it is refused; None if it is not known."""
        row = self._database.connection.execute(
            "SELECT dealt, rejected FROM entries WHERE lineage = ? AND device = ? AND outbox = ? AND seq = ?",
            (lineage, ticket.device, ticket.outbox, ticket.seq),
        ).fetchone()
        return None if row is None else (int(row[0]), str(row[1]))

    def add(self, lineage: bytes, ticket: Ticket, entry: MaskEntry, seed: bytes) -> bool:
        """Add an update that waits; False if its seed is known from another one."""
        found = self._database.connection.execute(
            "INSERT OR IGNORE INTO entries (lineage, device, outbox, seq, ticket, seed, key) VALUES (?,?,?,?,?,?,?)",
            (lineage, ticket.device, ticket.outbox, ticket.seq, frames.encode(ticket), _named(seed), entry.key),
        )
        return found.rowcount == 1

    def reject(self, lineage: bytes, ticket: Ticket, why: str) -> None:
        """Refuse an update for ever."""
        place = (lineage, ticket.device, ticket.outbox, ticket.seq)
        db = self._database.connection
        db.execute("INSERT OR IGNORE INTO entries (lineage, device, outbox, seq, key) VALUES (?, ?, ?, ?, x'')", place)
        db.execute(
            "UPDATE entries SET rejected = ? WHERE lineage = ? AND device = ? AND outbox = ? AND seq = ?", (why, *place)
        )

    @property
    def newest(self) -> int:
        """The number of the newest update."""
        ((number,),) = self._database.connection.execute("SELECT coalesce(max(number), 0) FROM entries")
        return int(number)

    def queue(self, lineage: bytes) -> list[tuple[int, str, bytes]]:
        """Number, device and id of the key of each update that waits, in the order of their arrival."""
        rows = self._database.connection.execute(
            "SELECT number, device, key FROM entries WHERE lineage = ? AND dealt = 0 AND rejected = '' ORDER BY number",
            (lineage,),
        )
        return [(int(number), str(device), bytes(key)) for number, device, key in rows]

    def waiting(self, lineage: bytes) -> list[WaitingUpdate]:
        """The updates that wait, in the order of their arrival."""
        rows = self._database.connection.execute(
            "SELECT number, ticket FROM entries WHERE lineage = ? AND dealt = 0 AND rejected = '' ORDER BY number",
            (lineage,),
        )
        found = []
        for number, data in rows:
            ticket = _ticket(data)
            version = ticket.generation, ticket.base
            found.append(
                WaitingUpdate(number, ticket.device, version, ticket.base_digest, masking.parse_entry(ticket.entry))
            )
        return found

    def ticket(self, number: int) -> Ticket:
        """The ticket of an update."""
        ((data,),) = self._database.connection.execute("SELECT ticket FROM entries WHERE number = ?", (number,))
        return _ticket(data)

    def expire(self, lineage: bytes, numbers: Iterable[int], why: str) -> None:
        """Refuse updates that waited too long."""
        self._database.connection.executemany(
            "UPDATE entries SET rejected = ? WHERE number = ? AND lineage = ?",
            [(why, number, lineage) for number in numbers],
        )

    # ------------------------------------------------------------------------- sums

    def versions(self, lineage: bytes) -> dict[Version, bytes]:
        """The digest of each version that K_min devices of a sum stated."""
        rows = self._database.connection.execute(
            "SELECT generation, version, digest FROM versions WHERE lineage = ? AND length(digest) = ?",
            (lineage, masking.DIGEST),  # an earlier Midge recorded an empty one too
        )
        return {(generation, version): bytes(digest) for generation, version, digest in rows}

    def turn(self, lineage: bytes) -> int:
        """The highest turn of a deposit."""
        row = self._database.connection.execute(
            "SELECT value FROM meta WHERE name = ?", (_turn_of(lineage),)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def take_turn(self, lineage: bytes, turn: int) -> None:
        """Record the turn of a deposit."""
        self._database.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_turn_of(lineage), turn))

    def deal(self, lineage: bytes, hand: Hand, number: int, answer: bytes) -> None:
        """Record a sum with its answer."""
        db = self._database.connection
        db.execute("UPDATE meta SET value = ? WHERE name = 'dealt'", (number,))
        db.execute("INSERT INTO sums VALUES (?, ?, ?)", (number, lineage, answer))
        db.executemany(
            "UPDATE entries SET dealt = ? WHERE number = ?", [(number, each.number) for each in hand.updates]
        )
        db.executemany(
            "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?)",
            [(lineage, *version, digest) for version, digest in hand.models],
        )

    def answer(self, lineage: bytes, after: int) -> bytes | None:
        """The answer of the first sum after a number, byte for byte as it was; None if there is none."""
        row = self._database.connection.execute(
            "SELECT answer FROM sums WHERE lineage = ? AND number > ? ORDER BY number LIMIT 1", (lineage, after)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def holds(self, number: int) -> bool:
        """Whether the answer of a sum is kept still."""
        found = self._database.connection.execute("SELECT 1 FROM sums WHERE number = ?", (number,))
        return found.fetchone() is not None

    def forget(self, lineage: bytes, through: int) -> None:
        """Delete answers that are in the aggregator's journal."""
        self._database.connection.execute("DELETE FROM sums WHERE lineage = ? AND number <= ?", (lineage, through))


def _turn_of(lineage: bytes) -> str:
    return f"turn {lineage.hex()}"


def _named(seed: bytes) -> bytes:
    return hashlib.sha256(b"midge/1 seed used\0" + seed).digest()[:16]


def _ticket(data: bytes) -> Ticket:
    header, _ = frames.decode(data)
    return frames.validate(Ticket, header)
