"""SQLite's write-ahead log, read frame by frame: recovers frames behind the first damaged one, where SQLite stops.

The checksum of each frame continues that of the frame before, as stored there. So a damaged frame breaks its own check
and, if its stored checksum is what changed, that of the next one; all later frames can still be verified. The format is
that of https://www.sqlite.org/fileformat2.html, section 4.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

HEADER = struct.Struct(">IIIIIIII")
"""Magic, version, page size, number of checkpoints, two salts, two halves of the checksum of the fields before."""
FRAME = struct.Struct(">IIIIII")
"""Page number; pages of the database if this frame ends a transaction, otherwise 0; two salts; the checksum."""
BIG = 0x377F0683
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
    if len(log) < HEADER.size:
        return Log((), 0)
    magic, _, size, _, *salts, first, second = HEADER.unpack_from(log)
    order = ">" if magic == BIG else "<"
    sound = (first, second) == checksum(log[: HEADER.size - 8], (0, 0), order)
    size = _page_size(database) or size
    step = FRAME.size + size
    if not 512 <= size <= 65536:
        return Log((), 0)
    heads = [FRAME.unpack_from(log, at) for at in range(HEADER.size, len(log) - step + 1, step)]
    salt = tuple(salts) if sound else _usual([head[2:4] for head in heads[:3]])
    frames, seed = list[LogFrame](), (first, second)
    for number, head in enumerate(heads):
        at = HEADER.size + number * step
        data = log[at + FRAME.size : at + step]
        found = checksum(data, checksum(log[at : at + 8], seed, order), order)
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


def checksum(data: bytes, seed: tuple[int, int], order: str) -> tuple[int, int]:
    """The two halves of the checksum after more data, whose length is a multiple of 8 bytes.

    SQLite does `first += even + second; second += odd + first` for each pair of words. So both halves are sums of all
    words, each times the Fibonacci number of its distance from the end.
    """
    words = np.frombuffer(data, f"{order}u4").astype(np.uint32)
    low, middle, high, (before, at, after) = _factors(len(words) // 2)
    even, odd = words[0::2], words[1::2]
    first = int(np.dot(middle, even)) + int(np.dot(low, odd)) + before * seed[0] + at * seed[1]
    second = int(np.dot(high, even)) + int(np.dot(middle, odd)) + at * seed[0] + after * seed[1]
    return first & 0xFFFFFFFF, second & 0xFFFFFFFF


@cache
def _factors(pairs: int) -> tuple[Words, Words, Words, tuple[int, int, int]]:
    """Fibonacci numbers modulo 2^32: F(2k), F(2k+1), F(2k+2) for the pair k places from the end; and for the seed."""
    numbers = [1, 0, 1]  # from F(-1) on
    while len(numbers) < 2 * pairs + 3:
        numbers.append((numbers[-1] + numbers[-2]) & 0xFFFFFFFF)
    row = np.array(numbers, np.uint32)
    low, middle, high = (row[first : first + 2 * pairs : 2][::-1].copy() for first in (1, 2, 3))
    return low, middle, high, (numbers[2 * pairs], numbers[2 * pairs + 1], numbers[2 * pairs + 2])


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
