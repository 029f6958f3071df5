"""A device of `midge demo --micro`: what it is and its rows lie in the folder that the command line names."""

import json
import sys

from midge.mqtt import MQTTClient
from midge.training import Perceptron

from midge import Device, Rows

folder = sys.argv[1]
with open(folder + "/device.json") as file:
    about = json.load(file)
rows = Rows(about["inputs"], about["rows"], least=1)
with open(folder + "/rows", "rb") as file:
    file.readinto(rows.data)
rows.count = about["rows"]
known = []


def train(model, plan, tick):
    """Train as the plan asks, and as the demo's other devices do where it asks for nothing."""
    if not known or known[0].values is not model.values:
        known[:] = [Perceptron(model)]
    wanted = dict(about["recipe"])
    wanted.update({name: value for name, value in plan.items() if value is not None})
    return known[0].train(rows, wanted, tick)


def hear(event, what):
    """Say it to who started this."""
    if event == "settled":
        print(json.dumps({"event": "receipt", "seq": what["seq"], "verdict": what["verdict"]}))  # noqa: T201 - it is read
    elif event not in ("version", "trained", "forgot"):
        print(json.dumps({"event": event, "why": str(what)}))  # noqa: T201


client = MQTTClient("", about["host"], about["port"], about["user"], about["password"], 60, largest=about["largest"])
Device(client, about["federation"], about["name"], rows, train, folder + "/flash", hear, about["root"]).run()
