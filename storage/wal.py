"""SQLite's write-ahead log, read frame by frame: recovers frames behind the first damaged one, where SQLite stops.

The checksum of each frame continues that of the frame before, as stored there. So a damaged frame breaks its own check
and, if its stored checksum is what changed, that of the next one; all later frames can still be verified. The format is
that of https://www.sqlite.org/fileformat2.html, section 4.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_HEADER = struct.Struct(">IIIIIIII")
"""Magic, version, page size, number of checkpoints, two salts, two halves of the checksum of the fields before."""
_FRAME = struct.Struct(">IIIIII")
"""Page number; pages of the database if this frame ends a transaction, otherwise 0; two salts; the checksum."""
_BIG = 0x377F0683
"""The magic number of big-endian checksums; one less means little-endian ones."""
_PAGE_SIZE_AT = 16
"""Offset of the page size in a database's header: two bytes, in which 1 stands for 65,536."""


@dataclass(frozen=True, slots=True)
class LogFrame:
    """One page, as a transaction wrote it."""

    page: int
    commits: bool
    data: bytes
    whole: bool
    """Whether its salts and its checksum are right."""


@dataclass(frozen=True, slots=True)
class Log:
    """The current frames of the log; frames behind them belong to an earlier round of the log."""

    frames: tuple[LogFrame, ...]
    readable: int
    """Number of frames that SQLite reads: up to the last commit before the first damaged frame."""

    @property
    def committed(self) -> int:
        """Number of frames up to the last commit, damaged ones included."""
        return max((number for number, frame in enumerate(self.frames, 1) if frame.commits), default=0)

    @property
    def damaged(self) -> int:
        """Number of damaged frames before the last commit."""
        return sum(not frame.whole for frame in self.frames[: self.committed])


def read_log(log: bytes, database: bytes) -> Log:
    """Read the frames of a log.

    Args:
        log: the file beside the database.
        database: the database, or its first page, for the page size.
    """
    if len(log) < _HEADER.size:
        return Log((), 0)
    magic, _, size, _, *salts, first, second = _HEADER.unpack_from(log)
    order = ">" if magic == _BIG else "<"
    sound = (first, second) == _checksum(log[: _HEADER.size - 8], (0, 0), order)
    size = _page_size(database) or size
    step = _FRAME.size + size
    if not 512 <= size <= 65536:
        return Log((), 0)
    heads = [_FRAME.unpack_from(log, at) for at in range(_HEADER.size, len(log) - step + 1, step)]
    salt = tuple(salts) if sound else _usual([head[2:4] for head in heads[:3]])
    frames, seed = list[LogFrame](), (first, second)
    for number, head in enumerate(heads):
        at = _HEADER.size + number * step
        data = log[at + _FRAME.size : at + step]
        found = _checksum(data, _checksum(log[at : at + 8], seed, order), order)
        known = found == head[4:]
        if head[2:4] != salt and not known and all(later[2:4] != salt for later in heads[number + 1 :]):
            break
        frames.append(LogFrame(head[0], head[1] > 0, data, known and head[2:4] == salt))
        seed = head[4:]
    return Log(tuple(frames), _readable(frames) if sound else 0)


def _readable(frames: Sequence[LogFrame]) -> int:
    readable = 0
    for number, frame in enumerate(frames, 1):
        if not frame.whole:
            break
        readable = number if frame.commits else readable
    return readable


def _usual(salts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(salts, key=salts.count, default=(0, 0))


def _page_size(database: bytes) -> int:
    if not database.startswith(b"SQLite format 3\0"):
        return 0
    size = int.from_bytes(database[_PAGE_SIZE_AT : _PAGE_SIZE_AT + 2])
    return 65536 if size == 1 else size


def _checksum(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = seed
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def applied(database: bytes, frames: Sequence[LogFrame]) -> bytes:
    """Write these frames into a copy of the database, to be opened without a log."""
    size = _page_size(database) or (len(frames[0].data) if frames else 0)
    image = bytearray(database)
    for frame in frames:
        end = frame.page * size
        # A damaged page number must not make a file of terabytes.
        if 0 < end <= len(database) + len(frames) * size:
            image.extend(bytes(max(0, end - len(image))))
            image[end - size : end] = frame.data
    image[18:20] = b"\x01\x01"  # open without a log beside it
    return bytes(image)
