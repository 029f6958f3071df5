"""The published model as a device holds it: whole numbers on a grid, the same bits on every device."""

import os
import struct
from array import array
from binascii import crc32
from hashlib import sha256
from math import isfinite

from midge import frames, integers, msgpack

_MAGIC = b"MDG1"
_DTYPES = {
    "float32": 4, "float64": 8, "complex64": 8, "complex128": 16, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of a value."""


class Tensor:
    """A tensor and where it lies: in the vector if it is learned, in the frozen bytes if it is a constant."""

    def __init__(self, name, sides, role, at, size):
        self.name, self.sides, self.role, self.at, self.size = name, sides, role, at, size


class Model:
    """A state of the model, at no version as long as `lineage` is None."""

    def __init__(self):
        self.lineage = None
        self.generation = self.version = self.exponent = self.size = 0
        self.digest = self.schema_hash = self.frozen = self._schema = b""
        self.tensors = ()
        self._grid = array("i")
        self.values = None
        """float32, of `size`: the published values from `unfold()` on; a training changes them in place."""

    @property
    def shared(self):
        """The tensors that are learned together, in the order of the vector."""
        return [tensor for tensor in self.tensors if tensor.role in ("trained", "averaged")]

    def constant(self, name):
        """A frozen float32 tensor as an array; None if there is none of that name."""
        for tensor in self.tensors:
            if tensor.name == name and tensor.role == "frozen":
                return array("f", self.frozen[tensor.at : tensor.at + tensor.size])
        return None

    # ------------------------------------------------------------------ versions

    def take(self, frame, span):
        """Take a frame: a snapshot if its span is 0, otherwise a step or a merged one.

        Raises:
            ValueError, IndexError: it is none, and the state is of no version any more.
        """
        lineage, self.lineage = self.lineage, None
        header, body = frames.decode(frame)
        if not span:
            self._take_snapshot(header, body)
        elif header["kind"] == "step" and header["size"] == self.size and header["exponent"] == self.exponent:
            integers.add(body, self._grid)
            self.lineage = lineage
        else:
            raise ValueError("a step of another grid")

    def _take_snapshot(self, header, body):
        if header["kind"] != "snapshot":
            raise ValueError("no snapshot")
        begin = header["schema"] + header["frozen"]
        room = 2 * (len(body) - begin)
        self._set_schema(bytes(body[: header["schema"]]), bytes(body[header["schema"] : begin]), room)
        self.exponent = header["exponent"]
        grid = self._grid
        for place in range(self.size):
            grid[place] = 0
        integers.add(body[begin : len(body) - header.get("filling", 0)], grid)

    def _set_schema(self, packed, frozen, room):
        if packed != self._schema:
            self._schema = b""
            self._lay_out(msgpack.unpack(packed), room)
            self._schema, self.schema_hash = packed, sha256(packed).digest()[:16]
        self.frozen = frozen

    def _lay_out(self, schema, room):
        """Make room for the tensors: `room` values, at most, which is what the bytes that follow can say."""
        tensors, vector, constants = [], 0, 0
        for name, sides, dtype, role, *tied in schema:
            size = 2 if dtype == "complex64" and role != "frozen" else 1
            for side in sides:
                size *= side
            if tied or role in ("local", "site"):
                continue
            if role == "frozen":
                size *= _DTYPES[dtype]
                tensors.append(Tensor(name, sides, role, constants, size))
                constants += size
            else:
                tensors.append(Tensor(name, sides, role, vector, size))
                vector += size
        if vector > room:
            msg = f"a model of {vector} values in a frame for {room}"
            raise ValueError(msg)
        self.tensors = tuple(tensors)
        if vector != self.size:
            self._grid, self.values, self.size = None, None, 0
            self._grid = array("i", range(vector))
        self.size = vector

    def arrived(self, announcement):
        """Whether this is the announced state, to the last bit; otherwise it is of no version."""
        sha = sha256(self.schema_hash)
        sha.update(struct.pack("<b", self.exponent))
        sha.update(self._grid)
        sha.update(self.frozen)
        self.digest = sha.digest()[:16]
        right = self.digest == announcement["digest"]
        self.lineage = announcement["lineage"] if right else None
        self.generation, self.version = announcement.get("generation", 0), announcement["version"]
        return right

    def unfold(self):
        """Set `values` to the published ones."""
        if self.values is None:  # not before: the snapshot has gone by now, and its room may be needed
            self.values = array("f", range(self.size))
        grid, values, scale = self._grid, self.values, 2.0**self.exponent
        for place in range(self.size):
            values[place] = grid[place] * scale

    def subtract(self):
        """Make of the trained `values` the delta, in place; whether all of it is finite."""
        grid, values, scale, one = self._grid, self.values, 2.0**self.exponent, array("f", (0,))
        for place in range(self.size):
            one[0] = grid[place] * scale
            values[place] -= one[0]
            if not isfinite(values[place]):
                return False
        return True

    # ------------------------------------------------------------------- in flash

    def save(self, path, opened=open):
        """Keep it over a deep sleep. A file that was cut is none, and costs a snapshot."""
        header = msgpack.pack({
            "lineage": self.lineage, "generation": self.generation, "version": self.version, "digest": self.digest,
            "exponent": self.exponent, "schema": self._schema, "frozen": self.frozen,
        })  # fmt: skip
        with opened(path, "wb") as file:
            file.write(_MAGIC + struct.pack("<II", len(header), crc32(self._grid, crc32(header))))
            file.write(header)
            file.write(self._grid)

    def restore(self, path, opened=open):
        """Take up what `save` kept, if it is whole."""
        try:
            with opened(path, "rb") as file:
                magic, size, crc = struct.unpack("<4sII", file.read(12))
                if magic != _MAGIC or size > os.stat(path)[6]:
                    return
                packed = file.read(size)
                header = msgpack.unpack(packed)
                self._set_schema(header["schema"], header["frozen"], os.stat(path)[6] // 4)
                if file.readinto(self._grid) != 4 * self.size or crc32(self._grid, crc32(packed)) != crc:
                    return
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.exponent, self.digest = header["exponent"], header["digest"]
        self.lineage, self.generation, self.version = header["lineage"], header["generation"], header["version"]
