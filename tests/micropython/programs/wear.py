"""How many sectors littlefs erases for the client's files, on flash in memory: `wear.py PARAMETERS`; JSON."""

import json
import os
import sys
from array import array

import vfs
from midge.model import Model
from midge.outbox import Outbox

SECTOR, SECTORS = 4096, 512
ROUNDS = 100


class Flash:
    """A block device that counts erases."""

    def __init__(self):
        self._sectors = [None] * SECTORS
        self.erases = 0

    def _sector(self, number):
        if self._sectors[number] is None:
            self._sectors[number] = bytearray(b"\xff" * SECTOR)
        return self._sectors[number]

    def readblocks(self, number, buffer, offset=0):
        at = 0
        while at < len(buffer):
            some = min(len(buffer) - at, SECTOR - offset)
            buffer[at : at + some] = self._sector(number)[offset : offset + some]
            at, number, offset = at + some, number + 1, 0

    def writeblocks(self, number, buffer, offset=0):
        self._sector(number)[offset : offset + len(buffer)] = buffer

    def ioctl(self, request, number):
        if request == 4:
            return SECTORS
        if request == 5:
            return SECTOR
        if request == 6:
            self._sectors[number] = None
            self.erases += 1
        return 0


flash = Flash()
vfs.VfsLfs2.mkfs(flash)
vfs.mount(vfs.VfsLfs2(flash), "/flash")
os.mkdir("/flash/midge")
size = int(sys.argv[1])
body = memoryview(bytes(size + 4 * ((size + 255) // 256)))
outbox, model = Outbox("/flash/midge"), Model()
model.lineage, model.digest, model.size = b"l" * 16, b"d" * 16, size
model._grid, model._schema, model.frozen = array("i", range(size)), bytes(200), bytes(240)


def write(writing):
    for at in range(0, len(body), 64):
        writing(body[at : at + 64])


found = {"body": len(body), "update": 0, "model": 0}
for number in range(ROUNDS):
    header = {"lineage": model.lineage, "generation": 0, "base": number, "base_digest": b"d" * 8, "plan": 0}
    header.update({"seconds": 1.5, "examples": 40, "steps": 5, "metrics": {"loss": 0.5}, "codec": "int8:256"})
    before = flash.erases
    outbox.store(write, header, left=None, trained=[model.lineage, 0, number], began=1.8e9)
    outbox.settle()
    between = flash.erases
    model.version = number
    model.save("/flash/midge/model")
    found["update"] += (between - before) / ROUNDS
    found["model"] += (flash.erases - between) / ROUNDS
print(json.dumps(found))
