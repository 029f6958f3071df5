"""Brokers for the contract suite, started once each: they are processes, and not tied to a test's loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from midge.broker.local.local_broker import LocalBroker, local_broker
from midge.broker.local.mosquitto import find_mosquitto
from tests import needs
from tests.broker.worlds import RealWorld, TwinWorld, World


@contextmanager
def _running(kind: Literal["embedded", "mosquitto"], directory: Path) -> Iterator[LocalBroker]:
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


@pytest.fixture(
    params=[
        "twin-twin",
        "paho-embedded",
        pytest.param("paho-mosquitto", marks=pytest.mark.mosquitto),
    ]
)
def world(request: pytest.FixtureRequest) -> World:
    library, broker = request.param.split("-")
    return TwinWorld() if library == "twin" else RealWorld(request.getfixturevalue(broker))
