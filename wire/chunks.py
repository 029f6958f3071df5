"""Chunking: large bodies are cut into chunks, and reassembled from chunks in any order.

One big PUBLISH is the wrong unit: it restarts from its first byte after each break of the link, it blocks the
keep-alive, and brokers cap it. Chunks may arrive in any order, twice or not at all; missing ones are requested again.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice

from midge.wire.errors import WireError
from midge.wire.frames import Buffer


def count(size: int, chunk: int) -> int:
    """Number of chunks of at most `chunk` bytes; an empty body is one empty chunk."""
    return max(1, -(-size // chunk))


def part_size(size: int, parts: int) -> int:
    """Bytes of each chunk but the last, if a body is cut into `parts` chunks."""
    return max(1, -(-size // parts))


CLOUD = 120 * 1024
"""Bytes of a chunk's body on a cloud broker: with topic and header within 128 KiB."""
_OWN = 256 * 1024
"""A broker with a packet limit below this is taken for a cloud service."""


def fitting(wanted: int, largest: int | None) -> int:
    """Bytes of a chunk's body for a broker that announces the largest body it takes, or None.

    A service may disconnect below the limit that it announces: AWS IoT Core announces packets of 149,504 bytes and
    closes the connection at 131,073, again at each retransmission (aws/aws-iot-device-sdk-js-v2#535). So a limit below
    256 KiB gives at most `CLOUD`.
    """
    if largest is None:
        return wanted
    return max(1024, min(wanted, largest, CLOUD if largest < _OWN else wanted))


def checksum(body: Buffer) -> bytes:
    """The first 16 bytes of a body's SHA-256, as sent in headers."""
    return hashlib.sha256(body).digest()[:16]


def fits(body: Buffer, sha256: bytes) -> bool:
    """Whether a body's SHA-256 begins with `sha256`, of 16 bytes or more."""
    return len(sha256) >= 16 and hashlib.sha256(body).digest().startswith(sha256)


def cut(data: Buffer, chunk: int) -> Iterator[memoryview]:
    """The chunks, as views."""
    view = memoryview(data)
    for start in range(0, max(1, len(view)), chunk):
        yield view[start : start + chunk]


class Assembly:
    """Reassembly of one body of known size, chunk size and SHA-256."""

    def __init__(self, size: int, chunk: int, sha256: bytes, *, limit: int) -> None:
        """Begin without chunks.

        Raises:
            WireError: the size is over the limit.
        """
        if size > limit:
            raise WireError(f"{size} bytes are over the limit of {limit}")
        self._size, self._chunk, self._sha256 = size, chunk, sha256
        self.parts = count(size, chunk)
        # Chunks are kept apart until all are received: memory grows with what arrived, not with what was claimed.
        self._pieces: dict[int, bytes] = {}
        self._lowest = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def complete(self) -> bool:
        return len(self._pieces) == self.parts

    @property
    def received(self) -> int:
        """Bytes received, about: the last chunk counts like the others."""
        return min(self._size, len(self._pieces) * self._chunk)

    def misses(self, part: int) -> bool:
        return 0 <= part < self.parts and part not in self._pieces

    def missing(self, most: int | None = None) -> tuple[int, ...]:
        """The lowest missing chunks, at most `most`."""
        while self._lowest in self._pieces:
            self._lowest += 1
        missing = (part for part in range(self._lowest, self.parts) if part not in self._pieces)
        return tuple(islice(missing, most))

    def add(self, part: int, data: Buffer) -> bool:
        """Add one chunk; False if it is a duplicate.

        Raises:
            WireError: there is no such part, or its length is wrong.
        """
        if not 0 <= part < self.parts:
            raise WireError(f"part {part} of {self.parts}")
        start = part * self._chunk
        expected = min(self._chunk, self._size - start)
        if len(data) != expected:
            raise WireError(f"part {part} has {len(data)} bytes, not {expected}")
        if part in self._pieces:
            return False
        self._pieces[part] = bytes(data)
        return True

    def whole(self) -> memoryview:
        """The whole body, without verifying its checksum."""
        assert self.complete
        if self.parts > 1:
            self._pieces = {0: b"".join(self._pieces.pop(part) for part in range(self.parts))}
            self.parts = 1
        return memoryview(self._pieces[0])

    def finish(self) -> memoryview:
        """The whole body, verified.

        Raises:
            WireError: its SHA-256 is not the promised one. All parts count as missing again.
        """
        if not self.complete:
            raise WireError(f"{self.parts - len(self._pieces)} parts are missing")
        parts = self.parts
        whole = self.whole()
        if not fits(whole, self._sha256):
            self.parts, self._lowest = parts, 0
            self._pieces.clear()
            raise WireError("the checksum of the whole does not match")
        return whole
