"""Fleets of `midge broker init` and a real Mosquitto that serves them, for tests."""

import asyncio
import getpass
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midge.broker.local.mosquitto import find_mosquitto
from midge.broker.local.process import Child
from midge.broker.provisioning.bundles import Bundle, read_bundle
from midge.broker.provisioning.create_fleet import initialise
from midge.broker.provisioning.fleet_registry import Fleet, Way, present
from tests import needs
from tests.ports import free_port

needs_mosquitto = [
    pytest.mark.mosquitto,
    needs.mosquitto,
]
NAMES = ["dev0001", "dev0002", "dev0003"]


def make_fleet(
    directory: Path,
    *,
    name: str = "plant",
    way: Way = "certificates",
    port: int = 8883,
    names: list[str] = NAMES,
) -> Fleet:
    fleet = Fleet(
        name=name,
        way=way,
        hosts=["localhost"],
        port=port,
        broker=f"mqtts://localhost:{port}",
        broker_directory=str((directory / "broker").resolve()),
        broker_user=getpass.getuser(),
        days=365,
    )
    initialise(directory, fleet, names, present())
    return fleet


@contextmanager
def serving(configuration: Path, port: int) -> Iterator[Child]:
    """A Mosquitto with this configuration."""
    binary = find_mosquitto()
    assert binary is not None
    child = Child(
        [str(binary), "-c", str(configuration)], configuration.with_name("log"), ready=""
    )  # it logs errors and warnings only
    with asyncio.Runner() as runner:
        assert runner.run(child.serves("127.0.0.1", port)), child.log_tail()
        try:
            yield child
        finally:
            runner.run(child.stop())


@contextmanager
def running_fleet(directory: Path, way: Way = "certificates") -> Iterator[Path]:
    """A fleet's directory, and its broker at work."""
    port = free_port()
    make_fleet(directory, way=way, port=port)
    with serving(directory / "broker" / "mosquitto.conf", port):
        yield directory


def device(directory: Path, name: str) -> Bundle:
    return read_bundle(directory / "devices" / name / "device.toml")


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
