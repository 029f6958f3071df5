"""Rows counted or not, dense or sparse on the wire: the production codecs and the production step, without a broker.

python examples/next_item/compare.py [--devices 60] [--rounds 40]
"""

import argparse
import json

import numpy as np
from shop import ROWS, hits, initial, train, visits

import midge
from midge.aggregator.core.records import StepRecord
from midge.aggregator.model.reducer import Contribution, ServerState, make_step
from midge.wire import codecs
from midge.wire.schema import Schema

TOGETHER = 10
"""Devices in a step."""


def federated(
    fleet: list[np.ndarray], test: np.ndarray, rounds: int, *, codec: str, rows: tuple[str, ...]
) -> dict[str, float]:
    """Train by steps of ten devices each; the score on new visits, and the bytes of an update."""
    values = initial()
    schema = Schema.of(values)
    x, state, rng = schema.flatten(values), ServerState(), np.random.default_rng(1)
    left = {}
    sizes: list[int] = []
    touched: list[float] = []
    for step in range(rounds):
        contributions = []
        for device in rng.choice(len(fleet), TOGETHER, replace=False):
            fit = train(schema.views(x), midge.Plan(seed=1000 * step + int(device)), fleet[device])
            delta = schema.flatten(fit.parameters) - x
            touched.append(float(np.mean(delta.reshape(-1, 16).any(axis=1))))
            whole = delta + left.get(device, 0.0)
            body = codecs.encode_delta(whole, schema, codec)
            decoded = codecs.decode_delta(body, schema, codec)
            left[device] = whole - decoded if codecs.parse(codec).feedback else 0.0
            sizes.append(len(body))
            contributions.append(Contribution(decoded, None, step))
        updates = tuple((lsn, 1.0) for lsn in range(TOGETHER))
        record = StepRecord(step, step, updates, rate=1.0, form="delta", normalise="count", rows=rows)
        make_step(x, schema, record, contributions, state)
    return {
        "hits": hits(schema.views(x), test),
        "bytes": float(np.mean(sizes)),
        "touched": float(np.mean(touched)),
    }


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=60)
parser.add_argument("--visits", type=int, default=300)
parser.add_argument("--rounds", type=int, default=60)
parser.add_argument("--seeds", type=int, default=1)
args = parser.parse_args()
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
