"""All of it on this machine: python examples/engines/run.py cmapss_fd001.npz."""

import argparse
from pathlib import Path

from engine import device, histories
from server import app

import midge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", type=Path)
parser.add_argument("--engines", type=int, default=60)
parser.add_argument("--seconds", type=float, default=40)
parser.add_argument("--enough", type=float, default=0.0, help="an error in cycles at which to stop")
args = parser.parse_args()

training = {number: (x, y) for number, (x, y, test) in histories(args.data).items() if not test}
midge.local(
    lambda url, store: app(url, store, args.data),
    lambda url: [device(number, x, y, url) for number, (x, y) in list(training.items())[: args.engines]],
    seconds=args.seconds,
    until=lambda found: found["rmse"] <= args.enough,
)
