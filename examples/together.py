"""Runs an example as a whole on this machine: a broker, its aggregator and its devices, in one process."""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import midge
from midge.broker.local.local_broker import local_broker

EVERY = 2.0
"""Seconds between two lines."""


def run(
    aggregator: Callable[[str, Path], midge.Aggregator],
    devices: Callable[[str], Sequence[midge.Device]],
    seconds: float,
    enough: Callable[[dict[str, float]], bool] = lambda _: False,
) -> dict[str, float]:
    """Make both with the broker's address, let them learn for so long or until it is enough, and say what was found."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_run(aggregator, devices, seconds, enough, Path(directory)))


async def _run(aggregator, devices, seconds, enough, directory):
    loop, found, told = asyncio.get_running_loop(), {}, 0.0
    reached = asyncio.Event()

    def listen(event):
        nonlocal told
        if event["event"] == "evaluation" and not reached.is_set():  # what ended it is what was found
            found.update(event["metrics"], version=event["version"])
            if loop.time() > told + EVERY:
                told = loop.time()
                print(in_words(found), flush=True)
            if enough(found):
                reached.set()

    async with local_broker(directory=directory) as broker:
        url = f"mqtt://127.0.0.1:{broker.endpoint.port}"
        server = aggregator(url, directory / "store")
        server.config = replace(server.config, on_event=listen)
        serving = asyncio.create_task(server.serve())
        fleet = devices(url)
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
        print(f"At the end: {in_words(found)}", flush=True)
    return found


def in_words(metrics) -> str:
    """Version 12: auc 0.981, rmse 16.2."""
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name != "version")
    return f"version {metrics['version']}: {numbers}" if metrics else "no evaluation yet"
