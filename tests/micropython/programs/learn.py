"""A device that learns what a teacher knows: `learn.py PORT NAME INPUTS OUTPUTS TASK UPDATES`; events as JSON."""

import gc
import json
import sys
from random import random, seed

from midge.mqtt import MQTTClient

from midge import Device, Rows

port, name, inputs, outputs, task, updates = sys.argv[1:7]
inputs, outputs = int(inputs), int(outputs)
seed(sum(name.encode()))
rows = Rows(inputs, 40)
settled = []


def teacher(row):
    """Which of the first inputs is the largest, or what they come to."""
    if task == "classification":
        return max(range(outputs), key=lambda place: row[place])
    total = 0.0
    for place, value in enumerate(row):
        total += (value - 5) * (1 if place % 2 else -2)
    return total if task == "regression" else int(total > 0)


for _ in range(40):
    row = [10 * random() for _ in range(inputs)]
    rows.add(row, teacher(row))
del row


def hear(event, about):
    if event == "too_large":
        sys.exit(str(about))
    if event == "settled":
        settled.append(about["verdict"])
    elif event == "trained":
        print(json.dumps({"loss": about["metrics"].get("loss"), "codec": about["codec"], "size": about["size"]}))
    elif event not in ("version", "forgot"):
        print(json.dumps({"event": event, "why": str(about)}))


device = Device(MQTTClient("", "127.0.0.1", int(port), keepalive=30), "learning", name, rows, None, name, hear)
device.run(lambda: len(settled) >= int(updates))
gc.collect()
print(json.dumps({"verdicts": settled, "size": device.model.size, "alive": gc.mem_alloc()}))
