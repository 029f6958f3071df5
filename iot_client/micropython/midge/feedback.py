"""Error feedback: what a coarse codec left out of one update goes into the next, kept in flash as bfloat16.

There are two files, and the outbox's record says which one counts; so an update and what it left change together.
"""

import struct
from binascii import crc32

_LIMIT, _NORMS = 2.0, 9
"""The norm of what is left, at most, in median norms of the last deltas."""
_PIECE = 64


class Feedback:
    """What is left to say."""

    def __init__(self, folder, opened=open):
        self._folder, self._opened = folder, opened

    def _path(self, number):
        return f"{self._folder}/left.{number}"

    def add(self, model, record):
        """Add what counts to the delta in the model's values; the norms of the deltas so far, with this one's.

        It is dropped if it is of another lineage or schema, or damaged.
        """
        values, norm = model.values, 0.0
        for place in range(model.size):
            norm += values[place] * values[place]
        kept = record.get("left")
        norms = []
        if (
            kept
            and kept["lineage"] == model.lineage
            and kept["schema"] == model.schema_hash
            and self._whole(kept, model)
        ):
            norms = kept["norms"]
            for place, value in enumerate(self._read(kept["file"], model.size)):
                values[place] += value
        return (norms + [norm**0.5])[-_NORMS:]

    def keep(self, model, encoder, norms, record):
        """Write what the encoder leaves out to the file that does not count; what the record is to say of it."""
        norm = 0.0
        for value in encoder.left():
            norm += value * value
        limit = _LIMIT * _median(norms)
        factor = limit / norm**0.5 if norm**0.5 > limit else 1.0
        number = 1 - (record.get("left") or {"file": 1})["file"]
        buffer, fill, crc = bytearray(_PIECE), 0, 0
        with self._opened(self._path(number), "wb") as file:
            for value in encoder.left():
                _upper_half(value * factor, buffer, fill)
                fill += 2
                if fill == _PIECE:
                    file.write(buffer)
                    crc = crc32(buffer, crc)
                    fill = 0
            file.write(memoryview(buffer)[:fill])
            crc = crc32(memoryview(buffer)[:fill], crc)
        return {"file": number, "crc": crc, "lineage": model.lineage, "schema": model.schema_hash, "norms": norms}

    def _pieces(self, number, size):
        with self._opened(self._path(number), "rb") as file:
            left = 2 * size
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    return
                left -= len(piece)
                yield piece

    def _whole(self, kept, model):
        crc = size = 0
        try:
            for piece in self._pieces(kept["file"], model.size):
                crc = crc32(piece, crc)
                size += len(piece)
        except OSError:
            return False
        return size == 2 * model.size and crc == kept["crc"]

    def _read(self, number, size):
        whole = bytearray(4)
        for piece in self._pieces(number, size):
            for at in range(0, len(piece), 2):
                whole[2], whole[3] = piece[at], piece[at + 1]
                yield struct.unpack("<f", whole)[0]


def _upper_half(value, buffer, at):
    """Write a float as bfloat16, rounded to nearest, ties to even."""
    b0, b1, b2, b3 = struct.pack("<f", value)
    half = b2 | b3 << 8
    half += (b0 | b1 << 8) + 0x7FFF + (half & 1) >> 16
    buffer[at], buffer[at + 1] = half & 0xFF, half >> 8


def _median(norms):
    ordered = sorted(norms)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
