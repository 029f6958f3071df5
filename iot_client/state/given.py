"""What a device gave: for each settled update the digest of its body and the verdict, in the outbox, for some time.

Written in the transaction that removes the updates, so it costs no sync of its own. A proof is checked against it: the
aggregator's word for what was sent would prove nothing.
"""

import sqlite3
from contextlib import suppress
from dataclasses import dataclass

from midge.wire import frames
from midge.wire.errors import WireError
from midge.wire.messages import Update

TABLE = """
CREATE TABLE IF NOT EXISTS given (
    at REAL NOT NULL, outbox INTEGER NOT NULL, seq INTEGER NOT NULL, base INTEGER NOT NULL, body BLOB NOT NULL,
    verdict TEXT NOT NULL, PRIMARY KEY (outbox, seq)
) WITHOUT ROWID;
"""
KEPT = 1000
"""Updates that are remembered: 60 kB."""
UNSENT, UNSETTLED = "withdrawn", "withdrawn after it was sent"
"""In place of a verdict: the owner withdrew consent before there was one."""


STATISTICS = "statistics"
"""Key in the outbox of when statistics of the rows were first given, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class GivenUpdate:
    """One settled update."""

    at: float
    """Seconds since 1970, by the device's clock, at which it was settled."""
    outbox: int
    seq: int
    base: int
    body: bytes
    """What names it in a receipt (`Update.digest`)."""
    verdict: str
    """Empty if the receipt said only that it is settled."""


def withdrawn(sent: int, following: int) -> dict[int, str]:
    """In place of verdicts for all updates below `following`: those up to `sent` may count all the same."""
    return {seq: UNSETTLED if seq <= sent else UNSENT for seq in range(following)}


def settle(db: sqlite3.Connection, through: int, verdicts: dict[int, str], at: float) -> int:
    """Move the updates up to a seq here, in an open transaction; return how many. The verdicts on them are used up."""
    rows = []
    for (header,) in db.execute("SELECT header FROM updates WHERE seq <= ? AND header != x''", (through,)).fetchall():
        with suppress(WireError):
            update = frames.validate(Update, frames.unpack(header))
            said = verdicts.get(update.seq, "")
            rows.append((at, update.outbox, update.seq, update.base, update.digest, said))
    db.executemany("INSERT OR REPLACE INTO given VALUES (?, ?, ?, ?, ?, ?)", rows)
    if rows:
        db.execute("DELETE FROM given WHERE at < (SELECT at FROM given ORDER BY at DESC LIMIT 1 OFFSET ?)", (KEPT - 1,))
    db.execute("DELETE FROM updates WHERE seq <= ?", (through,))
    verdicts.clear()
    return len(rows)


def given(db: sqlite3.Connection) -> list[GivenUpdate]:
    """What is remembered, oldest first; nothing of an outbox of an earlier Midge."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'given'").fetchone():
        return []
    rows = db.execute("SELECT at, outbox, seq, base, body, verdict FROM given ORDER BY at, outbox, seq")
    return [GivenUpdate(*row) for row in rows]
