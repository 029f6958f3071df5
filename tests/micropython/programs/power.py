"""An outbox whose power is cut after each byte that is written, in each kind of write: what is found, as JSON."""

import json
import os

from midge.outbox import Outbox


class PowerCut(Exception):
    """The board is off: what was written so far is in the flash."""


class File:
    """A file that writes until the power is cut."""

    def __init__(self, file, power):
        self._file, self._power = file, power

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        left = self._power.left
        self._power.left -= len(data)
        if left < len(data):
            self._file.write(bytes(data)[: max(0, left)])
            self._file.close()
            raise PowerCut
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


class Power:
    """Opens files; the power is cut after so many more bytes."""

    def __init__(self):
        self.left = 1 << 30

    def opened(self, path, mode):
        file = open(path, mode)  # noqa: SIM115 - whoever asked closes it
        return File(file, self) if "w" in mode else file


def clear():
    for name in os.listdir("."):
        if name.startswith("outbox."):
            os.remove(name)


def body(write):
    for piece in (b"abc" * 20, b"defg" * 15):
        write(piece)


def seen(outbox):
    """What an outbox says, and what it holds."""
    update, data = outbox.update, bytearray(120)
    if update:
        outbox.read(0, data)
    return [
        outbox.identity,
        outbox.next,
        outbox.first,
        update and update["seq"],
        str(data, "utf-8") if update else None,
    ]


def store(outbox):
    outbox.store(body, {"codec": "float32"}, trained=[b"l" * 16, 0, 7])


ACTIONS = {
    "store": ((), store),
    "settle": ((store,), lambda outbox: outbox.settle()),
    "second": ((store, lambda outbox: outbox.settle()), store),
    "renew": ((store,), lambda outbox: outbox.renew(True)),
    "drop": ((store,), lambda outbox: outbox.renew(False)),
}


def prepared(before, power):
    clear()
    outbox = Outbox(".", power.opened)
    for action in before:
        action(outbox)
    return outbox


found = {"first": []}
for name, (before, action) in ACTIONS.items():
    cut, results = 0, []
    while True:
        power = Power()
        outbox = prepared(before, power)
        old = seen(outbox)
        power.left = cut
        try:
            action(outbox)
            whole = True
        except PowerCut:
            whole = False
        after = seen(Outbox("."))  # the board starts again
        results.append([old, after, whole])
        if not whole:
            again = Outbox(".")
            action(again)  # and does it again
            results[-1].append(seen(Outbox(".")))
        cut += 1
        if whole:
            break
    found[name] = results
cut = 0
while True:
    clear()
    power = Power()
    power.left = cut
    try:
        Outbox(".", power.opened)
        break
    except PowerCut:
        first, second = Outbox("."), Outbox(".")
        found["first"].append([seen(first), seen(second)])
    cut += 1
clear()
outbox = prepared((store,), Power())
slot = "outbox." + str(outbox._slot)
with open(slot, "rb") as file:
    data = bytearray(file.read())
rotten = []
for place in range(len(data)):
    damaged = bytearray(data)
    damaged[place] ^= 0x10
    with open(slot, "wb") as file:
        file.write(damaged)
    rotten.append(Outbox(".").update)
found["rotten"] = [update is None for update in rotten]
print(json.dumps(found))
