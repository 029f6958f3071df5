"""The changes of a folder with one database, as writes of bytes: whoever repeats them in order has the same files.

Changes of the database are read from SQLite's write-ahead log after each commit, as whole pages; those of files beside
it by comparing names, sizes and times with the last look. So no writer has to report anything, and a copy cannot differ
by a table or a file that was forgotten. LiteFS and Litestream read the log for the same reason.

Only the process that writes the database may look, after each of its commits: SQLite begins the log from the start once
its frames are in the database, and the next commit overwrites what was not read by then.
"""

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from midge.storage.files import PRIVATE
from midge.storage.wal import BIG, FRAME, HEADER, checksum

BLOCK = 64 * 1024
"""Bytes of a block of a file that is compared by its digest."""
_DIGEST = 16
_IN_MEMORY = 2**20
"""Bytes of a change that are read at once; more are read when they are needed."""
_IMAGE = ".image.db"
"""A consistent copy of the database, without a name as soon as it is open."""

Manifest = Mapping[str, tuple[int, bytes]]
"""Files by name: their sizes, and the digests of their blocks, one after another."""


class TooMuchChanged(Exception):
    """More has changed at once than may be kept in memory."""


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes of an open file, read when they are needed; it is closed once no one holds them."""

    file: BinaryIO
    offset: int
    size: int

    def read(self, start: int, size: int) -> bytes:
        """Some of them, by their place in the slice."""
        return os.pread(self.file.fileno(), min(size, self.size - start), self.offset + start)


@dataclass(frozen=True, slots=True)
class FileChange:
    """Bytes at a place of a file, and the file's size from then on."""

    file: str
    offset: int = 0
    data: bytes | FileSlice = b""
    size: int | None = None
    """None leaves it; -1 removes the file."""

    def pieces(self, most: int) -> Iterator["FileChange"]:
        """The same in changes of at most this many bytes."""
        size = self.data.size if isinstance(self.data, FileSlice) else len(self.data)
        for start in range(0, max(size, 1), most):
            whole = self.data
            data = whole.read(start, most) if isinstance(whole, FileSlice) else whole[start : start + most]
            yield FileChange(self.file, self.offset + start, data, self.size if start + most >= size else None)


class FolderChanges:
    """What has changed in a folder since the last look.

    Args:
        folder: the folder.
        database: the database in it, in WAL mode and open in this process.
        names: of the other files, as paths in the folder.
        most: bytes of pages that one look may return.
    """

    def __init__(self, folder: Path, database: str, names: re.Pattern[str], most: int) -> None:
        self._folder, self._database, self._names, self._most = folder, database, names, most
        self._log = os.open(folder / f"{database}-wal", os.O_RDONLY)
        self._head = b""
        """The log's header, which is another one each time that it begins from the start."""
        self._at, self._seed = 0, (0, 0)
        """Where the next frame begins, and the checksum up to there."""
        self._known: dict[str, tuple[int, int, int]] = {}
        """Files, with their inode, size and time of change."""
        self._pages()
        for name, found in self._files():
            self._known[name] = found

    def close(self) -> None:
        """Close the log."""
        os.close(self._log)

    def look(self) -> list[FileChange]:
        """The changes since the last look, in an order that can be repeated: a file before the row that names it.

        Raises:
            TooMuchChanged: they are too many.
            OSError: a file cannot be read.
        """
        changes, gone = [], set(self._known)
        for name, found in self._files():
            gone.discard(name)
            before = self._known.get(name)
            if found != before:
                self._known[name] = found
                grew = before is not None and found[0] == before[0] and found[1] > before[1] and "bodies-" in name
                start = before[1] if grew and before is not None else 0
                changes.append(FileChange(name, start, self._read(name, start, found[1]), found[1]))
        changes += self._pages()
        for name in gone:
            del self._known[name]
            changes.append(FileChange(name, size=-1))
        return changes

    def _files(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        yield from list_files(self._folder, self._names)

    def _read(self, name: str, start: int, end: int) -> bytes | FileSlice:
        file = (self._folder / name).open("rb", buffering=0)
        if end - start > _IN_MEMORY:
            return FileSlice(file, start, end - start)
        with file:
            return os.pread(file.fileno(), end - start, start)

    def _pages(self) -> list[FileChange]:
        """Pages of the transactions that were committed since the last look, each as it is now, and the size."""
        head = os.pread(self._log, HEADER.size, 0)
        if len(head) < HEADER.size:
            return []
        magic, _, size, _, *salts, first, second = HEADER.unpack(head)
        if head != self._head:
            self._head, self._at, self._seed = head, HEADER.size, (first, second)
        order = ">" if magic == BIG else "<"
        pages: dict[int, bytes] = {}
        since: dict[int, bytes] = {}
        at, seed, total = self._at, self._seed, 0
        while len(frame := os.pread(self._log, FRAME.size + size, at)) == FRAME.size + size:
            page, commit, *marks = FRAME.unpack_from(frame)
            data = frame[FRAME.size :]
            seed = checksum(data, checksum(frame[:8], seed, order), order)
            if marks != [*salts, *seed]:
                break  # of an earlier round of the log, or of a transaction that was rolled back
            since[page] = data
            at += len(frame)
            if len(since) * size > self._most:
                raise TooMuchChanged(f"A transaction has written more than {self._most:,} bytes.")
            if commit:
                pages |= since
                self._at, self._seed, total = at, seed, commit
                since.clear()
        changes = [FileChange(self._database, (page - 1) * size, data) for page, data in sorted(pages.items())]
        return [*changes, FileChange(self._database, size=total * size)] if total else []


class FolderSnapshot:
    """The same folder as it is when this is made, to be copied while its owner goes on.

    It is made by the process that writes the database, between two commits, beside a new `FolderChanges`.
    """

    def __init__(self, folder: Path, database: str, names: re.Pattern[str]) -> None:
        self._folder, self._database = folder, database
        self._opened: dict[str, tuple[int, int]] = {}
        for name, (_, size, _) in list_files(folder, names):
            self._opened[name] = os.open(folder / name, os.O_RDONLY), size
        self._small = {
            name: os.pread(descriptor, size, 0)
            for name, (descriptor, size) in self._opened.items()
            if size <= BLOCK  # such as a witness, which must not be ahead of the database
        }
        self._db = sqlite3.connect(
            f"{(folder / database).resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._db.execute("BEGIN")
        self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # the first statement begins it

    def close(self) -> None:
        """Close all files."""
        self._db.close()
        for descriptor, _ in self._opened.values():
            os.close(descriptor)
        self._opened.clear()

    def changes(self, known: Manifest) -> Iterator[FileChange]:
        """What makes the files of a manifest into these, in whatever thread.

        Raises:
            sqlite3.Error, OSError: something cannot be read, or the database not be copied.
        """
        for name in known:
            if name not in self._opened and name != self._database:
                yield FileChange(name, size=-1)
        for name, (descriptor, size) in self._opened.items():
            if name in self._small:
                yield FileChange(name, 0, self._small[name], size)
            else:
                yield from _different(name, descriptor, size, known)
        descriptor, size = self._image()
        try:
            yield from _different(self._database, descriptor, size, known)
        finally:
            os.close(descriptor)

    def _image(self) -> tuple[int, int]:
        """The database as one file. Its own file must not be opened here: closing it would drop SQLite's locks."""
        path = self._folder / _IMAGE
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, PRIVATE))
        try:
            with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as copy:
                for pragma in ("journal_mode=OFF", "synchronous=OFF"):
                    copy.execute(f"PRAGMA {pragma}").fetchall()
                self._db.backup(copy)
            self._db.rollback()
            descriptor = os.open(path, os.O_RDONLY)
        finally:
            path.unlink(missing_ok=True)
        return descriptor, os.fstat(descriptor).st_size


def _different(name: str, descriptor: int, size: int, known: Manifest) -> Iterator[FileChange]:
    before, digests = known.get(name, (-1, b""))
    for number, start in enumerate(range(0, size, BLOCK)):
        data = os.pread(descriptor, min(BLOCK, size - start), start)
        if _digest(data) != digests[number * _DIGEST : (number + 1) * _DIGEST]:
            yield FileChange(name, start, data)
    if before != size:
        yield FileChange(name, size=size)


def manifest(folder: Path, database: str, names: re.Pattern[str]) -> dict[str, tuple[int, bytes]]:
    """The files of a folder that no process writes.

    Raises:
        OSError: one cannot be read.
    """
    found = dict[str, tuple[int, bytes]]()
    for name in [database, *(name for name, _ in list_files(folder, names))]:
        if (path := folder / name).is_file():
            with path.open("rb") as file:
                blocks = [_digest(block) for block in iter(lambda: file.read(BLOCK), b"")]
            found[name] = path.stat().st_size, b"".join(blocks)
    return found


def list_files(folder: Path, names: re.Pattern[str]) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Files of a folder and its folders whose paths match, with inode, size and time of change, in nanoseconds."""
    waiting: Sequence[str] = [""]
    while waiting:
        folders = list[str]()
        for inside in waiting:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    path = f"{inside}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        if not inside and not entry.name.startswith("."):
                            folders.append(f"{path}/")
                    elif names.fullmatch(path):
                        try:
                            found = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        yield path, (found.st_ino, found.st_size, found.st_mtime_ns)
        waiting = folders


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
