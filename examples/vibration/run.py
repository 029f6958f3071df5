"""All of it on this machine: python examples/vibration/run.py."""

import argparse

from pump import device
from server import app

import midge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--pumps", type=int, default=10)
parser.add_argument("--seconds", type=float, default=20)
parser.add_argument("--enough", type=float, default=2.0, help="an area under the curve at which to stop")
args = parser.parse_args()

midge.local(
    app,
    lambda url: [device(pump, url) for pump in range(1, args.pumps + 1)],
    seconds=args.seconds,
    until=lambda found: found["auc"] >= args.enough,
)
