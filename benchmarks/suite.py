"""The performance benchmarks, one after the other, with stored results: `make bench`.

    python -m benchmarks.suite [--quick] [--only NAME …] [--out DIR] [--peers DIR --flower PYTHON --appfl PYTHON]

Each runs in its own process, and its JSON line is stored as `benchmarks/results/NAME.json`, with the machine and its
load before the run; docs/performance.md and the table in the README are generated from these files. A full run takes
under twenty minutes on two idle cores; results from a busy machine are worth little. `--quick` is for testing the
suite: it stores nothing without `--out`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from midge.broker.local.mosquitto import find_mosquitto, mosquitto_version

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("numpy", "paho-mqtt", "aiomqtt", "msgpack", "pydantic")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: its arguments for a full run, once or several times, and its timeout in seconds."""

    full: tuple[tuple[str, ...], ...] = ((),)
    limit: float = 300.0
    module: str | None = None
    """If it differs from the module's name."""


def _row(**fields: object) -> tuple[str, ...]:
    return "--only", json.dumps(fields)


INGEST = (
    *(_row(params=10_000, codec=codec, devices=100, seconds=4) for codec in ("float32", "int8:256", "uq:4|rice")),
    *(_row(params=10_000, codec="uq:4|rice", devices=devices, seconds=4) for devices in (8, 1000)),
    *(_row(params=100_000, codec=codec, devices=100, seconds=4) for codec in ("float32", "int8:256", "uq:4|rice")),
    *(_row(params=1_000_000, codec=codec, devices=8, seconds=4) for codec in ("float32", "int8:256", "uq:4|rice")),
    _row(params=20_000, codec="int8:256", devices=100, rate=500.0, seconds=10, times=3),
    *(
        _row(params=10_000, codec="uq:4|rice", devices=devices, rate=500.0, seconds=8, bare=False)
        for devices in (10, 1000, 10_000)
    ),
)
"""The rows that the page shows; all of them take half an hour. Ten million parameters are in `apply`."""
NEIGHBOUR = (
    ("--case", "fetch", "--devices", "100"),
    ("--case", "fetch", "--devices", "300", "--byte-rate", "24e6"),
    ("--case", "drain"),
)
"""At the default rate the 3 GB of the second case take six minutes, so a higher one is requested."""
BESIDE = "ingest_peers"
SUITE = {
    "ingest": Benchmark(INGEST, limit=180),
    "apply": Benchmark(limit=180),
    "neighbour": Benchmark(NEIGHBOUR, limit=400),
    "release": Benchmark((("--parameters", "100000", "--times", "3"),), limit=240),
    "codecs": Benchmark(limit=120),
    "transfer": Benchmark((("--megabytes", "10"),), limit=240),
    "recovery": Benchmark(limit=420),
}
"""In this order."""


def beside(directory: Path, flower: str | None, appfl: str | None) -> Benchmark:
    """Other systems at the same bytes, if their environments exist: benchmarks/README.md says how to create them."""
    pythons = [("--flower", flower), ("--appfl", appfl)]
    given = [each for name, python in pythons if python for each in (name, python)]
    rows = [_row(params=params, codec="float32", devices=8, seconds=8) for params in (10_000, 1_000_000)]
    return Benchmark((rows[0], (*rows[1], "--peers", str(directory), *given)), 600, "ingest")


def machine() -> dict[str, Any]:
    """Description of the machine."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("model name", "Model"))]
        model = lines[0].partition(":")[2].strip() if lines else model
    binary = find_mosquitto()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mosquitto": "" if binary is None else mosquitto_version(binary),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def run(name: str, benchmark: Benchmark, extra: list[str], *, quick: bool) -> dict[str, Any]:
    """One benchmark's JSON line with the machine; rows of several runs are joined.

    Raises:
        RuntimeError: it failed, took too long, or printed no line.
    """
    load, began = os.getloadavg()[0], time.monotonic()
    arguments = [["--quick"]] if quick else [list(each) for each in benchmark.full]
    lines = [line(benchmark.module or name, [*each, *extra], benchmark.limit) for each in arguments]
    found = {**lines[0], "rows": [row for each in lines for row in each["rows"]]}
    about = {"seconds": round(time.monotonic() - began, 1), "load_before": round(load, 2), "arguments": arguments}
    return {"benchmark": name, "machine": machine(), **about, "found": found}


def line(name: str, arguments: list[str], limit: float) -> dict[str, Any]:
    """The output of one run.

    Raises:
        RuntimeError: it failed, took too long, or printed no line.
    """
    command = [sys.executable, "-P", "-m", f"benchmarks.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=limit, check=True)
        found: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} took more than {limit:g} s") from error
    except (subprocess.CalledProcessError, IndexError, ValueError) as error:
        raise RuntimeError(f"{name} failed: {error}") from error
    return found


def main() -> int:
    """Run the benchmarks; return the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*SUITE, BESIDE], metavar="NAME", help=", ".join(SUITE))
    parser.add_argument("--peers", type=Path, metavar="DIR", help=f"run other systems too, as {BESIDE}: their harness")
    parser.add_argument("--flower", metavar="PYTHON")
    parser.add_argument("--appfl", metavar="PYTHON")
    parser.add_argument("--out", type=Path, help="a directory for the results")
    parser.add_argument("--data", metavar="FILE.npz", help="passed on to each benchmark")
    options = parser.parse_args()
    out = options.out or (None if options.quick else RESULTS)
    extra = [] if options.data is None else ["--data", options.data]
    failed = 0
    began = time.monotonic()
    others = {BESIDE: beside(options.peers.resolve(), options.flower, options.appfl)} if options.peers else {}
    for name, benchmark in (SUITE | others).items():
        if options.only and name not in options.only:
            continue
        print(f"{name} (load {os.getloadavg()[0]:.2f})", file=sys.stderr)
        try:
            found = run(name, benchmark, extra, quick=options.quick)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed += 1
            continue
        print(f"{name} took {found['seconds']} s", file=sys.stderr)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"all took {time.monotonic() - began:.0f} s; {failed} failed", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
