"""The aggregator of a simulated fleet: a process of its own, or `app` for `midge aggregate`.

The process, `python -m midge.sensor_fleet.live.server`, reads its task as one JSON line from standard input, so that no
password appears in a command line; it stops at the end of that input, so that it is never orphaned. It writes events as
JSON lines to standard output, `finished` or `failed` last.

`app` reads the environment variable MIDGE_FLEET, such as `profile=farm devices=1000 speed_up=600`, with the names of
`sensor_fleet.virtual.ProfileFleet`.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from midge.aggregator.config import AggregatorConfig, Listener
from midge.aggregator.model.export import write_model
from midge.aggregator.service import Aggregator
from midge.aggregator.store.store import StoreError
from midge.broker import BrokerError, Connector, Endpoint, connector
from midge.sensor_fleet.live.masked import MaskingKeys
from midge.sensor_fleet.live.micro import CHUNK
from midge.sensor_fleet.models import initial_model
from midge.sensor_fleet.profiles.time_scaling import scaled_strategy
from midge.sensor_fleet.setting import BrokerAddress, Setting
from midge.sensor_fleet.virtual import VARIABLE, ProfileFleet

MODEL: Final = "model.safetensors"
"""The exact model at the end."""
SERVED: Final = "served.safetensors"
"""The model that users would get, at the end."""
_FORWARDED: Final = ("start", "stop", "evaluation", "release", "device", "failed", "finished")
"""Events that the aggregator of a profile's fleet forwards: devices know the others from their receipts."""


def make(
    fleet: ProfileFleet | Setting, connect: Connector, store: Path, listener: Listener | None = None
) -> Aggregator:
    """Build the aggregator of a fleet, which evaluates on the data's test rows.

    The statistics of a profile's fleet are pooled in advance, as for a virtual one; those of a demo come from its
    devices.
    """
    options: dict[str, Any]
    if isinstance(fleet, ProfileFleet):
        _, data, model, strategy = fleet.loaded()
        strategy = scaled_strategy(strategy, fleet.speed_up)
        initial, roles = initial_model(model, data)
        options = {"federation": fleet.federation}
    else:
        data, model = fleet.load()
        strategy, initial, roles = fleet.make_strategy(len(data.devices)), model.initial, model.roles
        options = {
            "federation": fleet.federation,
            "root": fleet.root,
            "moments": model.channels,
            "statistics_devices": max(2, (len(data.devices) + 1) // 2),
            "statistics_deadline": 5.0,
            **({"chunk": CHUNK} if fleet.micro else {}),
        }
        if fleet.secure:
            # No device tells its statistics: the operator's own test rows give the constants.
            pooled = model.moments(data.test)
            initial = {**initial, **model.freeze({name: pooled[name] for name in model.channels})}
            options |= {"moments": None, **MaskingKeys(store.parent).of_aggregator()}
    config = AggregatorConfig(
        connector=connect,
        initial=initial,
        roles=roles,
        strategy=strategy,
        store=store,
        evaluate=lambda parameters: model.evaluate(parameters, data.test),
        on_event=listener,
        **options,
    )
    return Aggregator(config)


def app() -> Aggregator:
    """The aggregator that MIDGE_FLEET describes, on localhost unless `midge aggregate --broker` is given."""
    fleet = ProfileFleet.parse(os.environ.get(VARIABLE, ""))
    return make(fleet, connector(Endpoint.parse("mqtt://localhost:1883")), Path(fleet.store))


# ------------------------------------------------------------------------ the process


def emit(event: dict[str, Any]) -> None:
    """Write an event as a line."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def of_task(task: Mapping[str, Any]) -> Aggregator:
    """Build the aggregator of a task: a demo's from its setting, a profile fleet's from its words."""
    fleet = Setting.unpacked(task["setting"]) if "setting" in task else ProfileFleet.parse(task["fleet"])

    def some(event: dict[str, Any]) -> None:
        if event["event"] == "start":  # totals of earlier processes, whether or not they were reported
            event |= {"counts": dict(aggregator.core.counts), "digest": aggregator.model.state.digest().hex()}
        if isinstance(fleet, Setting) or event["event"] in _FORWARDED:
            emit(event)

    connect = connector(BrokerAddress(**task["broker"]).endpoint())
    aggregator = make(fleet, connect, Path(task["directory"]) / "store", some)
    return aggregator


async def serve(aggregator: Aggregator, directory: Path, lines: asyncio.StreamReader) -> None:
    """Serve until the input ends, then write the model."""
    watching = asyncio.create_task(lines.read())
    watching.add_done_callback(lambda _: aggregator.stop())
    try:
        await aggregator.serve()
    finally:
        watching.cancel()
    aggregator.export(directory / MODEL)


async def main() -> int:
    """Read the task, serve, and report how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our input
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    line = await lines.readline()
    if not line:
        return 1  # the parent has ended already
    task = json.loads(line)
    directory = Path(task["directory"])
    try:
        aggregator = of_task(task)
        await serve(aggregator, directory, lines)
        if "fleet" in task:
            used = aggregator.model.used()
            write_model(directory / SERVED, used.parameters(), {"federation": aggregator.config.federation})
    except (BrokerError, StoreError, ValueError) as error:
        emit({"event": "failed", "why": str(error)})
        return 1
    moved = {"bytes_in": aggregator.meters.bytes_in, "bytes_out": aggregator.meters.bytes_out}
    emit({"event": "finished", **moved, "counts": dict(aggregator.core.counts)})
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
