"""A folder that follows another one by whole transactions of `storage.changes`, and survives a kill at any moment.

What arrives is appended to a log, synced, and only then repeated on the files. The changes are writes of bytes, so
repeating all of the log again ends at the same files: after a kill that is what the next start does. A transaction
without its end is dropped, so the files are always those of a moment at which the other folder was whole.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from midge.storage.changes import FileChange
from midge.storage.failpoints import failpoint
from midge.storage.files import PRIVATE, make_folder, sync_folder
from midge.wire import frames
from midge.wire.errors import WireError

LOG = "redo.log"
_HEAD = struct.Struct("<IIB")
"""Length and CRC-32 of a piece, and whether it ends its transaction."""
_LONGEST = 64 * 2**20
"""Bytes of the log after which the files are synced and the log is cut."""


class RedoLog:
    """The follower's side: a folder that no one else writes.

    Args:
        folder: the folder; it exists.
        names: of the files that may be written in it.
    """

    def __init__(self, folder: Path, names: re.Pattern[str]) -> None:
        self._folder, self._names = folder, names
        self._log = os.open(folder / LOG, os.O_CREAT | os.O_RDWR, PRIVATE)
        self._files: dict[str, int] = {}
        self._applied = 0
        """Bytes of the log that are repeated on the files."""
        self._complete = self._end = 0
        """Bytes of it up to the last whole transaction, and in all."""
        for last, piece, end in self._read(0, os.fstat(self._log).st_size):
            del piece
            self._complete = end if last else self._complete
        self.restart()
        os.fdatasync(self._log)
        self.apply()

    def restart(self) -> None:
        """Drop a transaction that has not come to its end."""
        self._end = self._complete
        os.ftruncate(self._log, self._end)

    def append(self, piece: bytes, *, last: bool) -> None:
        """Add a piece of a transaction; it counts once the last one is there and synced.

        Raises:
            OSError: there is no room.
        """
        data = _HEAD.pack(len(piece), zlib.crc32(piece), last) + piece
        written = 0
        while written < len(data):
            written += os.pwrite(self._log, data[written:], self._end + written)
        self._end += len(data)
        if last:
            self._complete = self._end

    def sync(self) -> None:
        """When this returns, all whole transactions survive a power cut.

        Raises:
            OSError: the log cannot be synced.
        """
        failpoint("copy.syncing")
        os.fdatasync(self._log)
        failpoint("copy.synced")

    def apply(self) -> None:
        """Repeat the whole transactions on the files, after `sync`.

        Raises:
            OSError: a file cannot be written.
            WireError: a piece is none.
        """
        for _, piece, end in self._read(self._applied, self._complete):
            for change in changes_of(piece):
                self._repeat(change)
            self._applied = end
        failpoint("copy.applied")
        if self._applied >= _LONGEST and self._end == self._complete:
            self.settle()

    def settle(self) -> None:
        """Sync the files and empty the log.

        Raises:
            OSError: one cannot be synced.
        """
        for descriptor in self._files.values():
            os.fsync(descriptor)
        for folder in {(self._folder / name).parent for name in self._files} | {self._folder}:
            if folder.exists():
                sync_folder(folder)
        failpoint("copy.settled")
        os.ftruncate(self._log, 0)
        os.fsync(self._log)
        self._applied = self._complete = self._end = 0
        self._close_files()

    def close(self) -> None:
        """Close everything; what is in the log stays."""
        self._close_files()
        os.close(self._log)

    def _close_files(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _read(self, start: int, end: int) -> Iterator[tuple[bool, bytes, int]]:
        """Undamaged pieces: whether each is its transaction's last, its bytes, and where it ends."""
        at = start
        while at < end and len(head := os.pread(self._log, _HEAD.size, at)) == _HEAD.size:
            length, crc, last = _HEAD.unpack(head)
            piece = os.pread(self._log, length, at + _HEAD.size)
            if len(piece) < length or zlib.crc32(piece) != crc:
                return
            at += _HEAD.size + length
            yield bool(last), piece, at

    def _repeat(self, change: FileChange) -> None:
        name = change.file
        if not self._names.fullmatch(name):
            raise WireError(f"{name!r} is no file of a store")
        if change.size == -1:
            if (descriptor := self._files.pop(name, None)) is not None:
                os.close(descriptor)
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()
            return
        if name not in self._files:
            make_folder((self._folder / name).parent)
            self._files[name] = os.open(self._folder / name, os.O_CREAT | os.O_RDWR, PRIVATE)
        descriptor = self._files[name]
        assert isinstance(change.data, bytes)
        at = 0
        while at < len(change.data):
            at += os.pwrite(descriptor, change.data[at:], change.offset + at)
        if change.size is not None:
            os.ftruncate(descriptor, change.size)


def pieces_of(changes: Iterator[FileChange], most: int) -> Iterator[tuple[bytes, bool]]:
    """A transaction as pieces of about this many bytes, and whether each is its last. An empty one has one piece."""
    rows, size = list[list[object]](), 0
    for change in changes:
        for part in change.pieces(most):
            assert isinstance(part.data, bytes)
            if size + len(part.data) > most:
                yield _packed(rows), False
                rows, size = [], 0
            rows.append([part.file, part.offset, part.data, part.size])
            size += len(part.data) + len(part.file) + 16
    yield _packed(rows), True


def _packed(rows: list[list[object]]) -> bytes:
    return zlib.compress(frames.pack(rows), 1)


def changes_of(piece: bytes) -> list[FileChange]:
    """The changes in a piece.

    Raises:
        WireError: it is none.
    """
    try:
        return [FileChange(*row) for row in frames.unpack(zlib.decompress(piece))]
    except (zlib.error, TypeError) as error:
        raise WireError(f"these are no changes of files: {error}") from error
