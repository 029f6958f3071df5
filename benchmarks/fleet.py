"""Speed of simulated fleets: trainings and events per second, compared with bare training of the same models.

    python -m benchmarks.fleet [--quick] [--data FILE.npz] [--devices N …] [--days D] [--workers N] [--ray] [--model …]
    python -m benchmarks.fleet --live 5000 [--days D] [--speed-up X]

A row is a fleet: `devices`, `mode` (virtual, ray, live), `workers`, `model`, `trainings_per_s`, `events_per_s`,
`bytes_per_device` (payload, both ways), `memory_per_device` (resident bytes above the program's, divided), and
`virtual_seconds_per_s`. A ray row, the first fleet again on a local cluster of two, is added if Ray is installed. A
live row is a fleet of the profile phones, whose devices are connected nearly always, over Mosquitto if it is installed:
`memory_connected` is the memory of a device before it trains, `lag_p99` the lateness of timers in seconds, and events
are those that devices reported.

`bare_vmap_per_s` is the rate of torch.func.vmap for the same trainings in this process alone, at the best of several
stack sizes, and `bare_stacked_per_s` that of our stacked NumPy with nothing around it. Everything is measured on one
core: BLAS and torch get one thread. `cpu_share` is the share of a core that the simulation got; on a busy machine
compare `trainings_per_cpu_s` with the bare rates, which are by processor time too.
"""

import benchmarks.one_thread  # noqa: F401 - before NumPy

# isort: split
import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from midge.sensor_fleet.data import FleetData, load
from midge.sensor_fleet.lazily import numbered, shared
from midge.sensor_fleet.live.run import LiveRun
from midge.sensor_fleet.models import DenseModel, model_for
from midge.sensor_fleet.profiles.profile import load as load_profile
from midge.sensor_fleet.setting import Setting
from midge.sensor_fleet.simulation.cluster import OnRay
from midge.sensor_fleet.simulation.fleet_progress import FleetProgress
from midge.sensor_fleet.simulation.result import Simulated
from midge.sensor_fleet.simulation.simulate import simulate
from midge.sensor_fleet.simulation.stacked import Job, Stack, TrainingRows
from midge.sensor_fleet.virtual import ProfileFleet
from midge.wire.messages import Plan
from midge.wire.schema import Schema

STACKS = (16, 64, 128)
"""Devices that vmap trains at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default=None)
    parser.add_argument("--devices", type=int, nargs="*")
    parser.add_argument("--days", type=float)
    parser.add_argument("--profile", default="farm")
    parser.add_argument("--model", choices=["linear", "mlp"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="run the workers on a local Ray cluster")
    parser.add_argument("--live", type=int, nargs="*", help="devices of live fleets; these alone")
    parser.add_argument("--speed-up", type=float, help="of live fleets")
    args = parser.parse_args()
    data = load(source(args.data, quick=args.quick), seed=0)
    fleets: list[tuple[int, float, str]] = (
        [(100, 1.0, "mlp"), (800, 0.4, "mlp")] if args.quick else [(1000, 7.0, "mlp"), (10_000, 7.0, "mlp")]
    )
    if not args.quick and args.devices is None:
        fleets.append((100_000, 1.0, "linear"))
    if args.devices:
        fleets = [(devices, args.days or 7.0, args.model or "mlp") for devices in args.devices]
    if args.live is not None:
        fleets = []
    lives = [(200, 2160.0)] if args.quick else [] if args.devices else [(1000, 180.0), (5000, 90.0)]
    if args.live:
        lives = [(devices, args.speed_up or 90.0) for devices in args.live]
    measure: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (name, partial(fleet, data, devices, days, name, profile=args.profile, workers=args.workers, ray=args.ray))
        for devices, days, name in fleets
    ]
    if fleets and not args.ray:
        if find_spec("ray") is None:
            print("no row of ray: it is not installed (pip install 'midge[ray]')", file=sys.stderr)
        else:
            devices, days, name = fleets[0]
            measure.append((name, partial(fleet, data, devices, days, name, profile=args.profile, workers=2, ray=True)))
    where = source(args.data, quick=args.quick)
    measure += [
        (args.model or "mlp", partial(live, where, devices, args.days or 0.25, args.model or "mlp", speed_up=speed_up))
        for devices, speed_up in lives
    ]
    bare: dict[str, dict[str, float | None]] = {}
    rows = []
    for name, work in measure:
        if name not in bare:
            bare[name] = bare_rates(data, name, seconds=0.8 if args.quick else 6.0)
        row = {**work(), **bare[name]}
        for beside in ("bare_vmap_per_s", "bare_stacked_per_s"):
            rate = row[beside]
            row[beside.replace("_per_s", "_share")] = None if not rate else row["trainings_per_cpu_s"] / rate
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"benchmark": "fleet", "quick": args.quick, "rows": rows}))


def source(given: str | None, *, quick: bool) -> str:
    """The data: as given, otherwise Fashion-MNIST if the data folder is known, otherwise the bundled digits."""
    if given is not None:
        return given
    folder = os.environ.get("MIDGE_DATA")
    found = Path(folder) / "fashion_mnist.npz" if folder else None
    return str(found) if found is not None and found.exists() and not quick else "digits"


# ------------------------------------------------------------------------- fleets


def fleet(
    data: FleetData, devices: int, days: float, name: Any, *, profile: str, workers: int, ray: bool
) -> dict[str, Any]:
    """Simulate one fleet."""
    spread = shared(data, devices, 0)
    model = model_for(spread, name, seed=0)
    before, cpu = resident(), processor()
    began = time.perf_counter()
    said = [began]

    def watch(moment: FleetProgress) -> None:
        if time.perf_counter() - said[0] > 20:
            said[0] = time.perf_counter()
            done = moment.now / moment.until
            left = (said[0] - began) * (1 - done) / max(done, 1e-9)
            print(f"{devices}: {done:.0%}, {moment.trainings} trainings, {left:.0f} s left", file=sys.stderr)

    seconds = days * 86400.0
    found = simulate(
        model,
        data=spread,
        profile=load_profile(profile),
        seed=0,
        seconds=seconds,
        workers=workers,
        carry=partial(OnRay, count=workers) if ray else None,
        every=seconds / 50,
        watch=watch,
    )
    took = time.perf_counter() - began
    used = processor() - cpu
    memory = resident() - before
    return {
        "devices": devices,
        "mode": "ray" if ray else "virtual",
        "workers": workers,
        "model": f"{name}, {sum(int(array.size) for array in model.initial.values())} values",
        "days": days,
        **rates(found, took, used, took),
        "memory_per_device": max(0, memory) / devices,
        "memory": resident(),
        "virtual_seconds_per_s": seconds / took,
        next(iter(found.metrics)): float(next(iter(found.metrics.values()))[-1]),
    }


def live(data: str, devices: int, days: float, name: Any, *, speed_up: float) -> dict[str, Any]:
    """Run one fleet over a real broker."""
    virtual = ProfileFleet(
        Setting(data=data, model=name), profile="phones", devices=devices, days=days, speed_up=speed_up
    )
    cpu, began = processor(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="midge-fleet-") as directory:
        running = LiveRun(virtual, Path(directory), say=lambda words: print(words, file=sys.stderr))
        asyncio.run(running.serve())
    took, used = time.perf_counter() - began, processor() - cpu
    assert running.found is not None and running.found.live is not None
    found, about = running.found.result, running.found.live
    ran, size = float(found.times[-1]) / speed_up, about["resident"]
    return {
        "devices": devices,
        "mode": "live",
        "workers": 1,
        "model": f"{name}, {sum(array.size for array in running.found.model.initial.values())} values",
        "days": days,
        **rates(found, took, used, ran),
        "wire_bytes_per_device": (about["wire_up"] + about["wire_down"]) / devices,
        "memory_per_device": max(0, size["end"] - size["before"]) / devices,
        "memory_connected": max(0, size["connected"] - size["before"]) / devices,
        "memory": size["end"],
        "virtual_seconds_per_s": speed_up,
        "lag_p99": about["lag"]["p99"],
        "load": os.getloadavg()[0],
        next(iter(found.metrics)): float(next(iter(found.metrics.values()))[-1]),
    }


def rates(found: Simulated, took: float, used: float, ran: float) -> dict[str, float]:
    """Figures of a fleet that took `took` seconds and `used` processor seconds, of which it ran for `ran`."""
    return {
        "seconds": took,
        "cpu_seconds": used,
        "cpu_share": used / took,
        "trainings": found.trainings,
        "trainings_per_s": found.trainings / ran,
        "trainings_per_cpu_s": found.trainings / used,
        "events_per_s": found.events / ran,
        "events_per_cpu_s": found.events / used,
        "cpu_us_per_event": 1e6 * used / found.events,
        "bytes_per_device": float(found.bytes_up.mean() + found.bytes_down.mean()),
    }


def processor() -> float:
    """Processor seconds of this process and its ended children."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


def resident() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------- bare training


def bare_rates(data: FleetData, name: Any, seconds: float) -> dict[str, float | None]:
    """Bare trainings per processor second: stacked NumPy, and torch.func.vmap if it is installed."""
    spread = shared(data, 256, 0)
    model = model_for(spread, name, seed=0)
    assert isinstance(model, DenseModel)
    return {"bare_stacked_per_s": bare_stacked(model, spread, seconds), "bare_vmap_per_s": bare_vmap(model, seconds)}


def rate(work: Any, seconds: float) -> float:
    """Rate of `work` per processor second; it returns the amount done."""
    work()
    began, done = time.process_time(), 0
    while time.process_time() - began < seconds:
        done += work()
    return float(done / (time.process_time() - began))


def bare_stacked(model: DenseModel, data: FleetData, seconds: float) -> float:
    parameters = model.initial
    schema = Schema.of(parameters, model.roles)
    frozen = schema.thaw(schema.freeze(parameters))
    rows_of = numbered(data.devices)
    rows = [TrainingRows(model.prepare(rows_of(n).x), rows_of(n).y, n) for n in range(len(data.devices))]
    stack = Stack(model.net, schema, frozen, model.recipe, rows)
    start = schema.flatten(parameters)
    jobs = [Job(number, start, Plan(seed=number)) for number in range(64)]
    return rate(lambda: len(stack.train(jobs)), seconds)


def bare_vmap(model: DenseModel, seconds: float) -> float | None:
    """The same network, steps and batches with torch's vmap of grad over devices, on prepared rows."""
    try:
        import torch  # noqa: PLC0415 - an extra
        from torch.func import grad, vmap  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(1)
    layers, steps, batch = model.net.layers, model.recipe.local_steps, model.recipe.batch_size

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        for number in range(len(layers)):
            x = torch.relu(x) if number else x
            x = x @ parameters[2 * number].T + parameters[2 * number + 1]
        return functional.cross_entropy(x, y)

    slopes = vmap(grad(loss))
    best = 0.0
    for size in STACKS:
        start = []
        for _, _, fan_in, fan_out in layers:
            start += [torch.randn(size, fan_out, fan_in) / np.sqrt(fan_in), torch.zeros(size, fan_out)]
        x = torch.randn(size, steps, batch, model.net.inputs)
        y = torch.randint(0, model.net.outputs, (size, steps, batch))

        def work(start: Any = start, x: Any = x, y: Any = y, size: int = size) -> int:
            trained = [value.clone() for value in start]
            for step in range(steps):
                for value, slope in zip(trained, slopes(trained, x[:, step], y[:, step]), strict=True):
                    value.sub_(slope, alpha=model.recipe.learning_rate)
            return size

        best = max(best, rate(work, seconds / len(STACKS)))
    return best


if __name__ == "__main__":
    main()
