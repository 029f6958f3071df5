"""A device of a ledger (`tests.harness.ledger`) on MicroPython: each update adds a one at a place of its own.

`micropython ledger.py PORT FEDERATION NUMBER UPDATES FOLDER [SECONDS]`: until all updates are settled; with seconds, in
cycles of `run_once` as long as that.
"""

import json
import sys

from midge.mqtt import MQTTClient

from midge import Device

port, federation, number, updates, folder = sys.argv[1:6]
name, first = "device-" + number, int(number) * int(updates)
cycle = int(sys.argv[6]) if len(sys.argv) > 6 else 0
counts = {}


def write(line):
    line["device"] = name
    with open(folder + "/../" + name + ".jsonl", "a") as page:
        page.write(json.dumps(line) + "\n")


def hear(event, about):
    counts[event] = counts.get(event, 0) + 1
    if event == "settled":
        place = first + about["seq"] - 1
        write({"outbox": device.outbox.identity, "seq": about["seq"], "verdict": about["verdict"], "place": place})
    elif event == "forgot":
        write({"outbox": device.outbox.identity, "through": about, "first": first})
    elif event in ("damaged", "unreachable", "disconnected", "trouble", "too_large"):
        print(json.dumps({"event": event, "why": str(about)}))


def train(model, plan, tick):
    if device.outbox.next > int(updates):
        return None
    model.values[first + device.outbox.next - 1] += 1
    return {"examples": 1}


def done():
    return device.outbox.next > int(updates) and not device.outbox.update


device = Device(MQTTClient("", "127.0.0.1", int(port), keepalive=30), federation, name, None, train, folder, hear)
if cycle:
    while not done():
        device.run_once(cycle, sleep=1)
else:
    device.run(done)
print(json.dumps({"event": "done", "counts": counts}))
