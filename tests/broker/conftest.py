"""Brokers for the contract suite, started once each: they are processes, and not tied to a test's loop.

`python -m tests.brokers` runs the suite on other brokers, each named by the environment variable `MIDGE_BROKER`.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from midge.broker.local.local_broker import BrokerProgram, LocalBroker, local_broker
from midge.broker.local.mosquitto import find_mosquitto
from tests import needs
from tests.broker.worlds import RealWorld, TwinWorld, World
from tests.brokers.programs import PROGRAMS

NAMED = os.environ.get("MIDGE_BROKER")
"""The only broker of the contract suite; without it there are the twin, the embedded one and Mosquitto."""


@contextmanager
def _running(kind: Literal["embedded", "mosquitto"] | BrokerProgram, directory: Path) -> Iterator[LocalBroker]:
    with asyncio.Runner() as runner:
        managed = local_broker(kind, directory=directory)
        broker = runner.run(managed.__aenter__())
        yield broker
        runner.run(managed.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with _running("embedded", tmp_path_factory.mktemp("embedded")) as broker:
        yield broker


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    if find_mosquitto() is None:
        pytest.skip(needs.MOSQUITTO)
    with _running("mosquitto", tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    assert NAMED is not None
    with _running(PROGRAMS[NAMED](), tmp_path_factory.mktemp(NAMED)) as broker:
        yield broker


@pytest.fixture(
    params=["paho-named"]
    if NAMED
    else [
        "twin-twin",
        "paho-embedded",
        pytest.param("paho-mosquitto", marks=pytest.mark.mosquitto),
    ]
)
def world(request: pytest.FixtureRequest) -> World:
    library, broker = request.param.split("-")
    return TwinWorld() if library == "twin" else RealWorld(request.getfixturevalue(broker))
