"""Footprint of a device: `python -m benchmarks.device --json [--quick]` prints one JSON line.

Midge is built as a wheel and installed without extras into an empty environment, compiled, as on a device. There:

- `import_s`: seconds of processor time until `midge.Device` and its MQTT client are imported; the minimum of several.
- `floor_import_s`: the same for numpy, paho-mqtt, msgpack and pydantic (with a model of one field) alone.
- `rss_mb`: resident MiB of a device that has trained a small model and is connected, NumPy tier.
- `floor_rss_mb`: resident MiB with just those four libraries imported.
- `installed_mb`, `midge_mb`: MiB on disk, of all packages and of Midge's own, compiled files included.
- `packages`: what was installed.
- `predict_us`: microseconds of one prediction for one row, perceptron of 64-64-32-10.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import midge
from midge.broker.local.local_broker import local_broker

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "wire",
    "storage",
    "broker",
    "iot_client",
    "aggregator",
    "mask_helper",
    "gateway",
    "dashboard",
    "sensor_fleet",
    "midge",
)
FLOOR = "import numpy, msgpack, paho.mqtt.client\nfrom pydantic import BaseModel\nclass M(BaseModel):\n    a: int\n"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OURS = "import midge\nmidge.Device\nimport midge.broker.mqtt.paho_connection\n"
RESIDENT = "print([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')][0] / 1024)"
DEVICE = """
import sys, asyncio, numpy as np, midge
model = midge.MLP(64, (64, 32), 10)
rng = np.random.default_rng(int(sys.argv[2]))
x, y = rng.normal(size=(200, 64)).astype("f4"), rng.integers(0, 10, 200)
trained = 0
def listen(event):
    global trained
    trained += event["event"] == "trained"
    if trained == 5 and event["event"] == "trained":
        foreign = {"torch", "aiomqtt", "safetensors", "sklearn", "cryptography", "midge.aggregator"} & set(sys.modules)
        assert not foreign, foreign
        rss = [int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")][0] / 1024
        print(rss, flush=True)
        device.stop()
device = midge.Device(sys.argv[1], federation="cost", name="device-" + sys.argv[2], train=model.trainer(x, y),
                      outbox=sys.argv[3], on_event=listen)
asyncio.run(device.serve())
"""
PREDICT = """
import time, numpy as np, midge
model = midge.MLP(64, (64, 32), 10)
parameters, row = model.initial(), np.ones((1, 64), np.float32)
times = []
for _ in range(2000):
    began = time.perf_counter()
    model.predict(parameters, row)
    times.append(time.perf_counter() - began)
print(1e6 * float(np.median(times)))
"""


def environment() -> dict[str, str]:
    """The environment of a device: one thread, and installed compiled files. `-I` keeps the working directory out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def build(directory: Path) -> Path:
    """Build a wheel from a copy of this tree, whose `build/` could hold deleted files."""
    copy = directory / "source"
    copy.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    if not _can_build():
        sys.exit(
            "This builds Midge's wheel with the pip and setuptools (77 or newer) of this environment: make install"
        )
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory), str(copy))
    (wheel,) = directory.glob("*.whl")
    return wheel


def _can_build() -> bool:
    try:
        importlib.metadata.version("pip")
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def install(directory: Path, *, compiled: bool = True) -> Path:
    """Install a wheel of this tree without extras into an empty environment; return its interpreter."""
    wheel = build(directory)
    run(sys.executable, "-m", "venv", "--without-pip", str(directory / "venv"))
    python = directory / "venv" / "bin" / "python"
    run(
        *PIP, "--python", str(python), "install", "--prefer-binary", *([] if compiled else ["--no-compile"]), str(wheel)
    )
    return python


def run(*command: str) -> str:
    """A program's standard output; its standard error is passed through."""
    return subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def seconds(python: Path, program: str) -> float:
    """Seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(str(python), "-I", "-c", program)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


async def federate(python: Path, directory: Path) -> float:
    """Run two devices from that environment, with broker and aggregator from this one; MiB of the larger device."""
    model = midge.MLP(64, (64, 32), 10)
    async with local_broker(directory=directory) as broker:
        url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
        server = midge.Aggregator(
            url,
            federation="cost",
            initial=model.initial(),
            roles={"input_mean": "frozen", "input_scale": "frozen"},
            strategy=midge.fedasync(form="delta", bounded=False),
            store=directory / "store",
        )
        serving = asyncio.create_task(server.serve())
        devices = [
            await asyncio.create_subprocess_exec(
                *(str(python), "-I", "-c", DEVICE, url, str(number), str(directory / f"{number}.outbox")),
                env=environment(),
                stdout=subprocess.PIPE,
            )
            for number in (1, 2)
        ]
        try:
            async with asyncio.timeout(120):
                outputs = [(await device.communicate())[0] for device in devices]
        finally:
            for device in devices:
                if device.returncode is None:
                    device.kill()
            server.stop()
            await serving
    return max(float(output) for output in outputs)


def measure(*, quick: bool) -> dict[str, object]:
    """Run all measurements."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        python = install(directory)
        programs = {"import_s": OURS, "floor_import_s": FLOOR}
        times: dict[str, list[float]] = {key: [] for key in programs}
        for _ in range(5 if quick else 15):
            for key, program in programs.items():  # in turns: the machine may have other work
                times[key].append(seconds(python, program))
        (site,) = (directory / "venv" / "lib").glob("*/site-packages")
        sizes = dict.fromkeys((path.relative_to(site).parts[0] for path in site.rglob("*") if path.is_file()), 0)
        for path in site.rglob("*"):
            if path.is_file():
                sizes[path.relative_to(site).parts[0]] += path.stat().st_size
        return {
            **{key: round(min(found), 3) for key, found in times.items()},
            "rss_mb": round(asyncio.run(federate(python, directory)), 1),
            "floor_rss_mb": round(float(run(str(python), "-I", "-c", FLOOR + RESIDENT)), 1),
            "installed_mb": round(sum(sizes.values()) / 2**20, 1),
            "midge_mb": round(sizes["midge"] / 2**20, 2),
            "packages": sorted(path.name.partition("-")[0] for path in site.glob("*.dist-info")),
            "predict_us": round(float(run(str(python), "-I", "-c", PREDICT)), 1),
            "python": ".".join(map(str, sys.version_info[:3])),
            "numpy": np.__version__,
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line; there is no other form")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    print(json.dumps(measure(quick=args.quick)))


if __name__ == "__main__":
    main()
