"""The aggregator of a simulated fleet, in a process of its own: `python -m sensor_fleet.server`.

What it is told comes as one JSON line on standard input, so that no password stands in a command line; the end of the
input is the sign to stop, so that no orphan stays. Its events leave as JSON lines on standard output, the last one
being `finished` or `failed`.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aggregator.config import AggregatorConfig
from aggregator.service import Aggregator
from aggregator.store import StoreError
from broker import BrokerError, connector
from sensor_fleet.setting import BrokerAddress, Setting


def make(
    setting: Setting, broker: BrokerAddress, directory: Path, tell: Callable[[dict[str, Any]], None]
) -> Aggregator:
    """The aggregator of a fleet, which evaluates on the data's test rows."""
    data, model = setting.load()

    def tell_all(event: dict[str, Any]) -> None:
        if event["event"] == "start":  # what a run before has decided and published, told or not
            event |= {"counts": dict(aggregator.core.counts), "digest": aggregator.model.state.digest().hex()}
        tell(event)

    config = AggregatorConfig(
        connector=connector(broker.endpoint()),
        federation=setting.federation,
        root=setting.root,
        initial=model.initial,
        roles=model.roles,
        moments=model.channels,
        statistics_devices=max(2, (len(data.devices) + 1) // 2),
        statistics_deadline=5.0,
        strategy=setting.make_strategy(len(data.devices)),
        store=directory / "store",
        evaluate=lambda parameters: model.evaluate(parameters, data.test),
        on_event=tell_all,
    )
    aggregator = Aggregator(config)
    return aggregator


def tell(event: dict[str, Any]) -> None:
    """One event as a line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def serve(aggregator: Aggregator, model: Path, lines: asyncio.StreamReader) -> None:
    """Serve until the input ends, then write the model."""
    watching = asyncio.create_task(lines.read())
    watching.add_done_callback(lambda _: aggregator.stop())
    try:
        await aggregator.serve()
    finally:
        watching.cancel()
    aggregator.export(model)


Finish = Callable[[], dict[str, Any]]
"""What is to be done once an aggregator has served, and told with the last event."""


def _of_task(task: Mapping[str, Any]) -> tuple[Aggregator, Finish]:
    directory, broker = Path(task["directory"]), BrokerAddress(**task["broker"])
    return make(Setting.unpacked(task["setting"]), broker, directory, tell), dict


async def main(of_task: Callable[[Mapping[str, Any]], tuple[Aggregator, Finish]] = _of_task) -> int:
    """Read what we are told, serve, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us, who then ends our input
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    line = await lines.readline()
    if not line:
        return 1  # who started us is gone already
    task = json.loads(line)
    directory = Path(task["directory"])
    try:
        aggregator, finish = of_task(task)
        await serve(aggregator, directory / "model.safetensors", lines)
        found = finish()
    except (BrokerError, StoreError, ValueError) as error:
        tell({"event": "failed", "why": str(error)})
        return 1
    moved = {"bytes_in": aggregator.meters.bytes_in, "bytes_out": aggregator.meters.bytes_out}
    tell({"event": "finished", **moved, **found})
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
