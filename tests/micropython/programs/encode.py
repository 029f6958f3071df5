"""Bodies of updates in several codecs, from deltas in JSON: what `midge.codecs` makes of them."""

import json
from array import array
from binascii import hexlify, unhexlify

from midge.codecs import Encoder
from midge.feedback import Feedback
from midge.model import Model, Tensor

answers = []
with open("question.json") as file:
    question = json.load(file)
for case in question:
    model, at, tensors = Model(), 0, []
    for role, size in case["tensors"]:
        tensors.append(Tensor("", (size,), role, at, size))
        at += size
    model.tensors, model.size, model.lineage, model.schema_hash = tuple(tensors), at, b"lineage", b"schema"
    model.values = array("f", range(at))
    feedback, record, bodies = Feedback("."), {}, []
    for delta in case["deltas"]:
        model.values = array("f", unhexlify(delta))
        norms = feedback.add(model, record)
        body = bytearray()
        encoder = Encoder(model, case["codec"])
        encoder.write(body.extend)
        if case["codec"].startswith("uq"):
            record = {"left": feedback.keep(model, encoder, norms, record)}
        bodies.append(str(hexlify(body), "ascii"))
    answers.append([encoder.codec, bodies])
print(json.dumps(answers))
