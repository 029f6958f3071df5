"""A device whose power is cut at each write to its flash, one after the other: `cuts.py PORT UPDATES FOLDER`.

Each life of the device is a new `Device` on what the flash has. The n-th life is cut in the middle of its n-th write.
What is told of receipts is written without a cut, as a program's own book would be.
"""

import builtins
import json
import sys

port, updates, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
opened, power = builtins.open, {}


class PowerCut(Exception):
    """The board is off."""


class File:
    """A file of the flash."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        power["writes"] -= 1
        if not power["writes"]:
            self._file.write(bytes(data)[: len(bytes(data)) // 2])
            self._file.close()
            raise PowerCut
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


builtins.open = lambda path, mode="r": File(opened(path, mode)) if "w" in mode else opened(path, mode)

from midge.mqtt import MQTTClient  # noqa: E402

from midge import Device  # noqa: E402 - behind the flash that it is to have


def write(line):
    line["device"] = "device-0"
    with opened(folder + "/../device-0.jsonl", "a") as page:
        page.write(json.dumps(line) + "\n")


def hear(event, about):
    counts[event] = counts.get(event, 0) + 1
    if event == "settled":
        seq = about["seq"]
        write({"outbox": device.outbox.identity, "seq": seq, "verdict": about["verdict"], "place": seq - 1})
    elif event == "forgot":
        write({"outbox": device.outbox.identity, "through": about, "first": 0})


def train(model, plan, tick):
    if device.outbox.next > updates:
        return None
    model.values[device.outbox.next - 1] += 1
    return {"examples": 1}


def done():
    return device.outbox.next > updates and not device.outbox.update


counts, cuts, life, device = {}, 0, 0, None
while device is None or not done():
    life += 1
    power["writes"] = life
    client = MQTTClient("", "127.0.0.1", port, keepalive=30)
    try:
        device = Device(client, "ledger", "device-0", None, train, folder, hear)
        device.run(done)
    except PowerCut:
        cuts += 1
        if client.sock:
            client.sock.close()  # without a word: the broker publishes the Last Will
print(json.dumps({"event": "done", "counts": counts, "cuts": cuts}))
