"""The update that waits for its receipt, in flash: two slots, of which the newer whole one counts.

A slot is written from its beginning to a checksum at its end, always the one that does not count. So a power cut in any
write leaves what was there before. An update that is in a slot may have been sent; a number is never used twice.
"""

import os
import struct
from binascii import crc32
from hashlib import sha256

from midge import msgpack

_END = "<4sIHI"
_MAGIC, _END_SIZE = b"MDO1", struct.calcsize(_END)
_PIECE = 64
"""Bytes that are read or written at a time."""


class Outbox:
    """The device's identity, its count of updates, and at most one update that is not settled."""

    def __init__(self, folder, opened=open):
        """`opened` opens files: a test's may fail at any byte."""
        self._folder, self._opened = folder, opened
        self.record = None
        for number in (0, 1):
            record = self._read(number)
            if record and (not self.record or record["count"] > self.record["count"]):
                self.record, self._slot = record, number
        if not self.record:
            self._slot = 1
            self._write({"count": 0, "outbox": new_number(), "next": 1})

    @property
    def identity(self):
        """63 random bits that the outbox was made with."""
        return self.record["outbox"]

    @property
    def next(self):
        """The number of the next update."""
        return self.record["next"]

    @property
    def update(self):
        """The header of the update that waits; None if none does."""
        return self.record.get("update")

    @property
    def first(self):
        """The lowest number that is not settled."""
        return self.next - 1 if self.update else self.next

    def store(self, body, header, **beside):
        """Keep an update: `body(write)` writes it. Behind it, `header` gets `seq`, `size` and `sha256`."""

        def finish(size, sha):
            header.update({"seq": self.next, "size": size, "sha256": sha})
            return self._following(next=self.next + 1, update=header, **beside)

        self._write(finish, body)

    def settle(self):
        """Forget the update: it is decided."""
        self._write(self._following(update=None))

    def renew(self, keep):
        """Take a new identity: the flash was put back from a copy. `keep`: the update was never decided on."""
        old, slot = self.update, self._slot
        if not (keep and old):
            self._write(self._following(update=None, outbox=new_number(), next=1))
            return
        header = dict(old)
        header["seq"] = 1

        def body(write):
            at = 0
            while at < old["size"]:
                piece = self._body(slot, at, min(_PIECE, old["size"] - at))
                write(piece)
                at += len(piece)

        self._write(lambda *_: self._following(update=header, outbox=new_number(), next=2), body)

    def read(self, at, buffer):
        """Read a piece of the update's body into a buffer."""
        buffer[:] = self._body(self._slot, at, len(buffer))

    # -------------------------------------------------------------------- slots

    def _path(self, number):
        return f"{self._folder}/outbox.{number}"

    def _following(self, **changes):
        record = dict(self.record)
        record.update(changes)
        record["count"] += 1
        return record

    def _body(self, slot, at, size):
        with self._opened(self._path(slot), "rb") as file:
            file.seek(at)
            data = file.read(size)
        if len(data) < size:
            raise OSError("the outbox is cut short")
        return data

    def _write(self, record, body=None):
        """Write the slot that does not count, and let it count. `record` may be made of the body's size and hash."""
        slot = 1 - self._slot
        state = [0, 0]  # bytes and checksum
        sha = sha256()
        with self._opened(self._path(slot), "wb") as file:

            def write(data):
                file.write(data)
                state[0] += len(data)
                state[1] = crc32(data, state[1])

            def write_body(data):
                write(data)
                sha.update(data)

            if body:
                body(write_body)
                size = state[0]
                record = record(size, sha.digest()[:16])
            size = state[0]
            header = msgpack.pack(record)
            write(header)
            write(struct.pack(_END[:-1], _MAGIC, size, len(header)))
            file.write(struct.pack("<I", state[1]))
        self.record, self._slot = record, slot

    def _read(self, number):
        """The record of a slot; None if it is not whole."""
        try:
            path = self._path(number)
            total = os.stat(path)[6]
            with self._opened(path, "rb") as file:
                file.seek(max(0, total - _END_SIZE))
                magic, size, length, crc = struct.unpack(_END, file.read(_END_SIZE))
                if magic != _MAGIC or size + length + _END_SIZE != total:
                    return None
                file.seek(0)
                found, left = 0, total - 4
                while left:
                    piece = file.read(min(_PIECE, left))
                    found = crc32(piece, found)
                    left -= len(piece)
                file.seek(size)
                return msgpack.unpack(file.read(length)) if found == crc else None
        except (OSError, ValueError):
            return None


def new_number():
    """63 random bits, never 0."""
    return struct.unpack("<Q", os.urandom(8))[0] >> 1 or 1
