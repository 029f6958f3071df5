"""All of it on this machine: python examples/activity/run.py spsw_har.npz."""

import argparse
from pathlib import Path

from server import app
from wearable import device, wearers

import midge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path)
parser.add_argument("--wearables", type=int, default=36)
parser.add_argument("--seconds", type=float, default=30)
parser.add_argument("--enough", type=float, default=2.0, help="an accuracy at which to stop")
args = parser.parse_args()

training = {number: (x, y) for number, (x, y, test) in wearers(args.data).items() if not test}
midge.local(
    lambda url, store: app(url, store, args.data),
    lambda url: [device(number, x, y, url) for number, (x, y) in list(training.items())[: args.wearables]],
    seconds=args.seconds,
    until=lambda found: found["accuracy"] >= args.enough,
)
