"""Segments: files beside the journal with the bodies of updates, only appended to, and deleted whole.

A database is a poor place for them. In SQLite's log and then in its file each byte is written twice, in pages of 4 kB,
and cleared a third time once it is not needed: 330 µs of processor time for a body of 40 kB, of which appending takes
32. A row of the journal says where its body is; it is written once the body is durable. Bytes without a row, left by a
crash between the two, are cut off when the store is opened.

Each file is named by the first lsn in it, and holds those up to the name of the next.
"""

import logging
import os
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path

from midge.storage.files import PRIVATE, atomic_write, sync_folder

log = logging.getLogger("aggregator")

LONGEST = 64 * 2**20
"""Bytes after which another file is begun."""
_PIECES = 512
"""Buffers that are written at once; the system allows 1,024."""
_NAME = "bodies-"


class Segments:
    """The segments of one store, open in one process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None
        self._first = 0
        self._size = 0

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def write(self, lsn: int, bodies: Sequence[bytes | memoryview]) -> list[tuple[int, int]]:
        """Append bodies, of this lsn and later ones. When this returns they survive a power cut.

        Returns the place of each: its file and its offset.

        Raises:
            OSError: they cannot be written; `cut` removes the written part.
        """
        if self._file is None or self._size >= LONGEST:
            self._begin(lsn)
        assert self._file is not None
        places = []
        for body in bodies:
            places.append((self._first, self._size))
            self._size += len(body)
        for start in range(0, len(bodies), _PIECES):
            self._append(list(bodies[start : start + _PIECES]))
        os.fdatasync(self._file)
        return places

    def _append(self, pieces: list[bytes | memoryview]) -> None:
        assert self._file is not None
        while pieces:
            written = os.writev(self._file, pieces)
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if pieces:
                pieces[0] = memoryview(pieces[0])[written:]

    def _begin(self, lsn: int) -> None:
        self.close()
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND
        self._file = os.open(self._path(lsn), flags, PRIVATE)
        self._first, self._size = lsn, 0
        sync_folder(self._directory)

    @property
    def mark(self) -> tuple[int, int]:
        """Where the next body goes."""
        return self._first, self._size if self._file is not None else 0

    def cut(self, mark: tuple[int, int]) -> None:
        """Remove what was appended since, with files that were begun since."""
        if self._file is None:
            return
        if self._first == mark[0]:
            os.ftruncate(self._file, mark[1])
            self._size = mark[1]
        else:
            self.close()
            self._path(self._first).unlink(missing_ok=True)

    def ranges(self) -> list[tuple[int, int]]:
        """By file, the first lsn that may have a body in it, and the first after it."""
        return list(pairwise([*self._all(), 2**63 - 1]))

    def recover(self, first: int, end: int, *, keep: bool) -> None:
        """Cut off what follows the last body of a file.

        Args:
            first: the file.
            end: where its last body ends; 0 if it has none.
            keep: whether to keep the cut off bytes in a file: they may be the only copy of what a damaged journal lost.
        """
        path = self._path(first)
        if path.stat().st_size <= end:
            return
        if keep:
            kept = next(free for number in count(1) if not (free := Path(f"{path}.kept-{number}")).exists())
            atomic_write(kept, path.read_bytes()[end:])
            log.warning("No record speaks of the end of %s: kept as %s.", path, kept.name)
        if end:
            os.truncate(path, end)
        else:
            path.unlink()

    def read(self, first: int, offset: int, size: int) -> bytes | None:
        """A body; None if its file does not exist, or is too short."""
        try:
            file = os.open(self._path(first), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            if not 0 <= offset <= offset + size <= os.fstat(file).st_size:
                return None
            body = os.pread(file, size, offset)
            while 0 < len(body) < size and (more := os.pread(file, size - len(body), offset + len(body))):
                body += more
        finally:
            os.close(file)
        return body if len(body) == size else None

    def clear(self, first: int, offset: int, size: int) -> bool:
        """Overwrite a body with zeros, durably; False if its file is already deleted."""
        try:
            file = os.open(self._path(first), os.O_WRONLY)
        except FileNotFoundError:
            return False
        try:
            os.pwrite(file, bytes(size), offset)
            os.fdatasync(file)
            os.utime(file)  # the time of a write is coarse, and a standby's copy must see that it changed
        finally:
            os.close(file)
        return True

    def drop(self, before: int) -> None:
        """Delete files that hold only bodies of lsns before this one."""
        names = self._all()
        for first, following in pairwise(names):
            if following <= before:
                self._path(first).unlink(missing_ok=True)

    def _all(self) -> list[int]:
        found = (path.name.removeprefix(_NAME) for path in self._directory.glob(f"{_NAME}*"))
        return sorted(int(number) for number in found if number.isdecimal())

    def _path(self, first: int) -> Path:
        return self._directory / segment_file(first)


def segment_file(first: int) -> str:
    """The name of the file whose first body has this lsn."""
    return f"{_NAME}{first:012d}"
