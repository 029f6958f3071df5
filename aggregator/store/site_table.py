"""A gateway's table of the devices' values of the site's tensors: the newest of each, in their updates' transactions.

It is bounded: names cost nothing on a broker without an ACL.

Not in the journal, whose bodies go with their sum. An earlier Midge ignores the table, and it is not proven by the
witness: a row that is lost or damaged comes again with its device's next update.
"""

import sqlite3
import zlib
from collections.abc import Iterable

from midge.aggregator.store.meta_table import Query

SITE = """
CREATE TABLE IF NOT EXISTS site_values (device TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL);
"""
MOST_BYTES = 2**27
"""Most bytes of all values together: of a device that is not among the last updates that have room, none are kept."""


class SiteTable:
    """The values of one store's devices.

    Args:
        query: reads rows.
    """

    def __init__(self, query: Query) -> None:
        self._query = query
        self.given: set[str] = set()
        """Devices of which there are other values than when `clear` was called last."""
        self.removed = False
        """Whether values of a device were removed since then."""

    def write(self, db: sqlite3.Connection, device: str, values: bytes | memoryview) -> None:
        """Keep a device's newest values, in a transaction."""
        row = (device, bytes(values), zlib.crc32(values))
        # A row that is replaced gets the next number, so the lowest are those of the devices that were silent longest.
        newest = db.execute("INSERT OR REPLACE INTO site_values VALUES (?, ?, ?)", row).lastrowid or 0
        db.execute("DELETE FROM site_values WHERE rowid <= ?", (newest - max(1, MOST_BYTES // max(1, len(values))),))
        self.given.add(device)

    def remove(self, db: sqlite3.Connection, devices: Iterable[str]) -> None:
        """Remove devices' values, in a transaction."""
        for device in devices:
            gone = db.execute("DELETE FROM site_values WHERE device = ?", (device,)).rowcount
            self.removed |= gone > 0
            self.given.discard(device)

    def values(self) -> dict[str, bytes]:
        """The values of each device, by name in order, without damaged ones."""
        rows = self._query("SELECT device, value, crc FROM site_values ORDER BY device")
        return {device: value for device, value, crc in rows if zlib.crc32(value) == crc}

    def clear(self) -> None:
        """Begin to note changes."""
        self.given.clear()
        self.removed = False
