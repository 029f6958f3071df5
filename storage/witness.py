"""The newest sequence number of a database, kept in a second file, to detect a damaged or restored database.

SQLite reads its log up to the first frame that is damaged. That is right after a power cut and wrong after a flipped
bit: the commits behind it disappear silently. So the writer also records here what it committed, and syncs that, before
it answers. An opened database must be at the recorded commit or later: a power cut between the two leaves the record
one commit behind, never ahead.

Two slots are written in turn, each a page of its own. A torn write or a flipped bit costs one of them; the other one's
note is one commit older, which proves nearly as much.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from midge.storage.failpoints import failpoint
from midge.storage.files import PRIVATE, atomic_write

FORMAT = 1
LONGEST = 256
"""Bytes of a note at most."""
_PAGE = 4096
_HEAD = struct.Struct("<4sBxHQ")
"""Magic, format, length of the note, a counter. The note follows, then CRC-32 over both."""
_MAGIC = b"MdgW"
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Noted:
    """The content of a witness."""

    note: bytes | None
    """The newest undamaged note; None if there is none."""
    damaged: bool = False
    """Whether a slot is damaged, by bit rot or by a power cut while it was written."""
    foreign: bool = False
    """Whether the file is another one at the witness's path: neither slot begins as one."""


class CommitWitness:
    """A file of two pages, open for writing in one process.

    Args:
        path: the file, beside the database and as private as it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        self._file: int | None = None

    def read(self) -> Noted:
        """Read the newest note without changing anything.

        Raises:
            OSError: the file exists and cannot be read.
        """
        return self._read()[1]

    def _read(self) -> tuple[int, Noted]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0, Noted(None)
        slots = [_slot(data[:_PAGE]), _slot(data[_PAGE:])]
        count, note = max((slot for slot in slots if slot is not None), default=(0, None))
        foreign = len(data) >= len(_MAGIC) and not any(data[at : at + len(_MAGIC)] == _MAGIC for at in (0, _PAGE))
        return count, Noted(note, damaged=None in slots or len(data) != 2 * _PAGE, foreign=foreign)

    def write(self, note: bytes) -> None:
        """Replace the note. When this returns, it survives a power cut; at any moment, it or the older one does.

        Raises:
            OSError: it cannot be written; the note before it stands.
        """
        assert len(note) <= LONGEST
        if self._file is None:
            self._count, before = self._read()
            if before.note is None or before.damaged:
                self._begin(note)
                return
            self._file = os.open(self.path, os.O_WRONLY)
        failpoint("witness.writing")
        count = self._count + 1
        os.pwrite(self._file, _packed(count, note), _PAGE * (count % 2))
        os.fdatasync(self._file)
        self._count = count

    def _begin(self, note: bytes) -> None:
        """Make the file with two valid slots: from here on, an invalid slot is damage."""
        count = self._count + 2
        pages = [_packed(number, note).ljust(_PAGE, b"\0") for number in (count, count - 1)]
        if count % 2:
            pages.reverse()
        atomic_write(self.path, b"".join(pages), mode=PRIVATE)
        self._count = count

    def close(self) -> None:
        """Close the file; the next note opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _packed(count: int, note: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, FORMAT, len(note), count)
    return head + note + _CRC.pack(zlib.crc32(head + note))


def _slot(page: bytes) -> tuple[int, bytes] | None:
    """The count and the note of a slot; None if it is damaged."""
    if len(page) < _HEAD.size:
        return None
    magic, form, length, count = _HEAD.unpack_from(page)
    end = _HEAD.size + length
    if magic != _MAGIC or form != FORMAT or len(page) < end + _CRC.size:
        return None
    (crc,) = _CRC.unpack_from(page, end)
    return (count, page[_HEAD.size : end]) if zlib.crc32(page[:end]) == crc else None
