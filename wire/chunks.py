"""Cutting what is large into chunks, and putting it together again in any order.

One big PUBLISH is the wrong unit: it starts again from its first byte after each break of the link, it blocks the
keep-alive, and brokers cap it. Chunks arrive in any order, twice or not at all; what is missing is asked for again.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice

from midge.wire.errors import WireError
from midge.wire.frames import Buffer


def count(size: int, chunk: int) -> int:
    """How many chunks of at most `chunk` bytes there are; an empty body is one empty chunk."""
    return max(1, -(-size // chunk))


def part_size(size: int, parts: int) -> int:
    """Bytes of each chunk but the last of a body that is cut into `parts`."""
    return max(1, -(-size // parts))


CLOUD = 120 * 1024
"""Bytes of a chunk's body on a broker that is a service's: with topic and header within 128 KiB."""
_OWN = 256 * 1024
"""A packet limit below it is a service's."""


def fitting(wanted: int, largest: int | None) -> int:
    """Bytes of a chunk's body for a broker that names the largest body that it takes, or None.

    A service may close at less than it names: AWS IoT Core names packets of 149,504 bytes and closes the connection at
    131,073, again and again where the message is sent again (aws/aws-iot-device-sdk-js-v2#535). So one that names less
    than 256 KiB gets at most `CLOUD`.
    """
    if largest is None:
        return wanted
    return max(1024, min(wanted, largest, CLOUD if largest < _OWN else wanted))


def checksum(body: Buffer) -> bytes:
    """The first 16 bytes of the SHA-256 of a body: what a header says of it."""
    return hashlib.sha256(body).digest()[:16]


def fits(body: Buffer, said: bytes) -> bool:
    """Whether a body is the one whose SHA-256 begins so, with 16 bytes or more."""
    return len(said) >= 16 and hashlib.sha256(body).digest().startswith(said)


def cut(data: Buffer, chunk: int) -> Iterator[memoryview]:
    """The chunks, as views."""
    view = memoryview(data)
    for start in range(0, max(1, len(view)), chunk):
        yield view[start : start + chunk]


class Assembly:
    """Collects the chunks of one body of a known size, chunk size and SHA-256."""

    def __init__(self, size: int, chunk: int, sha256: bytes, *, limit: int) -> None:
        """Reserve room.

        Raises:
            WireError: the size is over the limit.
        """
        if size > limit:
            raise WireError(f"{size} bytes are over the limit of {limit}")
        self._size, self._chunk, self._sha256 = size, chunk, sha256
        self.parts = count(size, chunk)
        # In pieces until all are here: a body that is begun costs what has come of it, not what it claims.
        self._pieces: dict[int, bytes] = {}
        self._lowest = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def complete(self) -> bool:
        return len(self._pieces) == self.parts

    @property
    def here(self) -> int:
        """Bytes that have come, about: the last chunk counts as the others."""
        return min(self._size, len(self._pieces) * self._chunk)

    def misses(self, part: int) -> bool:
        return 0 <= part < self.parts and part not in self._pieces

    def missing(self, most: int | None = None) -> tuple[int, ...]:
        """The lowest chunks that have not come, at most `most`."""
        while self._lowest in self._pieces:
            self._lowest += 1
        missing = (part for part in range(self._lowest, self.parts) if part not in self._pieces)
        return tuple(islice(missing, most))

    def add(self, part: int, data: Buffer) -> bool:
        """Take one chunk in; False where it had come before.

        Raises:
            WireError: there is no such part, or it is of another length.
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
        """The whole body, its checksum not looked at."""
        assert self.complete
        if self.parts > 1:
            self._pieces = {0: b"".join(self._pieces.pop(part) for part in range(self.parts))}
            self.parts = 1
        return memoryview(self._pieces[0])

    def finish(self) -> memoryview:
        """The whole body.

        Raises:
            WireError: its SHA-256 is not the one that was promised. All parts count as missing again.
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
