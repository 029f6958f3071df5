"""The same work by Midge and by other systems: learning, bytes, memory, and what a killed server loses.

    python -m benchmarks.peers_compared PART --peers DIR [--flower PYTHON] [--appfl PYTHON] [--store]

DIR holds the harness of the other systems, PYTHON is the interpreter of an environment with one of them. Parts:

- `rules`: rules of aggregation on a virtual clock, with no framework's cost, each with local epochs of 1 to 20. Twenty
  clients own digits by Dirichlet(0.3); a turn takes a log-normal time, median 0.5 s and σ = 1.2, whatever its epochs.
- `real`: the same task for real, each system with the epochs that `rules` found best for its rule.
- `bytes`: bytes of an update through a counting proxy, with all overhead.
- `killed`: the server is killed by SIGKILL under load, and started again after two seconds.

`--store` keeps what was found beside what other parts have found, and other systems, for docs/comparison.md.
"""

import argparse
import asyncio
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import midge as product
from benchmarks.peers import NAMES, peer
from benchmarks.peers import midge as real_midge
from midge.aggregator.core.presets import balanced, fedasync
from midge.broker.local.local_broker import local_broker
from midge.iot_client.training.fit import Fit, Parameters, TrainingPlan

RESULTS = Path(__file__).parent / "results" / "peers_compared.json"
EPOCHS = (1, 2, 5, 10, 20)
TARGET = 0.9
PARAMETERS = 100_000
DEVICES = 4
FEWEST = 20
"""Updates before the server is killed, and after it."""
WATCH, LAST_RESORT = 60.0, 300.0
"""Seconds: for which peers are watched afterwards; after which Midge counts as stopped."""


def harness(source: Path, directory: Path) -> Path:
    """A copy of the peers' harness whose local epochs come from the environment."""
    for path in source.glob("*.py"):
        shutil.copy(path, directory)
    common = directory / "common.py"
    text = common.read_text()
    free = text.replace("epochs=2,", 'epochs=int(os.environ.get("EPOCHS", 2)),')
    assert free != text, "the harness has another task"
    common.write_text(free)
    flower = directory / "bench_flower.py"  # its deadlines are those of a quiet machine
    flower.write_text(
        flower.read_text().replace("p.wait(60)", "p.wait(300)").replace("time.time() + 90", "time.time() + 400")
    )
    return directory


# ------------------------------------------------------------------------------- learning


def rules(task: ModuleType, ideal: ModuleType) -> list[dict[str, Any]]:
    """Virtual seconds to the target, for each rule and number of epochs."""
    rows = []
    known: dict[str, Callable[[], tuple[float | None, int]]] = {
        "FedAvg, all clients": partial(ideal.sync, limit=60),
        "FedAsync, mix 0.3": partial(ideal.asyn, 0.3, limit=1500),
        "deltas, mix 0.1": partial(ideal.asyn, 0.1, 0.0, limit=1500, against="start"),
    }
    train = task.train
    for epochs in EPOCHS:
        ideal.train = partial(train, epochs=epochs)
        for name, run in known.items():
            seconds, updates = run()
            rows.append({"rule": name, "epochs": epochs, "seconds": seconds, "updates": updates})
        rows.append({"rule": "Midge, balanced", "epochs": epochs, **simulated(task, epochs)})
        print(json.dumps(rows[-4:]), file=sys.stderr)
    return rows


def simulated(task: ModuleType, epochs: int) -> dict[str, Any]:
    """Midge's default on a virtual clock, with delays of the same distribution."""
    parts, test = task.digits()

    def trainer(client: int) -> Callable[[Parameters, TrainingPlan], Fit]:
        def train(parameters: Parameters, plan: TrainingPlan) -> Fit:
            after = task.train(
                [parameters[name] for name in NAMES], parts[client], epochs=epochs, seed=plan.seed % 2**32
            )
            return Fit(dict(zip(NAMES, after, strict=True)), examples=len(parts[client][1]))

        return train

    found = product.simulate(
        [trainer(client) for client in range(len(parts))],
        initial=dict(zip(NAMES, task.init_mlp(), strict=True)),
        speeds=[0.5] * len(parts),
        jitter=1.2,
        seconds=60.0,
        every=0.25,
        evaluate=lambda parameters: {"accuracy": task.accuracy([parameters[name] for name in NAMES], test)},
        stop=lambda _, metrics: metrics["accuracy"] >= TARGET,
    )
    reached = found.seconds_to(TARGET, "accuracy")
    return {"seconds": reached, "updates": int(found.updates[-1])}


def real(task: ModuleType, directory: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Wall-clock seconds, each with its best number of epochs."""
    best = json.loads(RESULTS.read_text())["rules"]["rows"]

    def epochs(rule: str) -> int:
        reached = [row for row in best if row["rule"] == rule and row["seconds"] is not None]
        return int(min(reached, key=lambda row: row["seconds"])["epochs"])

    rows = []
    for rule, strategy in (("Midge, balanced", balanced()), ("deltas, mix 0.1", fedasync(form="delta"))):
        task.train.__defaults__ = (epochs(rule), *task.train.__defaults__[1:])
        rows.append({"epochs": epochs(rule), **asyncio.run(real_midge(task, strategy, TARGET, args.limit))})
    others = [("flower", args.flower, "FedAvg, all clients", ("--mode", "thin"))]
    others += [("appfl", args.appfl, "FedAsync, mix 0.3", ("--alpha", "6", "--lean", "1"))]
    for system, python, rule, arguments in others:
        if python:
            os.environ["EPOCHS"] = str(epochs(rule))
            found = peer(system, python, directory, *arguments, limit=args.limit)
            rows.append({"epochs": epochs(rule), **found})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


# ----------------------------------------------------------------------------------- bytes


def run_peer(python: str, directory: Path, system: str, *arguments: str) -> dict[str, Any]:
    """One JSON line of a peer's benchmark."""
    command = [python, f"bench_{system}.py", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=1200, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}


async def midge_bytes(task: ModuleType, codec: str) -> dict[str, Any]:
    """Two devices behind a counting proxy; each training adds noise of one size to all values."""
    accepted: list[int] = []

    def noisy(seed: int) -> Callable[[Parameters, TrainingPlan], Fit]:
        rng = np.random.default_rng(seed)

        def train(parameters: Parameters, _: TrainingPlan) -> Fit:
            noise = rng.normal(0, 1e-3, PARAMETERS).astype(np.float32)
            return Fit({"w": parameters["w"] + noise}, examples=1)

        return train

    with tempfile.TemporaryDirectory() as directory:
        async with local_broker(directory=Path(directory)) as broker:
            proxy = task.CountingProxy(broker.endpoint.port)
            server = product.Aggregator(
                f"mqtt://127.0.0.1:{broker.endpoint.port}",
                federation="bytes",
                initial={"w": np.zeros(PARAMETERS, np.float32)},
                strategy=balanced(plan=product.Plan(codec=codec)),
                store=Path(directory) / "store",
                on_event=lambda event: accepted.append(1) if event["event"] == "update" else None,
            )
            devices = [
                product.Device(
                    f"mqtt://127.0.0.1:{proxy.port}", federation="bytes", name=f"d{n}", train=noisy(n), outbox=None
                )
                for n in range(2)
            ]
            async with asyncio.TaskGroup() as tasks:
                for service in (server, *devices):
                    tasks.create_task(service.serve())
                while len(accepted) < 20:  # noqa: ASYNC110 - a stop-watch
                    await asyncio.sleep(0.05)
                for service in (*devices, server):
                    service.stop()
    return {
        "system": "midge",
        "mode": codec,
        "updates": len(accepted),
        "up_bytes_per_update": proxy.up // len(accepted),
        "down_bytes_per_update": proxy.down // len(accepted),
    }


def count_bytes(task: ModuleType, directory: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes of an update of each system."""
    rows = [asyncio.run(midge_bytes(task, codec)) for codec in ("uq:4|rice", "float32")]
    for system, python in (("flower", args.flower), ("appfl", args.appfl)):
        if python:
            found = run_peer(python, directory, system, "wire", "--params", str(PARAMETERS), "--seconds", "15")
            rows.append({"system": system, **found})
    return rows


# ---------------------------------------------------------------------------------- killed

SERVER = """
import sys, json, numpy as np, midge
port, store = sys.argv[1:]
def listen(event):
    if event["event"] == "update":
        print(json.dumps({"device": event["device"], "seq": event["seq"], "verdict": event["verdict"]}), flush=True)
midge.Aggregator(f"mqtt://127.0.0.1:{port}", federation="killed", initial={"w": np.zeros(10_000, np.float32)},
    store=store, on_event=listen).run()
"""
DEVICE = """
import sys, time, json, numpy as np, midge
port, name = sys.argv[1:]
def train(parameters, plan):
    time.sleep(1.0)
    return midge.Fit({"w": parameters["w"] + np.float32(1e-3)}, examples=1)
def listen(event):
    if event["event"] in ("stored", "receipt"):
        print(json.dumps({"event": event["event"], "seq": event["seq"], "verdict": event.get("verdict")}), flush=True)
midge.Device(f"mqtt://127.0.0.1:{port}", federation="killed", name=name, train=train, on_event=listen).run()
"""


async def accepted_in(log: Path, wanted: int) -> int:
    """Wait for this number of accepted updates, and return how many there are."""
    until = time.monotonic() + LAST_RESORT
    found = 0
    while found < wanted and time.monotonic() < until:
        await asyncio.sleep(0.2)
        found = (await asyncio.to_thread(log.read_text)).count('"accepted"')
    return found


async def midge_killed() -> dict[str, Any]:
    """Four devices that train for a second; the aggregator is killed and started again."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        async with local_broker(directory=here) as broker:
            port = str(broker.endpoint.port)
            logs = {name: here / f"{name}.log" for name in ("server-1", "server-2", *map(str, range(DEVICES)))}

            def start(name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
                command = [sys.executable, "-c", program, *arguments]
                environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
                with logs[name].open("wb") as log:
                    return subprocess.Popen(command, cwd=here, env=environment, stdout=log, stderr=subprocess.STDOUT)

            server = start("server-1", SERVER, port, str(here / "store"))
            devices = [start(str(n), DEVICE, port, f"d{n}") for n in range(DEVICES)]
            before = await accepted_in(logs["server-1"], FEWEST)
            server.send_signal(signal.SIGKILL)
            server.wait()
            await asyncio.sleep(2)
            server = start("server-2", SERVER, port, str(here / "store"))
            after = await accepted_in(logs["server-2"], FEWEST)
            alive = sum(device.poll() is None for device in devices)
            for process in (*devices, server):
                process.send_signal(signal.SIGINT)
            for process in (*devices, server):
                process.wait(120)
            decided = [
                json.loads(line)
                for name in ("server-1", "server-2")
                for line in logs[name].read_text().splitlines()
                if line.startswith("{")
            ]
            held = [
                {**json.loads(line), "device": f"d{n}"}
                for n in range(DEVICES)
                for line in logs[str(n)].read_text().splitlines()
                if line.startswith("{")
            ]
    receipts = [(each["device"], each["seq"]) for each in held if each["event"] == "receipt"]
    accepted = [(each["device"], each["seq"]) for each in decided if each["verdict"] == "accepted"]
    return {
        "system": "midge",
        "mode": "as it ships",
        "before": before,
        "after": after,
        "trained": sum(each["event"] == "stored" for each in held),
        "settled": len(set(receipts)),
        "accepted": len(set(accepted)),
        "accepted_twice": len(accepted) - len(set(accepted)),
        "devices_alive": alive,
        "devices": DEVICES,
    }


def killed(directory: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each system does after its server was killed."""
    rows = [asyncio.run(midge_killed())]
    for system, python, cases in (
        ("flower", args.flower, ("server", "server-db")),
        ("appfl", args.appfl, ("server",)),
    ):
        for case in cases if python else ():
            found = run_peer(str(python), directory, system, "faults", "--case", case, "--seconds", str(int(WATCH)))
            rows.append({"system": system, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rules", "real", "bytes", "killed"))
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument("--flower", metavar="PYTHON")
    parser.add_argument("--appfl", metavar="PYTHON")
    parser.add_argument("--limit", type=float, default=150.0, metavar="SECONDS")
    parser.add_argument("--store", action="store_true", help="keep what was found in benchmarks/results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as copy:
        directory = harness(args.peers, Path(copy))
        sys.path.insert(0, str(directory))
        task, ideal = importlib.import_module("common"), importlib.import_module("ideal_tta")
        found = {
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "busy_cores": task.BACKGROUND,
            "load": round(os.getloadavg()[0], 1),
            "rows": {
                "rules": lambda: rules(task, ideal),
                "real": lambda: real(task, directory, args),
                "bytes": lambda: count_bytes(task, directory, args),
                "killed": lambda: killed(directory, args),
            }[args.part](),
        }
    print(json.dumps(found))
    if args.store:
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        now = {row.get("system") for row in found["rows"]}
        found["rows"] += [row for row in stored.get(args.part, {}).get("rows", []) if row.get("system") not in now]
        RESULTS.write_text(json.dumps({**stored, args.part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
