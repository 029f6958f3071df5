"""Wall-clock seconds to 90 %, compared with other systems, on one task with the same data, delays and seeds.

    python -m benchmarks.peers --peers DIR [--flower PYTHON] [--appfl PYTHON]

DIR holds the harness of the other systems (`common.py`, `bench_flower.py`, `bench_appfl.py`), PYTHON is the interpreter
of an environment in which one of them is installed. Twenty clients own digits by Dirichlet(0.3); a turn of client i
takes a log-normal time of median 0.5 s and σ = 1.2, drawn from (seed, i, turn). Systems that are not given are skipped.
One JSON line.
"""

import argparse
import asyncio
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import balanced, fedasync
from midge.aggregator.core.strategy import Strategy
from midge.aggregator.service import Aggregator
from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.iot_client.config import DeviceConfig
from midge.iot_client.device import Device
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan

CLIENTS = 20
NAMES = ("w1", "b1", "w2", "b2")


def trainer(task: ModuleType, client: int, part: Any) -> Any:
    """A client's turns: wait for the task's delay, then train."""
    turns: Counter[int] = Counter()

    async def train(parameters: Parameters, _: TrainingPlan) -> Fit:
        turn = turns[client]
        turns[client] += 1
        await asyncio.sleep(task.delay(client, turn))
        weights = [parameters[name] for name in NAMES]
        after = await asyncio.to_thread(task.train, weights, part, seed=turn * 100 + client)
        return Fit(dict(zip(NAMES, after, strict=True)), examples=len(part[1]))

    return train


async def midge(task: ModuleType, strategy: Strategy, target: float, limit: float) -> dict[str, Any]:
    """Real devices and an aggregator over a real broker, in one process."""
    parts, test = task.digits()
    scores: list[tuple[float, float]] = []
    began: list[float] = []
    bytes_up: list[int] = []

    def evaluate(parameters: Parameters) -> dict[str, float]:
        return {"accuracy": task.accuracy([parameters[name] for name in NAMES], test)}

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            scores.append((time.monotonic(), event["metrics"]["accuracy"]))
        if event["event"] == "update":
            bytes_up.append(event["size"])

    with tempfile.TemporaryDirectory() as directory:
        async with local_broker(directory=Path(directory)) as broker:
            server = Aggregator(
                AggregatorConfig(
                    connector=connector(broker.endpoint),
                    federation="peers",
                    initial=dict(zip(NAMES, task.init_mlp(), strict=True)),
                    store=Path(directory) / "store",
                    strategy=strategy,
                    evaluate=evaluate,
                    on_event=listen,
                )
            )
            devices = [
                Device(
                    DeviceConfig(
                        connector=connector(broker.endpoint),
                        federation="peers",
                        name=f"client-{client}",
                        train=trainer(task, client, parts[client]),
                        outbox=Path(directory) / f"{client}.outbox",
                    )
                )
                for client in range(CLIENTS)
            ]
            async with asyncio.TaskGroup() as tasks:
                for service in (server, *devices):
                    tasks.create_task(service.serve())
                began.append(time.monotonic())
                while time.monotonic() < began[0] + limit and not _held(scores, target):  # noqa: ASYNC110 - a stop-watch
                    await asyncio.sleep(0.05)
                for service in (*devices, server):
                    service.stop()
    first = next((at for at, score in scores if score >= target), None)
    held = _held(scores, target)
    return {
        "system": "midge",
        "mode": f"{strategy.name}, {strategy.form}",
        "seconds": None if first is None else round(first - began[0], 1),
        "seconds_held": None if held is None else round(held - began[0], 1),
        "updates": len(bytes_up),
        "best": round(max((score for _, score in scores), default=0.0), 3),
    }


def _held(scores: list[tuple[float, float]], target: float, seconds: float = 2.0) -> float | None:
    """When the target was first reached and then held."""
    since = None
    for at, score in scores:
        since = (since or at) if score >= target else None
        if since is not None and at - since >= seconds:
            return since
    return None


def peer(system: str, python: str, harness: Path, *arguments: str, limit: float) -> dict[str, Any]:
    """Run another system's benchmark; return its JSON line under our name for it."""
    command = [python, str(harness / f"bench_{system}.py"), "tta", *arguments, "--limit", str(int(limit))]
    done = subprocess.run(command, cwd=harness, capture_output=True, text=True, timeout=3 * limit + 120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}
    return {"system": system, "mode": " ".join(arguments), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument("--flower", metavar="PYTHON")
    parser.add_argument("--appfl", metavar="PYTHON")
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--limit", type=float, default=240.0, metavar="SECONDS")
    parser.add_argument("--quick", action="store_true", help="Midge alone, for at most 40 seconds")
    parser.add_argument("--data", help="ignored: the task brings its own")
    args = parser.parse_args()
    sys.path.insert(0, str(args.peers))
    task = importlib.import_module("common")
    limit = 40.0 if args.quick else args.limit
    rows = [asyncio.run(midge(task, balanced(), args.target, limit))]
    if not args.quick:
        rows.append(asyncio.run(midge(task, fedasync(form="delta", bounded=False), args.target, limit)))
        if args.flower:
            rows.append(peer("flower", args.flower, args.peers, "--mode", "thin", limit=limit))
        if args.appfl:
            rows.append(peer("appfl", args.appfl, args.peers, "--alpha", "6", "--lean", "1", limit=limit))
            rows.append(peer("appfl", args.appfl, args.peers, "--alpha", "0.9", limit=limit))
    print(json.dumps({"benchmark": "peers", "target": args.target, "rows": rows}))


if __name__ == "__main__":
    main()
