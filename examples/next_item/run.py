"""All of it on this machine: python examples/next_item/run.py."""

import argparse
import json

import numpy as np
from server import app
from shop import device, hits, visits

import midge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=30)
parser.add_argument("--visits", type=int, default=300, help="of each device")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--seconds", type=float, default=120, help="at most")
parser.add_argument("--hits", type=float, default=0.4, help="end once the next item is as often among ten")
args = parser.parse_args()

test = np.concatenate([visits(args.seed, 10_000 + number, 50) for number in range(args.devices)])
boards = []


def devices(url: str) -> list:
    boards[:] = [
        device(f"shop-{number}", url, visits(args.seed, number, args.visits)) for number in range(args.devices)
    ]
    return boards


found = midge.local(
    lambda url, store: app(url, store, evaluate=lambda parameters: {"hits": hits(parameters, test)}),
    devices,
    seconds=args.seconds,
    until=lambda metrics: metrics.get("hits", 0.0) >= args.hits,
)
print(json.dumps({**found, "bytes up": sum(each.bytes_up for each in boards) / max(1, len(boards))}))
