"""An aggregator in its own process for benchmarks of the broker, with random weights.

    python -m benchmarks.neighbour_server URL STORE PARAMETERS [--buffer 2] [--codec float32] [--byte-rate 8e6]

It ends when its standard input does.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from midge.aggregator.config import AggregatorConfig
from midge.aggregator.core.presets import fedbuff
from midge.aggregator.service import Aggregator
from midge.broker import Endpoint, connector
from midge.wire.messages import Plan

TOLD = {"start", "connected", "disconnected", "release", "update", "repeat", "held", "dropped", "stop"}


def tell(event: dict[str, Any]) -> None:
    if event["event"] in TOLD:
        few = {name: event[name] for name in ("event", "verdict", "version", "device", "why") if name in event}
        print(json.dumps({**few, "at": time.monotonic()}), flush=True)


async def serve(server: Aggregator) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    serving = asyncio.create_task(server.serve())
    reading = asyncio.create_task(commands.read())
    await asyncio.wait({serving, reading}, return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    await serving
    reading.cancel()
    used = resource.getrusage(resource.RUSAGE_SELF)
    meters = server.meters
    end = {"cpu": used.ru_utime + used.ru_stime, "out": meters.bytes_out, "in": meters.bytes_in}
    print(json.dumps({"event": "end", "at": time.monotonic(), **end, "peak_mb": used.ru_maxrss / 1024}), flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("store")
    parser.add_argument("parameters", type=int)
    parser.add_argument("--federation", default="bench")
    parser.add_argument("--buffer", type=int, default=2)
    parser.add_argument("--codec", default=Plan().codec)
    parser.add_argument("--byte-rate", type=float)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    strategy = replace(fedbuff(arguments.buffer), plan=Plan(codec=arguments.codec, feedback=False), norm_limit=None)
    if arguments.byte_rate is not None:
        strategy = replace(strategy, byte_rate=arguments.byte_rate)
    server = Aggregator(
        AggregatorConfig(
            connector=connector(Endpoint.parse(arguments.url)),
            federation=arguments.federation,
            initial={"w": rng.normal(size=arguments.parameters).astype(np.float32)},
            roles={"w": "trained"},
            strategy=strategy,
            store=arguments.store,
            on_event=tell,
        )
    )
    asyncio.run(serve(server))


if __name__ == "__main__":
    main()
