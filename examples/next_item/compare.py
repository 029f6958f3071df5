"""Rows counted or not, dense or sparse on the wire: production's codecs, steps and releases, without a broker.

python examples/next_item/compare.py [--devices 60] [--rounds 30]
"""

import argparse
import json

import numpy as np
from shop import ROWS, WIDTH, hits, initial, train, visits

import midge
from midge.aggregator.core.records import ReleaseRecord, StepRecord
from midge.aggregator.model.model import Model
from midge.aggregator.model.reducer import Contribution
from midge.wire import codecs
from midge.wire.schema import Schema

TOGETHER, EVERY = 10, 5
"""Devices in a step, and steps between two scores."""


def federated(
    fleet: list[np.ndarray], test: np.ndarray, rounds: int, *, codec: str, rows: tuple[str, ...]
) -> dict[str, object]:
    """Train by steps of ten devices each; the score on new visits after each five, and the bytes of an update."""
    values = initial()
    schema = Schema.of(values)
    model, rng = Model.of(values, schema), np.random.default_rng(1)
    model.release(ReleaseRecord(1, 1, 0, 0))
    left, sizes, touched, scores = {}, [], [], []
    for step in range(1, rounds + 1):
        base, contributions = model.state.values(), []
        for device in rng.choice(len(fleet), TOGETHER, replace=False):
            fit = train(schema.views(base.copy()), midge.Plan(seed=1000 * step + int(device)), fleet[device])
            delta = schema.flatten(fit.parameters) - base
            touched.append(float(np.mean(delta.reshape(-1, WIDTH).any(axis=1))))
            whole = delta + left.get(device, 0.0)
            body = codecs.encode_delta(whole, schema, codec)
            decoded = codecs.decode_delta(body, schema, codec)
            left[device] = whole - decoded  # error feedback
            sizes.append(len(body))
            contributions.append(Contribution(decoded, None, model.version))
        updates = tuple((lsn, 1.0) for lsn in range(TOGETHER))
        record = StepRecord(2 * step, step, updates, rate=1.0, form="delta", normalise="weight", rows=rows)
        model.apply(record, contributions)
        model.release(ReleaseRecord(2 * step + 1, step + 1, step, TOGETHER))
        if step % EVERY == 0:
            scores.append(round(hits(schema.views(model.state.values()), test), 4))
    return {
        "hits": scores,
        "bytes": float(np.mean(sizes)),
        "touched": float(np.mean(touched)),
    }


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=60)
parser.add_argument("--visits", type=int, default=300)
parser.add_argument("--rounds", type=int, default=30)
parser.add_argument("--seeds", type=int, default=1)
args = parser.parse_args()
if args.devices < TOGETHER:
    parser.error(f"--devices is {args.devices}: a step takes {TOGETHER} of them")
for seed in range(args.seeds):
    fleet = [visits(seed, number, args.visits) for number in range(args.devices)]
    test = np.concatenate([visits(seed + 10_000, 10_000 + number, 50) for number in range(args.devices)])
    for name, codec, rows in (
        ("dense, float32", "float32", ()),
        ("rows counted, float32", "float32", ROWS),
        ("dense, uq:4|rice", "uq:4|rice", ()),
        ("rows counted, uq:4|rice", "uq:4|rice", ROWS),
    ):
        print(json.dumps({"seed": seed, "way": name, **federated(fleet, test, args.rounds, codec=codec, rows=rows)}))
