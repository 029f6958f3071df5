"""All of it on this machine: python examples/plants/run.py."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from plant import PLANTS
from server import app

import midge

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--processes", type=int, default=2, help="processes of each plant")
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--enough", type=float, default=2.0, help="an accuracy at which to stop")
args = parser.parse_args()

PROGRAM = str(Path(__file__).with_name("plant.py"))
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1000"]
torchrun += ["--nproc-per-node", str(args.processes)]
started: list[subprocess.Popen] = []


def start(url: str) -> list:
    for plant in range(PLANTS):
        name = str(Path(folder, f"plant-{plant}"))
        command = [*torchrun, PROGRAM, "--plant", str(plant), "--url", url, "--outbox", f"{name}.outbox"]
        with Path(f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stderr=log))
    return []  # none in this process


with tempfile.TemporaryDirectory() as folder:
    try:
        midge.local(app, start, seconds=args.seconds, until=lambda found: found["accuracy"] >= args.enough)
    finally:
        for plant, each in enumerate(started):
            if each.poll() is not None:
                print(Path(folder, f"plant-{plant}.log").read_text(), file=sys.stderr)
            each.terminate()
        for each in started:
            each.wait()
