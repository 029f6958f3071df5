"""Devices of the C client learn together: they pool statistics, train a perceptron, and report how good it is."""

import asyncio
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from midge.broker.local.local_broker import local_broker
from tests import needs
from tests.c_client import learning
from tests.c_client.compiled import CLIENT, HERE, SANITIZED, compiled
from tests.harness.processes import PROGRAM, Actor

UPDATES = 25


async def learned(folder: Path, codec: str) -> Path:
    """Play the federation; the model that comes of it."""
    sources = [CLIENT / "midge.c", CLIENT / "ports" / "posix.c", HERE / "learner.c"]
    program, model = compiled(folder / "learner", sources, *SANITIZED), folder / "model.safetensors"
    async with local_broker("mosquitto", directory=folder) as broker:
        url = str(broker.endpoint)
        command = [
            *PROGRAM,
            "aggregate",
            "tests.c_client.learning:app",
            "--broker",
            url,
            "--json",
            "--model",
            str(model),
        ]
        variables = {"LEARNING_STORE": str(folder / "store"), "LEARNING_CODEC": codec}
        service = Actor("aggregator", command, folder / "aggregator.log", variables)
        await service.start()
        words = ["127.0.0.1", str(broker.endpoint.port), learning.FEDERATION]
        devices = [
            Actor(
                f"learner {number}",
                [str(program), *words, str(number), str(UPDATES), str(folder / f"flash-{number}")],
                folder / f"learner-{number}.log",
                {},
            )
            for number in range(learning.DEVICES)
        ]
        try:
            for each in devices:
                await each.start()
            async with asyncio.timeout(200):
                codes = [await each.ended() for each in devices]
            assert codes == [0] * len(devices), [each.tail() for each in devices]
        finally:
            for each in devices:
                await each.kill()
            service.send(signal.SIGTERM)
            await service.ended()
        assert all(event["verdict"] == "accepted" for event in service.events("update")), service.tail()
    return model


@pytest.mark.mosquitto
@needs.mosquitto
@pytest.mark.parametrize("codec", ["int8:256", "uq:4|rice"])
def test_devices_learn_what_none_of_them_was_told(tmp_path: Path, codec: str) -> None:
    parameters = load_file(asyncio.run(learned(tmp_path, codec)))
    np.testing.assert_allclose(parameters["input_mean"], np.full(12, 10), atol=0.5)
    np.testing.assert_allclose(parameters["input_scale"], np.full(12, 5 / np.sqrt(3)), atol=0.3)
    assert learning.accuracy(parameters) > 0.85
    for number in range(learning.DEVICES):
        lines = (tmp_path / f"learner-{number}.log").read_text().splitlines()
        told = [json.loads(line) for line in lines if '"accuracy"' in line]
        assert told[0]["accuracy"] < 0.6
        assert told[-1]["accuracy"] > 0.85
