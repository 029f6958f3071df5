"""A federation on one machine: a broker, the aggregator and its devices in one process."""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midge.broker import connector
from midge.broker.local.local_broker import local_broker
from midge.broker.mqtt.endpoint import Endpoint
from midge.public_aggregator import Aggregator
from midge.public_device import Device
from midge.running import Service

_EVERY = 2.0
"""Seconds between two lines."""


def local(
    aggregator: Aggregator | Callable[[str, Path], Aggregator],
    devices: Sequence[Device] | Callable[[str], Sequence[Service]],
    *,
    seconds: float = 60.0,
    until: Callable[[Mapping[str, float]], bool] = lambda _: False,
    tell: Callable[[str], None] = print,
) -> dict[str, float]:
    """Run a federation on this machine, over a broker of its own, and return the last evaluation.

    All parts are those of production. Addresses, store and outboxes of the given objects are replaced by ones in a
    temporary directory, so that each call begins with the initial model and leaves nothing behind. The broker is
    Mosquitto if it is installed, otherwise the embedded one.

    Args:
        aggregator: the aggregator; or a function that makes it, from the broker's URL and a directory for its store.
        devices: the devices; or a function that makes them from the broker's URL, and may add other services that
            have `serve` and `stop`.
        seconds: maximum duration, in seconds.
        until: called with each evaluation; True ends the run.
        tell: called with a line about the newest evaluation every two seconds, and with one at the end.

    Returns:
        The metrics of the last evaluation by name, and its `version`; empty without an evaluation.

    Raises:
        Exception: what ended the aggregator or a device.

    Examples:
        >>> def train(parameters, plan):
        ...     return midge.Fit({"w": 0.5 * (parameters["w"] + 1)}, examples=10)
        >>> server = midge.Aggregator(
        ...     "mqtt://localhost", federation="ones", initial={"w": np.zeros(3)}, store="ones",
        ...     evaluate=lambda parameters: {"error": float(abs(1 - parameters["w"]).max())},
        ... )
        >>> devices = [midge.Device("mqtt://localhost", federation="ones", name=f"d{i}", train=train) for i in range(3)]
        >>> found = midge.local(server, devices, until=lambda found: found["error"] < 0.1, tell=lambda line: None)
        >>> found["error"] < 0.1
        True
    """
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_run(aggregator, devices, Path(directory), seconds=seconds, until=until, tell=tell))


async def _run(
    aggregator: Aggregator | Callable[[str, Path], Aggregator],
    devices: Sequence[Device] | Callable[[str], Sequence[Service]],
    directory: Path,
    *,
    seconds: float,
    until: Callable[[Mapping[str, float]], bool],
    tell: Callable[[str], None],
) -> dict[str, float]:
    loop, told = asyncio.get_running_loop(), 0.0
    found: dict[str, float] = {}
    reached = asyncio.Event()

    def listen(event: dict[str, Any]) -> None:
        nonlocal told
        if listening is not None:
            listening(event)
        if event["event"] == "evaluation" and not reached.is_set():  # what ended it is what was found
            found.update(event["metrics"], version=event["version"])
            if loop.time() > told + _EVERY:
                told = loop.time()
                tell(_in_words(found))
            if until(found):
                reached.set()

    async with local_broker(directory=directory) as broker:
        url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
        server = aggregator(url, directory / "store") if callable(aggregator) else _moved(aggregator, url, directory)
        listening = server.config.on_event
        server.config = replace(server.config, on_event=listen)
        serving = asyncio.create_task(server.serve())
        fleet = devices(url) if callable(devices) else [_near(device, url, directory) for device in devices]
        training = [asyncio.create_task(device.serve()) for device in fleet]
        waiting = asyncio.create_task(reached.wait())
        done, _ = await asyncio.wait({serving, waiting, *training}, timeout=seconds, return_when="FIRST_COMPLETED")
        waiting.cancel()
        for task in done:
            task.result()  # raises what ended it
        for device in fleet:
            device.stop()
        await asyncio.gather(*training)
        server.stop()
        await serving
    if found:
        tell(f"At the end: {_in_words(found)}")
    return found


def _moved(aggregator: Aggregator, url: str, directory: Path) -> Aggregator:
    """The aggregator at another broker, with a store of this run."""
    aggregator.config = replace(
        aggregator.config, connector=connector(Endpoint.parse(url)), store=directory / "store", credential_files=()
    )
    return aggregator


def _near(device: Device, url: str, directory: Path) -> Device:
    """The device at another broker, with an outbox of this run."""
    device.config = replace(
        device.config,
        connector=connector(Endpoint.parse(url)),
        outbox=directory / f"{device.name}.outbox",
        credentials=None,
    )
    return device


def _in_words(metrics: Mapping[str, float]) -> str:
    """Version 12: auc 0.981, rmse 16.2."""
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name != "version")
    return f"version {metrics['version']}: {numbers}"
