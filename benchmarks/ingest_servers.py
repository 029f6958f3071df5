"""The servers that `benchmarks.ingest` measures, each in its own process: the aggregator, or a counting subscriber.

The task is JSON on the command line; they end with their input, the aggregator after printing its counts.
"""

import asyncio
import json
import mmap
import os
import struct
import sys
from typing import Any

from midge.broker import Endpoint, Options, connector
from midge.wire.topics import Topics


async def ended() -> None:
    """Wait for the end of the input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def settings(what: dict[str, Any]) -> Any:
    """The config of the aggregator as users run it, with the default strategy.

    Two settings differ from the defaults: releases are spaced, as in a busy federation, and rate limits, which are far
    below the rates of this benchmark, are raised.
    """
    import numpy as np  # noqa: PLC0415 - each role imports what it needs

    from midge.aggregator.config import AggregatorConfig  # noqa: PLC0415
    from midge.aggregator.core.presets import balanced  # noqa: PLC0415
    from midge.aggregator.ingress.rate_limits import IngressLimits  # noqa: PLC0415
    from midge.wire.messages import Plan  # noqa: PLC0415

    strategy = balanced(
        release_interval=what["release_interval"], max_staleness=10**6, plan=Plan(codec=what["codec"], feedback=False)
    )
    return AggregatorConfig(
        connector=connector(Endpoint.parse(what["url"])),
        federation=what["federation"],
        initial={"w": np.random.default_rng(0).normal(size=what["params"]).astype(np.float32)},
        store=what["store"],
        strategy=strategy,
        limits=IngressLimits(rate=1e6, burst=1e6, fleet_rate=1e6, fleet_burst=1e6, bytes_in=None, work=None),
        shards=what.get("shards", 0),
    )


async def aggregate(what: dict[str, Any]) -> dict[str, Any]:
    """Serve until the input ends."""
    from midge.aggregator.service import Aggregator  # noqa: PLC0415
    from midge.commands.sharding import ShardProcesses  # noqa: PLC0415

    server = Aggregator(settings(what))
    service = ShardProcesses(server, server) if what.get("shards") else server
    serving = asyncio.create_task(service.serve())
    stopping = asyncio.create_task(ended())
    await asyncio.wait({serving, stopping}, return_when="FIRST_COMPLETED")
    service.stop()
    await serving
    core = server.core
    applied = core.applied + core.buffered
    return {"counts": dict(core.counts), "version": core.version, "step": core.step, "applied": applied}


class Seen:
    """Number of messages received, for the publishers: they send no more than can be processed."""

    def __init__(self, path: str) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, 8)
        self._shared, self._count = mmap.mmap(file, 8), 0

    def add(self, some: int = 1) -> None:
        self._count += some
        struct.pack_into("<Q", self._shared, 0, self._count)


async def count_by_connection(what: dict[str, Any], topic: str, seen: Seen) -> None:
    """On `broker.Connection`, with acknowledgements."""
    connect = connector(Endpoint.parse(what["url"]))
    async with connect(Options("counter", receive_maximum=200)) as connection:
        await connection.subscribe(topic)
        print('"ready"', flush=True)
        async for delivery in connection.messages():
            taken = [delivery, *connection.waiting()]
            for each in taken:
                connection.ack(each)
            seen.add(len(taken))


def count_by_paho(what: dict[str, Any], topic: str, seen: Seen) -> None:
    """As in paho's documentation."""
    from paho.mqtt.client import Client  # noqa: PLC0415
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

    client = Client(CallbackAPIVersion.VERSION2, client_id="counter")
    client.on_message = lambda *_: seen.add()
    client.on_subscribe = lambda *_: print('"ready"', flush=True)
    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.connect("127.0.0.1", Endpoint.parse(what["url"]).port)
    client.loop_forever()


async def until_ended(work: Any) -> None:
    task = asyncio.create_task(work)
    await asyncio.wait({task, asyncio.create_task(ended())}, return_when="FIRST_COMPLETED")
    if task.done():
        task.result()


def main() -> None:
    what = json.loads(sys.argv[1])
    topic = Topics(what["federation"]).from_devices[0]
    match what["role"]:
        case "aggregator" if (place := os.environ.get("MIDGE_SHARD")) is not None:
            from midge.commands.sharding import run_shard  # noqa: PLC0415

            run_shard(settings(what), json.loads(place))
        case "aggregator":
            print(json.dumps(asyncio.run(aggregate(what))), flush=True)
        case "paho":
            count_by_paho(what, topic, Seen(what["counter"]))
        case _:
            asyncio.run(until_ended(count_by_connection(what, topic, Seen(what["counter"]))))


if __name__ == "__main__":
    main()
