"""What one session with a standby has sent and still has to send: first a copy of the store, then its changes."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from midge.aggregator.standby.files import BESIDE
from midge.aggregator.store.consistency import DATABASE
from midge.storage.changes import FileChange, FolderChanges, FolderSnapshot, Manifest
from midge.storage.redo_log import pieces_of

WINDOW = 4 * 2**20
"""Bytes on their way: fewer than a stock Mosquitto keeps for a client that is slow."""
_MOST_ON_THE_WAY = 200
"""The same in messages."""
MOST_WAITING = 64 * 2**20
"""Bytes of changes that wait in memory; a standby that is further behind needs a new copy."""

Piece = tuple[int, int, bool, bytes]
"""Its number, its transaction, whether it is the last of that, and its bytes."""


class FeedSession:
    """One session.

    Args:
        number: of the session.
        standby: identity of the standby's process.
        name: its host.
        patience: seconds after which it takes over.
        directory: of the store, open in this process.
        most: bytes of a piece.
    """

    def __init__(self, number: int, standby: int, name: str, patience: float, directory: Path, most: int) -> None:  # noqa: PLR0917
        self.number, self.standby, self.name, self.patience = number, standby, name, patience
        self._most = most
        self._changes = FolderChanges(directory, DATABASE, BESIDE, MOST_WAITING)
        self._snapshot: FolderSnapshot | None = FolderSnapshot(directory, DATABASE, BESIDE)
        self._sources: deque[tuple[int, int, Iterator[tuple[bytes, bool]]]] = deque()
        """Transactions to send: each with its bytes in memory."""
        self._waiting = 0
        self.on_the_way: deque[Piece] = deque()
        self._bytes_on_the_way = self._numbers = 0
        self._reading = False
        self.closed = False
        """Whether it has ended, perhaps while its copy is read."""

    def begin(self, transaction: int, known: Manifest) -> None:
        """Send what makes the standby's files into those of now, as this transaction."""
        assert self._snapshot is not None
        self._sources.append((transaction, 0, pieces_of(self._snapshot.changes(known), self._most)))

    def look(self, transaction: Callable[[], int]) -> None:
        """Send what has changed since the last look, if anything has, as a transaction.

        Raises:
            TooMuchChanged: it is too much.
            OSError: a file cannot be read.
        """
        changes: list[FileChange] = self._changes.look()
        if changes:
            size = sum(len(change.data) for change in changes if isinstance(change.data, bytes))
            self._waiting += size
            self._sources.append((transaction(), size, pieces_of(iter(changes), self._most)))

    @property
    def waits(self) -> bool:
        """Whether something is to be sent that was not."""
        return bool(self._sources)

    @property
    def overrun(self) -> bool:
        """Whether more waits than may."""
        return self._waiting > MOST_WAITING

    async def next(self) -> Piece | None:
        """The next piece to send; None if there is none, or enough is on its way.

        Raises:
            sqlite3.Error, OSError: the copy cannot be made.
        """
        full = self._bytes_on_the_way >= WINDOW or len(self.on_the_way) >= _MOST_ON_THE_WAY
        if full or self.closed or not self._sources:
            return None
        transaction, size, source = self._sources[0]
        if self._snapshot is not None:  # the copy is read, and compared, in a thread
            self._reading = True
            try:
                data, last = await asyncio.to_thread(next, source)
            finally:
                self._reading = False
                if self._ended():
                    self.close()
        else:
            data, last = next(source)
        if self._ended():
            return None
        if last:
            self._sources.popleft()
            self._waiting -= size
            if self._snapshot is not None:
                self._snapshot.close()
                self._snapshot = None
        self._numbers += 1
        piece = (self._numbers, transaction, last, data)
        self.on_the_way.append(piece)
        self._bytes_on_the_way += len(data)
        return piece

    def arrived(self, number: int) -> bool:
        """Forget the pieces up to this one, which the standby has; return whether there were any."""
        before = len(self.on_the_way)
        while self.on_the_way and self.on_the_way[0][0] <= number:
            self._bytes_on_the_way -= len(self.on_the_way.popleft()[3])
        return len(self.on_the_way) < before

    def _ended(self) -> bool:
        """Whether it was closed, perhaps while a thread was reading."""
        return self.closed

    def close(self) -> None:
        """Close the files, at once or when the thread no longer reads them."""
        if not self.closed:
            self._changes.close()
        self.closed = True
        self._sources.clear()
        if self._snapshot is not None and not self._reading:
            self._snapshot.close()
            self._snapshot = None
