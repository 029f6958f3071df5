"""Frames of a model from JSON, taken one after the other: the digests and values of what they lead to."""

import json
from binascii import hexlify, unhexlify

from midge.model import Model

from midge import frames, msgpack, offers

with open("question.json") as file:
    question = json.load(file)


def text(data):
    return str(hexlify(data), "ascii")


def plain(value):
    """The same with bytes as text in hexadecimal."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return text(value) if isinstance(value, bytes) else value


model, found = Model(), []
for span, frame in question.get("frames", ()):
    announced = {"lineage": b"l", "version": 1, "digest": b""}
    try:
        model.take(unhexlify(frame), span)
        model.arrived(announced)
        announced["digest"] = model.digest
        arrived = model.arrived(announced)
        model.save("model")
        again = Model()
        again.restore("model")
        kept = again.digest == model.digest and again.lineage == b"l" and again.arrived(announced)
        model.unfold()
        found.append([text(model.digest), arrived and kept, list(model.values)])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        found.append([repr(error), model.lineage is None, []])
headers = []
for payload in question.get("headers", ()):
    header, body = frames.decode(unhexlify(payload))
    again = frames.decode(frames.encode(header, body))
    headers.append([plain(header), text(body), again[0] == header and bytes(again[1]) == bytes(body)])
refused = []
for data in question.get("refused", ()):
    try:
        refused.append(repr(msgpack.unpack(unhexlify(data))))
    except ValueError:
        refused.append(None)
routes = []
for data, have, target, largest in question.get("routes", ()):
    there = offers.unpack(unhexlify(data))
    routes.append([there, offers.route(there, have, target, largest)])
print(json.dumps({"frames": found, "headers": headers, "refused": refused, "routes": routes}))
